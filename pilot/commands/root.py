"""`pilot root`: the root key, and the work on it."""

from typing import Annotated, Any

import typer

from pilot.commands.operations import (
    READERS,
    WORKERS,
    DryRunOption,
    ReasonOption,
    WaitOption,
    ended_document,
    fetch,
    require_running,
    show_time_of,
    start,
    to_document,
)
from pilot.errors import UsageError
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, print_facts, print_json

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The root key: how it stands, and operations on it.")

ThresholdOption = Annotated[
    int,
    typer.Option(
        "--threshold", min=0, max=255, metavar="T", help="Keepers that rebuild the key; 0: as now.", show_default=False
    ),
]


@app.command()
@with_globals
def status(settings: Settings) -> None:
    """Say how the root key stands, and how far an operation has come. Roles: operator, superuser, auditor."""
    from pilot.connection import Connection

    with Connection(settings, preferred=READERS) as connection:
        answer = fetch(connection)
    document = {
        "generation": answer.generation,
        "set_number": answer.set_number,
        "threshold": answer.threshold,
        "keepers": answer.keepers,
        "drawn_at": show_time_of(answer.drawn_at) or None,
        "operation": to_document(answer.operation) if answer.HasField("operation") else None,
        "last": ended_document(answer.last) if answer.HasField("last") else None,
    }
    if settings.output is Output.JSON:
        print_json(document)
    else:
        _print(document)


@app.command()
@with_globals
def reshare(
    settings: Settings,
    threshold: ThresholdOption = 0,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
) -> None:
    """Give the keepers new shards of the same root key, of another threshold if wanted. Roles: operator, superuser.

    Shards from before and after fit no longer together: who stole fewer than the threshold has nothing.
    """
    from shardhold.v1 import root_pb2 as pb

    if threshold == 1:
        raise UsageError("--threshold: got 1, want 2 or more")
    request = pb.StartOperationRequest(depth=pb.DEPTH_RESHARE, threshold=threshold, reason=reason, dry_run=dry_run)
    start(settings, request, wait=wait)


@app.command()
@with_globals
def abort(settings: Settings, reason: ReasonOption = "") -> None:
    """Take back an operation that has not flipped yet. Roles: operator, superuser."""
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

    with Connection(settings, preferred=WORKERS) as connection:
        operation = require_running(connection)
        request = pb.AbortOperationRequest(operation_id=operation.operation_id, reason=reason)
        connection.call(connection.root.AbortOperation, request)
    if settings.output is Output.JSON:
        print_json({"id": operation.operation_id.hex(), "outcome": "aborted"})
    else:
        print_facts({"aborted": f"set {operation.set_to} is dead, set {operation.set_from} stays"})


@app.command("continue")
@with_globals
def continue_(
    settings: Settings,
    with_threshold: Annotated[
        bool, typer.Option("--with-threshold", help="Be content with as many keepers as the threshold.")
    ] = False,
    without_proof: Annotated[
        bool,
        typer.Option(
            "--without-proof", help="Settle although no keepers prove that they give the key back. Superuser only."
        ),
    ] = False,
    lost: Annotated[
        list[str] | None,
        typer.Option("--lost", metavar="NAME", help="A keeper that leaves and never comes back; may be repeated."),
    ] = None,
) -> None:
    """Let an operation go on with less than it waits for. Roles: operator, superuser.

    A keeper that leaves is waited for until it has dropped its shards, also once the operation has ended: --lost ends
    that at any time.
    """
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

    if not (with_threshold or without_proof or lost):
        raise UsageError("nothing to do without: give --with-threshold, --without-proof or --lost NAME")
    with Connection(settings, preferred=("superuser", "operator") if without_proof else WORKERS) as connection:
        is_operation_needed = with_threshold or without_proof
        request = pb.ContinueOperationRequest(
            operation_id=require_running(connection).operation_id if is_operation_needed else b"",
            with_threshold=with_threshold,
            without_proof=without_proof,
            lost=lost or [],
        )
        response = connection.call(connection.root.ContinueOperation, request)
    document = to_document(response.operation) if response.HasField("operation") else None
    if settings.output is Output.JSON:
        print_json(document)
    elif document is None:
        print_facts({"given up": ", ".join(lost or [])})
    else:
        _print_operation(document)


def _print(document: dict[str, Any]) -> None:
    facts = {
        "generation": str(document["generation"]),
        "shard set": f"{document['set_number']}, {document['threshold']} of {document['keepers']} keepers"
        + (f", drawn {document['drawn_at']}" if document["drawn_at"] else ""),
    }
    if (last := document["last"]) is not None:
        sets = f"set {last['set_from']} → {last['set_to']}"
        detail = f": {last['detail']}" if last["detail"] else ""
        facts["last operation"] = f"{last['depth']}, {sets}, {last['outcome']} {last['ended_at']}{detail}"
    if document["operation"] is None:
        facts["operation"] = "none"
    print_facts(facts)
    if document["operation"] is not None:
        _print_operation(document["operation"])


def _print_operation(operation: dict[str, Any]) -> None:
    facts = {
        "operation": f"{operation['depth']}, set {operation['set_from']} → {operation['set_to']}",
        "step": f"{operation['step']} since {operation['stepped_at']}",
        "began": f"{operation['started_at']} by {operation['actor']}",
        "holders": f"{len(operation['holders'])} of {operation['keepers']} keepers, want {operation['quorum']}",
    }
    if operation["reason"]:
        facts["reason"] = operation["reason"]
    if operation["waits_for"]:
        facts["waits for"] = operation["waits_for"]
    print_facts(facts)
