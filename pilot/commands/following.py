"""Following an operation on the root key, and the keyring job after it, through restarts of the nexus."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pilot.commands.documents import OUTCOMES, STEPS, job_document
from pilot.errors import INTERRUPTED, PilotError
from pilot.terminal.output import group_hex
from pilot.terminal.progress import ProgressLine, render_bar, show_duration
from pilot.terminal.report import print_hint

if TYPE_CHECKING:
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

GOES_ON = "the nexus goes on by itself; 'pilot root status' says how far it is"
_POLL_S = 0.2
_LONGEST_POLL_S = 2.0  # while rows are re-wrapped, which may take hours; each look is an entry in the audit
_HINT_S = 2.0  # what it waits for is told when the wait lasts longer
_CURRENT = 1  # state of a KEK


def fetch(connection: "Connection") -> "pb.GetOperationResponse":
    """Ask how the root key stands."""
    from shardhold.v1 import root_pb2 as pb

    response: pb.GetOperationResponse = connection.call(connection.root.GetOperation, pb.GetOperationRequest())
    return response


def name_change(operation: "pb.RootOperation | pb.EndedOperation") -> str:
    """Say what becomes what: the generation of the root key, or else the shard set alone."""
    if operation.generation_from != operation.generation_to:
        return f"generation {operation.generation_from} → {operation.generation_to}"
    return f"set {operation.set_from} → {operation.set_to}"


def show_fingerprint(operation: "pb.RootOperation") -> None:
    """Show the key check value of a new root key, before it is current."""
    if operation.kcv:
        print(f"kcv of generation {operation.generation_to}  {group_hex(operation.kcv)}", flush=True)


def follow(connection: "Connection", begun: "pb.RootOperation", *, is_shown: bool) -> tuple["pb.EndedOperation", float]:
    """Wait until the operation has ended; return how, and after how many seconds.

    Raises:
        PilotError: Ctrl-C, or the nexus does not know the operation any more.
    """
    steps = _Steps(is_shown=is_shown)
    start_at = time.monotonic()
    with _interruptible(steps.end_line):
        return _follow(connection, begun, steps), time.monotonic() - start_at


def follow_rows(connection: "Connection", *, is_shown: bool) -> "pb.KeyringJob | None":
    """Wait until no row that opens is under an older KEK; return what is left of the keyring job.

    The keyring says so, and not the job: right after a flip the job may not have looked yet.

    Raises:
        PilotError: Ctrl-C.
    """
    line = ProgressLine(is_shown=is_shown)
    start_at = time.monotonic()
    with _interruptible(line.end_line):
        rows, answer = _follow_rows(connection, line)
    left = answer.job.quarantine  # which is no success
    told = "re-wrapped" if left else "re-wrapped ✓"
    told += f" {rows:,} row{'s' if rows > 1 else ''}" if rows else ""
    told += f" ({show_duration(time.monotonic() - start_at)})"
    line.finish(f"{told}  quarantine {left:,}" if left else told)
    return answer.job if answer.HasField("job") else None


def describe_job(job: dict[str, Any]) -> str:
    """Say how far the keyring job is, in one line."""
    total, left = job["rows_total"], min(job["rows_left"], job["rows_total"])
    share = (total - left) / total if total else 1.0
    parts = [f"{render_bar(share)}  {int(share * 100)} %", f"{total - left:,} of {total:,}"]
    if job["rows_per_second"]:
        parts.append(f"{job['rows_per_second']:,.0f} /s")
    if job["seconds_left"] is not None and left:
        parts.append(f"{show_duration(job['seconds_left'])} left")
    if job["quarantine"]:
        parts.append(f"quarantine {job['quarantine']}")
    return "  ".join(parts)


def describe_wait(job: dict[str, Any]) -> str:
    """Say what the keyring job waits for; empty: it goes on."""
    if job["paused"]:
        return f"it is paused: {job['paused']}"
    return f"waits for: {job['waits_for']}" if job["waits_for"] else ""


def _follow(connection: "Connection", begun: "pb.RootOperation", steps: "_Steps") -> "pb.EndedOperation":
    from shardhold._errors import DeadlineError, UnavailableError

    steps.show(begun)
    while True:
        time.sleep(_POLL_S)
        try:
            answer = fetch(connection)
        except (UnavailableError, DeadlineError) as exc:
            steps.hints.wait_for(exc.message)
            continue
        if answer.HasField("operation") and answer.operation.operation_id == begun.operation_id:
            steps.show(answer.operation)
        elif answer.last.operation_id == begun.operation_id:
            steps.finish(answer.last)
            return answer.last
        else:
            steps.end_line()
            raise PilotError("the nexus does not know the operation any more", "'pilot audit tail' says what happened")


def _follow_rows(connection: "Connection", line: ProgressLine) -> tuple[int, "pb.GetOperationResponse"]:
    """Return how many rows there were as well, 0: not known."""
    from shardhold._errors import DeadlineError, UnavailableError

    hints, rows, pause_s = _Hints(line.end_line), 0, _POLL_S
    while True:
        try:
            answer = fetch(connection)
        except (UnavailableError, DeadlineError) as exc:
            hints.wait_for(exc.message)
        else:
            job = job_document(answer.job)
            rows = max(rows, job["rows_total"])
            if _is_rewrapped(answer):
                return rows, answer
            if answer.HasField("job"):
                line.show(f"re-wrapping  {describe_job(job)}")
            hints.wait_for(describe_wait(job))
        time.sleep(pause_s)
        pause_s = min(1.2 * pause_s, _LONGEST_POLL_S)


def _is_rewrapped(answer: "pb.GetOperationResponse") -> bool:
    return all(kek.state == _CURRENT or kek.HasField("verified_at") for kek in answer.keks)


class _Hints:
    """Says on stderr what a wait is for, once, when it lasts."""

    def __init__(self, end_line: Callable[[], None]) -> None:
        self._end_line = end_line
        self._waiting_since: float | None = None  # None: it goes on
        self._told = ""

    def wait_for(self, why: str) -> None:
        """Take what the wait is for; empty: there is no wait any more."""
        if not why:
            self._waiting_since = None
            return
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        if now - self._waiting_since >= _HINT_S and why != self._told:
            self._told = why
            self._end_line()
            print_hint(f"{datetime.now(UTC):%H:%M:%SZ} {why}")


class _Steps:
    """One line that grows with each step."""

    def __init__(self, *, is_shown: bool) -> None:
        self.hints = _Hints(self.end_line)
        self._is_shown = is_shown
        self._is_line_open = False
        self._step = 0

    def show(self, operation: "pb.RootOperation") -> None:
        if not self._step:
            self._print(f"{name_change(operation)}  ")
        if operation.step > self._step and operation.step in STEPS:
            self._show_steps(operation.step)
            self.hints.wait_for("")
        self.hints.wait_for(f"waits for {operation.waits_for}" if operation.waits_for else "")

    def finish(self, ended: "pb.EndedOperation") -> None:
        if OUTCOMES.get(ended.outcome) == "settled":
            self._show_steps(max(STEPS))

    def end_line(self) -> None:
        """Begin a new line, so that a hint or an error does not stand in this one."""
        if self._is_line_open:
            print(flush=True)
            self._is_line_open = False

    def _show_steps(self, last: int) -> None:
        for step in range(self._step + 1, last + 1):
            self._print(f"{STEPS[step]} ✓  ")
        self._step = max(self._step, last)

    def _print(self, text: str) -> None:
        if self._is_shown:
            print(text, end="", flush=True)
            self._is_line_open = True


@contextmanager
def _interruptible(end_line: Callable[[], None]) -> Iterator[None]:
    """Turn Ctrl-C into an error that says that only the waiting has ended."""
    try:
        yield
    except KeyboardInterrupt:
        end_line()
        raise PilotError("interrupted", GOES_ON, exit_code=INTERRUPTED) from None
