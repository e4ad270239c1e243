"""`pilot seal`: seal the cluster, so that only custodians can bring it back."""

from typing import TYPE_CHECKING, Annotated

import typer

from pilot.errors import PilotError, describe
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, print_facts, print_json

if TYPE_CHECKING:
    from pilot.terminal.terminal import Terminal
    from shardhold._errors import Error
    from shardhold.v1.cluster_pb2 import GetStatusResponse, SealResponse

app = typer.Typer(add_completion=False)

_ID_DIGITS = 8  # of the cluster id, enough to tell clusters apart
_STORE_FAILED = ("STORE_UNAVAILABLE", "OUTCOME_UNKNOWN")


@app.command()
@with_globals
def seal(
    settings: Settings,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why, for the audit; at most 256 characters.", show_default=False)
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; for automation.")] = False,
) -> None:
    """Seal the cluster: nexus and keepers forget the root key, and only custodians bring it back.

    Roles: operator, superuser.
    """
    from pilot.connection import Connection
    from pilot.terminal.terminal import Terminal
    from shardhold._errors import DeadlineError, UnavailableError
    from shardhold.v1 import cluster_pb2 as pb

    with Connection(settings, preferred=("operator", "superuser")) as connection:
        status = connection.call(connection.cluster.GetStatus, pb.GetStatusRequest())
        if not yes:
            ask(Terminal(), status)
        try:
            response = connection.call(connection.cluster.Seal, pb.SealRequest(reason=reason))
        except (UnavailableError, DeadlineError) as exc:
            raise explain(exc) from exc
    _print(settings, response)


def ask(terminal: "Terminal", status: "GetStatusResponse") -> None:
    """Make a person type what is about to be sealed.

    Raises:
        PilotError: Not confirmed.
    """
    from pilot.terminal.confirmation import confirm

    cluster_id = status.cluster_id.hex()
    shown = cluster_id[:_ID_DIGITS]
    known = status.recovery_threshold > 0
    people = f"{status.recovery_threshold} of its {status.recovery_shares} custodians" if known else "its custodians"
    warning = (
        f"Sealing cluster {cluster_id or '(its nexus does not say which)'}: no secret is served from now on, the nexus "
        f"wipes its keys, and the keepers drop their shards. No restart brings it back, only {people} can."
    )
    question = f"type {shown}, or the word seal" if shown else "type the word seal"
    answers = ("seal", shown) if shown else ("seal",)
    confirm(terminal, warning, question=question, answers=answers, refusal="not confirmed: nothing was sealed")


def explain(error: "Error") -> PilotError:
    """Say what is true after a seal that failed, or whose answer was lost."""
    described = describe(error)
    hint = "'pilot status' shows whether it is sealed; sealing again does no harm"
    if error.reason in _STORE_FAILED:
        hint = (
            "the nexus has wiped its keys and stops, but the store may not have recorded the seal: a restart may "
            "recover the keys. Keep it down, repair the store, start it, and seal again"
        )
    return PilotError(str(described), hint, *described.hints, exit_code=described.exit_code, reason=described.reason)


def _print(settings: Settings, response: "SealResponse") -> None:
    emptied, keepers = response.keepers_emptied, response.keepers
    if settings.output is Output.JSON:
        print_json({"keepers_emptied": emptied, "keepers": keepers})
        return
    rest = "" if emptied >= keepers else "; the nexus goes on until the others have dropped theirs or were restarted"
    facts = {
        "state": "sealed",
        "keepers": f"{emptied} of {keepers} hold no shard any more{rest}",
        "bring it back": "pilot unseal, by each custodian",
    }
    print_facts(facts)
