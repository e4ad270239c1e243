"""`pilot unseal`: custodians bring a cluster back with their recovery words, one by one, wherever they are."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pilot.errors import PilotError, UsageError
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, group_hex, print_facts, print_json
from pilot.terminal.report import print_note
from pilot.terminal.signals import signals_as_interrupt
from pilot.usage import ask_if_meant, find_alike

if TYPE_CHECKING:
    from pilot.custody.unseal_calls import Recovery
    from shardhold.v1.recovery_pb2 import GetProgressResponse, SubmitShareResponse

_LEAD = "lead"  # what `pilot unseal` does without a command
_NAMES = ("start", "submit", "status", "exclude", "reset")
_CUSTODIANS = ("recover", "operator", "superuser")


class _UnsealGroup(TyperGroup):
    """Runs the guided unseal when no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Completion parses too, and is meant to offer the commands.
        is_named = args and (args[0] in self.commands or args[0] == "--help")
        if not is_named and not ctx.resilient_parsing:
            if named := [arg for arg in args if arg in self.commands]:
                raise UsageError(f"options go before 'unseal', or after 'unseal {named[0]}'")
            if args and (meant := find_alike(args[0], _NAMES)):  # not repeated: it may be a word of a share
                raise UsageError("no such command of 'pilot unseal'", ask_if_meant(meant))
            args = [_LEAD, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = typer.Typer(cls=_UnsealGroup, add_completion=False)

NexusIdOption = Annotated[
    str | None,
    typer.Option(
        "--nexus-id",
        metavar="SPIFFE-ID",
        help="Seal the share to this nexus only. Default: any /shardhold/nexus/NAME of your trust domain.",
    ),
]
GenesisOption = Annotated[
    str | None,
    typer.Option("--genesis", metavar="HEX", help="Genesis fingerprint on the card, if there is no terminal."),
]
ShareArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="@FILE|-", help="A share card, or its words, from a file or standard input. Default: you are asked."
    ),
]


@app.callback()
def _keep_as_group() -> None:
    """Bring the cluster back with recovery shares. Without a command: guide one custodian through.

    It joins the open session or opens one, shows the genesis fingerprint
    to compare with the share card, asks for the words, and submits them,
    sealed to the nexus. Roles: recover, operator, superuser.
    """


@app.command(_LEAD, hidden=True)
@with_globals
def lead(
    settings: Settings, share: ShareArgument = None, nexus_id: NexusIdOption = None, genesis: GenesisOption = None
) -> None:
    """Guide one custodian through: like submit, but opens a session if there is none."""
    _take_share(settings, share or [], nexus_id, genesis, starts=True)


@app.command()
@with_globals
def start(settings: Settings) -> None:
    """Open the session that gathers shares; it ends after 15 minutes."""
    with _connect(settings, _CUSTODIANS) as recovery:
        recovery.start()
        progress = recovery.load_progress()
    _print_progress(settings, progress)


@app.command()
@with_globals
def submit(
    settings: Settings, share: ShareArgument = None, nexus_id: NexusIdOption = None, genesis: GenesisOption = None
) -> None:
    """Submit one share to the open session."""
    _take_share(settings, share or [], nexus_id, genesis, starts=False)


@app.command()
@with_globals
def status(settings: Settings) -> None:
    """Show how many shares were submitted and how many are needed."""
    with _connect(settings, (*_CUSTODIANS, "auditor")) as recovery:
        progress = recovery.load_progress()
    _print_progress(settings, progress)


@app.command()
@with_globals
def exclude(
    settings: Settings,
    spiffe_id: Annotated[str, typer.Argument(metavar="SPIFFE-ID", help="Whose calls the session no longer takes.")],
) -> None:
    """Exclude a caller from the session: they get no key for a share and submit none. Roles: operator, superuser."""
    with _connect(settings, ("operator", "superuser")) as recovery:
        recovery.exclude(_require_session(recovery, "to exclude anybody from"), spiffe_id)
        progress = recovery.load_progress()
    _print_progress(settings, progress)


@app.command()
@with_globals
def reset(settings: Settings) -> None:
    """End the session and forget its shares. Roles: operator, superuser; its starter, while no one else submitted."""
    with _connect(settings, ("operator", "superuser", "recover")) as recovery:
        forgotten = recovery.reset(_require_session(recovery, "to reset"))
    if settings.output is Output.JSON:
        print_json({"forgotten": forgotten})
    else:
        print_facts({"forgotten": f"{forgotten} shares"})


