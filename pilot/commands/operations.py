"""An operation on the root key, as pilot begins it, awaits its end and shows it."""

import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.errors import INTERRUPTED, PilotError
from pilot.options import Settings
from pilot.plain import clean
from pilot.terminal.output import Output, print_json, print_table, show_timestamp

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

WORKERS = ("operator", "superuser")  # roles that may begin and end operations
READERS = (*WORKERS, "auditor")
_POLL_S = 0.2
_HINT_S = 2.0  # what it waits for is told when the wait lasts longer
_UNKNOWN = "unknown"  # a newer nexus knows more steps than this pilot
_GOES_ON = "the nexus goes on by itself; 'pilot root status' says how far it is"
_DEPTHS = {1: "reshare"}
_STEPS = {1: "prepared", 2: "distributed", 3: "flipped"}
_OUTCOMES = {1: "settled", 2: "aborted"}

ReasonOption = Annotated[
    str,
    typer.Option("--reason", metavar="TEXT", help="Why, for the audit; at most 256 characters.", show_default=False),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what stands against it.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Return when it has ended, and fail if it was taken back.")]


def start(settings: Settings, request: "pb.StartOperationRequest", *, wait: bool) -> None:
    """Begin the operation of *request*, whose id is filled in here, or look what stands against it; show how it goes.

    Raises:
        PilotError: A check refuses, or it was taken back meanwhile.
    """
    from pilot.connection import Connection

    request.operation_id = os.urandom(16)
    lets_in = bool(request.add or request.threshold)  # which may need a superuser
    with Connection(settings, preferred=WORKERS[::-1] if lets_in else WORKERS) as connection:
        response = connection.call(connection.root.StartOperation, request)
        if request.dry_run:
            _show_checks(settings, list(response.checks))
            return
        if response.operation.operation_id != request.operation_id:
            raise PilotError("the nexus answers with another operation than it was asked for")
        if not wait:
            _show_begun(settings, response.operation)
        else:
            _show_end(settings, *_await_end(settings, connection, response.operation))


def fetch(connection: "Connection") -> "pb.GetOperationResponse":
    """Ask how the root key stands."""
    from shardhold.v1 import root_pb2 as pb

    response: pb.GetOperationResponse = connection.call(connection.root.GetOperation, pb.GetOperationRequest())
    return response


def require_running(connection: "Connection") -> "pb.RootOperation":
    """Return the operation in progress.

    Raises:
        PilotError: There is none.
    """
    answer = fetch(connection)
    if not answer.HasField("operation"):
        raise PilotError("no operation is in progress")
    return answer.operation


def to_document(operation: "pb.RootOperation") -> dict[str, Any]:
    """Return an operation in progress as its JSON document."""
    return {
        "id": operation.operation_id.hex(),
        "depth": _DEPTHS.get(operation.depth, _UNKNOWN),
        "step": _STEPS.get(operation.step, _UNKNOWN),
        "reason": operation.reason,
        "actor": operation.actor,
        "started_at": _to_text(operation.started_at),
        "stepped_at": _to_text(operation.stepped_at),
        "set_from": operation.set_from,
        "set_to": operation.set_to,
        "threshold": operation.threshold,
        "keepers": operation.keepers,
        "holders": list(operation.holders),
        "quorum": operation.quorum,
        "waits_for": operation.waits_for or None,
    }


def ended_document(ended: "pb.EndedOperation") -> dict[str, Any]:
    """Return an operation that has ended as its JSON document."""
    return {
        "id": ended.operation_id.hex(),
        "depth": _DEPTHS.get(ended.depth, _UNKNOWN),
        "outcome": _OUTCOMES.get(ended.outcome, _UNKNOWN),
        "detail": ended.detail or None,
        "ended_at": _to_text(ended.ended_at),
        "set_from": ended.set_from,
        "set_to": ended.set_to,
    }


def show_time_of(moment: "Timestamp") -> str:
    """Return a moment for people; empty: it is not set."""
    return show_timestamp(moment) if moment.seconds else ""


def _to_text(moment: "Timestamp") -> str | None:
    return show_time_of(moment) or None


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
        print_json(to_document(operation))
        return
    print(f"set {operation.set_from} → {operation.set_to}  {_STEPS.get(operation.step, _UNKNOWN)} ✓")
    print(f"pilot: hint: {_GOES_ON}", file=sys.stderr)


def _await_end(
    settings: Settings, connection: "Connection", begun: "pb.RootOperation"
) -> tuple["pb.EndedOperation", float]:
    """Wait until the operation has ended, through restarts of the nexus; return how, and after how many seconds.

    Raises:
        PilotError: Ctrl-C, or the nexus does not know the operation any more.
    """
    progress = _Progress(is_shown=settings.output is Output.TABLE)
    start_at = time.monotonic()
    try:
        ended = _follow(connection, begun, progress)
    except KeyboardInterrupt:
        progress.end_line()
        raise PilotError("interrupted", _GOES_ON, exit_code=INTERRUPTED) from None
    return ended, time.monotonic() - start_at


def _follow(connection: "Connection", begun: "pb.RootOperation", progress: "_Progress") -> "pb.EndedOperation":
    from shardhold._errors import DeadlineError, UnavailableError

    progress.show(begun)
    while True:
        time.sleep(_POLL_S)
        try:
            answer = fetch(connection)
        except (UnavailableError, DeadlineError) as exc:
            progress.wait_for(exc.message)
            continue
        if answer.HasField("operation") and answer.operation.operation_id == begun.operation_id:
            progress.show(answer.operation)
        elif answer.last.operation_id == begun.operation_id:
            progress.finish(answer.last)
            return answer.last
        else:
            progress.end_line()
            raise PilotError("the nexus does not know the operation any more", "'pilot audit tail' says what happened")


def _show_end(settings: Settings, ended: "pb.EndedOperation", seconds: float) -> None:
    document = ended_document(ended)
    if settings.output is Output.JSON:
        print_json(document)
    else:
        print(f"{document['outcome']} {'✓ ' if document['outcome'] == 'settled' else ''}({seconds:.1f} s)")
    if document["outcome"] != "settled":
        raise PilotError(f"the operation was taken back: {clean(ended.detail) or 'no reason is given'}")


class _Progress:
    """One line that grows with each step."""

    def __init__(self, *, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._is_line_open = False
        self._step = 0
        self._waiting_since: float | None = None  # None: it goes on
        self._told = ""

    def show(self, operation: "pb.RootOperation") -> None:
        if not self._step:
            self._print(f"set {operation.set_from} → {operation.set_to}  ")
        if operation.step > self._step and operation.step in _STEPS:
            self._show_steps(operation.step)
            self._waiting_since = None
        self.wait_for(f"waits for {operation.waits_for}" if operation.waits_for else "")

    def finish(self, ended: "pb.EndedOperation") -> None:
        if _OUTCOMES.get(ended.outcome) == "settled":
            self._show_steps(max(_STEPS))

    def wait_for(self, why: str) -> None:
        """Say what the wait is for, once, when it lasts; empty: there is no wait any more."""
        if not why:
            self._waiting_since = None
            return
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        if now - self._waiting_since >= _HINT_S and why != self._told:
            self._told = why
            self.end_line()
            print(f"pilot: hint: {datetime.now(UTC):%H:%M:%SZ} {clean(why)}", file=sys.stderr)

    def end_line(self) -> None:
        """Begin a new line, so that a hint or an error does not stand in this one."""
        if self._is_line_open:
            print(flush=True)
            self._is_line_open = False

    def _show_steps(self, last: int) -> None:
        for step in range(self._step + 1, last + 1):
            self._print(f"{_STEPS[step]} ✓  ")
        self._step = max(self._step, last)

    def _print(self, text: str) -> None:
        if self._is_shown:
            print(text, end="", flush=True)
            self._is_line_open = True
