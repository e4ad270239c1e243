"""`pilot root`: the root key, and the work on it."""

from typing import Annotated

import typer

from pilot.commands import quarantine
from pilot.commands.documents import operation_document, root_document
from pilot.commands.following import fetch
from pilot.commands.history import history
from pilot.commands.impact import impact
from pilot.commands.operations import (
    READERS,
    WORKERS,
    DryRunOption,
    ReasonOption,
    WaitOption,
    require_running,
    rules_named,
    start,
)
from pilot.commands.root_status import print_operation, print_root
from pilot.commands.rotate import rotate
from pilot.completion import complete_keepers
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
    document = root_document(answer)
    if settings.output is Output.JSON:
        print_json(document)
    else:
        print_root(document)


app.command()(with_globals(rotate))


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
        with rules_named():
            connection.call(connection.root.AbortOperation, request)
    if settings.output is Output.JSON:
        print_json({"id": operation.operation_id.hex(), "outcome": "aborted"})
        return
    facts = {"aborted": f"set {operation.set_to} is dead, set {operation.set_from} stays"}
    if operation.generation_from != operation.generation_to:
        facts["root key"] = f"generation {operation.generation_to} is given up, {operation.generation_from} stays"
    print_facts(facts)


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
        typer.Option(
            "--lost",
            metavar="NAME",
            help="A keeper that leaves and never comes back; may be repeated.",
            autocompletion=complete_keepers,
        ),
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
        with rules_named():
            response = connection.call(connection.root.ContinueOperation, request)
    document = operation_document(response.operation) if response.HasField("operation") else None
    if settings.output is Output.JSON:
        print_json(document)
    elif document is None:
        print_facts({"given up": ", ".join(lost or [])})
    else:
        print_operation(document)


@app.command()
@with_globals
def pause(
    settings: Settings,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why, shown until it is resumed; at most 256 characters.")
    ],
) -> None:
    """Hold the keyring job, and operations that would begin by schedule. Roles: operator, superuser.

    An operation in progress goes on. The pause stays through restarts, until 'pilot root resume'.
    """
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

    with Connection(settings, preferred=WORKERS) as connection, rules_named():
        connection.call(connection.root.PauseRotation, pb.PauseRotationRequest(reason=reason))
    if settings.output is Output.JSON:
        print_json({"paused": reason})
    else:
        print_facts({"paused": reason})


@app.command()
@with_globals
def resume(settings: Settings) -> None:
    """End a pause. Roles: operator, superuser."""
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

    with Connection(settings, preferred=WORKERS) as connection, rules_named():
        connection.call(connection.root.ResumeRotation, pb.ResumeRotationRequest())
    if settings.output is Output.JSON:
        print_json({"paused": None})
    else:
        print_facts({"resumed": "the keyring job and the schedule"})


app.command()(with_globals(history))
app.command()(with_globals(impact))
app.add_typer(quarantine.app, name="quarantine")
