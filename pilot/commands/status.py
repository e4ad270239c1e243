"""`pilot status`, `pilot whoami`, `pilot version`: what is running, and who asks."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot import __version__
from pilot.errors import DONE, FAILED, NO_CLUSTER, SEALED, WAITING
from pilot.options import Settings, with_globals
from pilot.terminal.output import (
    Output,
    group_hex,
    print_facts,
    print_json,
    print_table,
    show_name,
    show_time,
    show_timestamp,
)
from pilot.terminal.report import print_hint

if TYPE_CHECKING:
    from shardhold.v1.cluster_pb2 import GetStatusResponse, KeeperStatus

status_app = typer.Typer(add_completion=False)
whoami_app = typer.Typer(add_completion=False)
version_app = typer.Typer(add_completion=False)

MEMORY_PROTECTION = {3: "3 (memfd_secret)", 2: "2 (locked)", 1: "1 (plain, for development)", 0: ""}
ANY_ROLE = ("operator", "superuser", "auditor", "recover")

_EXIT_CODES = {
    "sealed": SEALED,
    "recovering": WAITING,
    "uninitialised": NO_CLUSTER,
    "initialising": NO_CLUSTER,
}


@status_app.command()
@with_globals
def status(
    settings: Settings,
    exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code",
            help="Exit with 0 only if the nexus serves: 6 sealed, 7 recovering or blocked, 8 not initialised.",
        ),
    ] = False,
) -> None:
    """Show the status of the nexus and its keepers."""
    from pilot.connection import Connection
    from shardhold.v1.cluster_pb2 import GetStatusRequest

    with Connection(settings, preferred=ANY_ROLE) as connection:
        response = connection.call(connection.cluster.GetStatus, GetStatusRequest())
    document = to_document(response)
    if settings.output is Output.JSON:
        print_json(document)
    else:
        _print(document)
    if exit_code:
        raise typer.Exit(find_exit_code(document))


@whoami_app.command()
@with_globals
def whoami(settings: Settings) -> None:
    """Show the SVID that pilot would use, without calling a nexus."""
    from pilot.connection import open_identity, role_of

    identity = open_identity(settings)
    try:
        svid = identity.current()
    finally:
        identity.close()
    document = {
        "spiffe_id": svid.spiffe_id,
        "trust_domain": svid.trust_domain,
        "role": role_of(svid.spiffe_id) or "workload",
        "expires_at": show_time(svid.expires_at),
    }
    if settings.output is Output.JSON:
        print_json(document)
    else:
        labels = {"spiffe_id": "SPIFFE ID", "trust_domain": "trust domain", "expires_at": "expires at"}
        print_facts({labels.get(name, name): value for name, value in document.items()})


@version_app.command()
@with_globals
def version(settings: Settings) -> None:
    """Show the version of pilot; the nexus's version is in its status."""
    if settings.output is Output.JSON:
        print_json({"version": __version__})
    else:
        print(f"pilot {__version__}")


def find_exit_code(document: dict[str, Any]) -> int:
    """Return what `--exit-code` makes of a status: 0 if calls are served."""
    if document["state"] == "ready":
        return WAITING if document["blocked_by"] else DONE
    return _EXIT_CODES.get(document["state"], FAILED)


def _print(document: dict[str, Any]) -> None:
    print_facts(to_facts(document))
    for hint in list_hints(document):
        print_hint(hint)
    if document["keepers"]:
        print()
        print_table(("keeper", "address", "shard", "fault"), [to_row(keeper) for keeper in document["keepers"]])


def to_document(response: "GetStatusResponse") -> dict[str, Any]:
    """Return a status as its JSON document: null for what does not exist yet or the caller may not see."""
    from shardhold.v1.cluster_pb2 import State

    has_operation = response.HasField("operation")
    return {
        "state": show_name(State.Name, response.state, "STATE_"),
        "blocked_by": list(response.blocked_by),
        "alarms": list(response.alarms),
        "cluster_id": response.cluster_id.hex() or None,
        "genesis": response.genesis.hex() or None,
        "generation": response.generation or None,
        "shard_threshold": response.shard_threshold or None,
        "shard_count": response.shard_count or None,
        "set_number": response.set_number or None,
        "keepers_short": _count_short(response),
        "recovery_threshold": response.recovery_threshold or None,
        "recovery_shares": response.recovery_shares or None,
        "timeline": response.timeline or None,
        "revision": response.revision or None,
        "memory_protection": response.memory_protection or None,
        "operation": {"kind": response.operation.kind, "step": response.operation.step} if has_operation else None,
        "newer_mark": _newer_mark_document(response),
        "restored": response.restored,
        "unseal": _unseal_document(response),
        "keepers": [keeper_document(keeper) for keeper in response.keepers],
        "version": response.version or None,
    }