def _require_session(recovery: "Recovery", purpose: str) -> bytes:
    """Return the id of the open session."""
    progress = recovery.load_progress()
    if not progress.HasField("session"):
        raise PilotError(f"no session is open: there is nothing {purpose}")
    session_id: bytes = progress.session.session_id
    return session_id


def parse_genesis(text: str | None) -> bytes | None:
    """Read `--genesis`: 64 hex digits, in groups or not.

    Raises:
        UsageError: It is something else.
    """
    from pilot.custody.card import GENESIS_SIZE

    if text is None:
        return None
    try:
        genesis = bytes.fromhex("".join(text.split()))
    except ValueError:
        genesis = b""
    if len(genesis) != GENESIS_SIZE:
        raise UsageError(f"--genesis: got {text[:100]!r}, want all {2 * GENESIS_SIZE} hex digits of the card")
    return genesis


def _take_share(
    settings: Settings, arguments: list[str], nexus_id: str | None, genesis: str | None, *, starts: bool
) -> None:
    from common.keys.hardening import harden_process
    from pilot.custody.given_share import read_given_share
    from pilot.custody.unsealing import Unsealing
    from pilot.terminal.terminal import Terminal

    expected = parse_genesis(genesis)
    harden_process()  # words are about to be in this process's memory
    given = read_given_share(arguments, sys.stdin.buffer)
    with signals_as_interrupt(), _connect(settings, _CUSTODIANS, nexus_id) as recovery:
        unsealing = Unsealing(recovery, terminal=Terminal(), say=print_note)
        accepted = unsealing.run(given, genesis=expected, starts=starts)
    _print_accepted(settings, accepted)


@contextmanager
def _connect(settings: Settings, preferred: tuple[str, ...], nexus_id: str | None = None) -> "Iterator[Recovery]":
    from common.clock import SystemClock
    from pilot.connection import Connection
    from pilot.custody.unseal_calls import Recovery
    from pilot.custody.unsealing import explain_state
    from shardhold._errors import WrongStateError

    with Connection(settings, preferred=preferred) as connection:
        recovery = Recovery(connection, nexus_id=nexus_id, clock=SystemClock(), timeout=settings.timeout)
        try:
            yield recovery
        except WrongStateError as exc:
            raise explain_state(recovery, exc) from exc


def _print_progress(settings: Settings, progress: "GetProgressResponse") -> None:
    document = to_document(progress)
    if settings.output is Output.JSON:
        print_json(document)
        return
    session = document["session"]
    facts = {
        "cluster": document["cluster_id"],
        "genesis": group_hex(progress.genesis),
        "recovery": f"any {progress.recovery_threshold} of {progress.recovery_shares} custodians",
        "session": f"{session['submitted']} of {session['needed']} shares submitted" if session else "none is open",
    }
    if session:
        facts["ends in"] = f"{session['expires_in_s']} s"
        facts["started by"] = session["started_by"] or "another"
        if session["excluded"]:
            facts["excluded"] = ", ".join(session["excluded"])
    print_facts(facts)


def to_document(progress: "GetProgressResponse") -> dict[str, Any]:
    """Return the progress of an unseal as its JSON document; null for what does not exist or the caller may not see."""
    session = progress.session
    return {
        "cluster_id": progress.cluster_id.hex(),
        "genesis": progress.genesis.hex(),
        "recovery_threshold": progress.recovery_threshold,
        "recovery_shares": progress.recovery_shares,
        "session": {
            "session_id": session.session_id.hex(),
            "started_by": session.started_by or None,
            "expires_in_s": session.expires_in.seconds,
            "submitted": session.submitted,
            "needed": session.needed,
            "excluded": list(session.excluded),
        }
        if progress.HasField("session")
        else None,
    }


def _print_accepted(settings: Settings, accepted: "SubmitShareResponse") -> None:
    missing = max(accepted.needed - accepted.submitted, 0)
    if settings.output is Output.JSON:
        print_json(
            {
                "number": accepted.number,
                "submitted": accepted.submitted,
                "needed": accepted.needed,
                "missing": missing,
                "ready": accepted.ready,
            }
        )
    else:
        still = f"{missing} more {'custodian' if missing == 1 else 'custodians'}"
        nexus = "ready" if accepted.ready else f"waits for {still}" if missing else "blocked"
        print_facts(
            {
                "accepted": f"share of custodian {accepted.number}",
                "shares": f"{accepted.submitted} of {accepted.needed}",
                "nexus": nexus,
            }
        )
    if not missing and not accepted.ready:
        print_note("the root key is proved, but the nexus is blocked: 'pilot status' says by what, and what to do")
