"""An operation on the root key, as pilot begins it, awaits its end and shows it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pilot.commands.documents import STEPS, UNKNOWN, ended_document, job_document, operation_document
from pilot.commands.following import GOES_ON, fetch, follow, follow_rows, name_change, show_fingerprint
from pilot.errors import PilotError
from pilot.options import Settings
from pilot.plain import clean
from pilot.terminal.output import Output, print_json, print_table
from pilot.terminal.report import print_hint

if TYPE_CHECKING:
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

WORKERS = ("operator", "superuser")  # roles that may begin and end operations
READERS = (*WORKERS, "auditor")
_GENERAL_REASONS = ("", "WRONG_STATE")  # which name no rule

ReasonOption = Annotated[
    str,
    typer.Option("--reason", metavar="TEXT", help="Why, for the audit; at most 256 characters.", show_default=False),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what stands against it.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Return when it has ended, and fail if it was taken back.")]


def start(
    settings: Settings,
    request: "pb.StartOperationRequest",
    *,
    wait: bool,
    confirm: Callable[["Connection"], None] | None = None,
) -> None:
    """Begin the operation of *request*, whose id is filled in here, or look what stands against it; show how it goes.

    *confirm* is called before it begins, and may refuse.

    Raises:
        PilotError: A check refuses, it was taken back meanwhile, or versions are in quarantine after a wait.
    """
    from pilot.connection import Connection

    request.operation_id = os.urandom(16)
    with Connection(settings, preferred=_choose_roles(request)) as connection, rules_named():
        if confirm is not None and not request.dry_run:
            confirm(connection)
        response = connection.call(connection.root.StartOperation, request)
        if request.dry_run:
            _show_checks(settings, list(response.checks))
            return
        if response.operation.operation_id != request.operation_id:
            raise PilotError("the nexus answers with another operation than it was asked for")
        if not wait:
            _show_begun(settings, response.operation)
        else:
            _await(settings, connection, response.operation)


def require_running(connection: "Connection") -> "pb.RootOperation":
    """Return the operation in progress.

    Raises:
        PilotError: There is none.
    """
    answer = fetch(connection)
    if not answer.HasField("operation"):
        raise PilotError("no operation is in progress")
    return answer.operation


@contextmanager
def rules_named() -> Iterator[None]:
    """Let an error that says that something is refused end with the name of the rule."""
    from shardhold._errors import WrongStateError

    try:
        yield
    except WrongStateError as exc:
        if exc.reason in _GENERAL_REASONS:
            raise
        raise PilotError(f"{exc.message} ({exc.reason})", exc.hint) from exc


def _choose_roles(request: "pb.StartOperationRequest") -> tuple[str, ...]:
    """Return the roles to call with, best first: the lesser one, unless what is asked for may need a superuser."""
    needs_superuser = request.add or request.threshold or request.force or request.without_backup
    return WORKERS[::-1] if needs_superuser else WORKERS


def _show_checks(settings: Settings, checks: list["pb.Check"]) -> None:
    refused = sum(bool(check.refusal) for check in checks)
    if settings.output is Output.JSON:
        print_json([{"name": check.name, "detail": check.detail, "refusal": check.refusal or None} for check in checks])
    else:
        rows = [("refused" if check.refusal else "ok", check.name, check.detail, check.refusal) for check in checks]
        print_table(("", "check", "what was found", "rule"), rows)
    if refused:
        raise PilotError(f"it would be refused: {refused} of {len(checks)} checks")


def _show_begun(settings: Settings, operation: "pb.RootOperation") -> None:
    if settings.output is Output.JSON:
        print_json(operation_document(operation))
        return
    show_fingerprint(operation)
    print(f"{name_change(operation)}  {STEPS.get(operation.step, UNKNOWN)} ✓")
    print_hint(GOES_ON)


def _await(settings: Settings, connection: "Connection", begun: "pb.RootOperation") -> None:
    """Wait for the end of the operation and, where there is a new KEK, until rows are under it; show both."""
    is_shown = settings.output is Output.TABLE
    if is_shown:
        show_fingerprint(begun)
    ended, seconds = follow(connection, begun, is_shown=is_shown)
    document = ended_document(ended)
    is_settled = document["outcome"] == "settled"
    if is_shown:
        print(f"{document['outcome']} {'✓ ' if is_settled else ''}({seconds:.1f} s)", flush=True)
    renews_key = begun.generation_from != begun.generation_to
    job = follow_rows(connection, is_shown=is_shown) if is_settled and renews_key else None
    if not is_shown:
        left = job_document(job) if job is not None else None
        print_json({**document, "kcv": begun.kcv.hex() or None, "keyring_job": left})
    if not is_settled:
        raise PilotError(f"the operation was taken back: {clean(ended.detail) or 'no reason is given'}")
    if job is not None:
        _check_left(job)


def _check_left(job: "pb.KeyringJob") -> None:
    """Say why older KEKs stay.

    Raises:
        PilotError: Versions are in quarantine.
    """
    if job.quarantine:
        count = "1 version" if job.quarantine == 1 else f"{job.quarantine:,} versions"
        raise PilotError(f"{count} did not open: in quarantine", "'pilot root quarantine list' says which")
    if job.waits_for:
        print_hint(f"older KEKs are kept; the keyring job waits for: {job.waits_for}")