def _newer_mark_document(response: "GetStatusResponse") -> dict[str, Any] | None:
    if not response.HasField("newer_mark"):
        return None
    mark = response.newer_mark
    return {
        "timeline": mark.timeline,
        "revision": mark.revision,
        "made_at": show_timestamp(mark.made_at),
        "keepers": list(mark.keepers),
    }


def _unseal_document(response: "GetStatusResponse") -> dict[str, Any] | None:
    if not response.HasField("unseal"):
        return None
    return {"submitted": response.unseal.submitted, "needed": response.unseal.needed}


def _count_short(response: "GetStatusResponse") -> int | None:
    """Return how many more keepers a restarted nexus needs to come back by itself; None when that is not known."""
    if not response.shard_threshold:
        return None
    return max(0, response.shard_threshold - sum(keeper.holds_current_set for keeper in response.keepers))


def keeper_document(keeper: "KeeperStatus") -> dict[str, Any]:
    """Return what is known of one keeper as JSON."""
    return {
        "name": keeper.name,
        "address": keeper.address,
        "reachable": keeper.reachable,
        "holds_current_set": keeper.holds_current_set,
        "fault": keeper.fault or None,
    }


def to_facts(document: dict[str, Any]) -> dict[str, str]:
    """Return the lines of a status for people, leaving out what there is not."""
    genesis, operation = document["genesis"], document["operation"]
    mark, unseal = document["newer_mark"], document["unseal"]
    facts = {
        "state": document["state"],
        "blocked by": "; ".join(document["blocked_by"]),
        "alarms": "; ".join(document["alarms"]),
        "cluster": document["cluster_id"],
        "genesis": genesis and group_hex(bytes.fromhex(genesis)),
        "generation": document["generation"],
        "shard set": document["set_number"]
        and f"{document['set_number']}: any {document['shard_threshold']} of {document['shard_count']} keepers",
        "recovery": document["recovery_threshold"]
        and f"any {document['recovery_threshold']} of {document['recovery_shares']} custodians",
        "timeline": document["timeline"],
        "revision": document["revision"],
        "memory": MEMORY_PROTECTION.get(document["memory_protection"] or 0, str(document["memory_protection"])),
        "operation": operation and f"{operation['kind']}: {operation['step']}",
        "newer mark": mark
        and f"timeline {mark['timeline']}, revision {mark['revision']}, made at {mark['made_at']}, "
        f"held by {', '.join(mark['keepers'])}",
        "unseal": unseal and f"{unseal['submitted']} of {unseal['needed']} shares submitted",
        "version": document["version"],
    }
    return {name: str(value) for name, value in facts.items() if value}


def list_hints(document: dict[str, Any]) -> list[str]:
    """Return what to do about a nexus that does not come back by itself; empty for any other."""
    if document["newer_mark"]:
        store = f"--timeline {document['timeline'] or 0} --revision {document['revision'] or 0}"
        return [
            "the store is older than its keepers remember: restore its newest copy, or lose what is missing with "
            f"'pilot accept-older-store {store}'"
        ]
    if document["restored"]:
        store = f"--timeline {document['timeline'] or 0} --revision {document['revision'] or 0}"
        return [
            f"a superuser accepts it with 'pilot accept-older-store {store}'; if it lacks shards, keepers or "
            "'pilot unseal' give its key back before"
        ]
    if any("accept-new-chain" in line for line in document["blocked_by"]):
        return [
            "put the audit files back and start the nexus again, or accept that they are lost with "
            "'pilot audit accept-new-chain --reason TEXT'"
        ]
    if document["state"] == "sealed":
        return ["custodians bring it back: 'pilot unseal'"]
    if document["state"] == "recovering" and document["blocked_by"]:
        return ["if the keepers that it waits for do not return, custodians bring it back: 'pilot unseal'"]
    if document["state"] == "ready" and document["blocked_by"]:
        return ["it serves again by itself once its audit can be written: look at that disk, and at the nexus's log"]
    if document["state"] == "ready" and (short := document["keepers_short"]):
        more = "1 more keeper holds its shard" if short == 1 else f"{short} more keepers hold their shards"
        return [f"until {more}, a restarted nexus needs its custodians"]
    return []


def to_row(keeper: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return one keeper's line: whether it holds its shard of the current set."""
    if not keeper["reachable"]:
        shard = "unreachable"
    else:
        shard = "held" if keeper["holds_current_set"] else "not held"
    return keeper["name"], keeper["address"], shard, keeper["fault"] or ""
