"""Group commit: callers that wait for the writer at the same time share one sync.

Rules:
- A caller that finds no leader becomes the leader: it takes the waiting turns, at most `GROUP`, and runs them as one
  batch. A turn that is to be alone is a batch of its own.
- A caller that finds a leader waits until its turn is over, or until it is made the next leader.
- A leader runs one batch, wakes its callers, and hands on to the first that still waits.
- No outcome leaves before its batch is committed, not even a refusal: a turn may have seen what an earlier turn of the
  batch wrote. When a batch breaks off, nobody knows what came of any of its turns.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from common.errors import OutcomeUnknownError

T = TypeVar("T")
W = TypeVar("W")

GROUP: Final = 128  # turns in one batch; bounds how long one sync keeps others waiting


class Turn(Generic[W, T]):
    """One caller's turn at the writer *W*, and later its outcome."""

    __slots__ = ("_awake", "_error", "_is_settled", "_on_commit", "_result", "_work", "alone", "counts", "leads")

    def __init__(
        self,
        work: Callable[[W], T],
        *,
        counts: bool = True,
        alone: bool = False,
        on_commit: Callable[[T], None] | None = None,
    ) -> None:
        """*counts*: it is a change, and takes the next revision. *alone*: no other turn is in its batch."""
        self._work = work
        self._on_commit = on_commit
        self.alone = alone
        self._result: T
        self._error: BaseException | None = None
        self._is_settled = False
        self._awake = threading.Lock()
        self._awake.acquire()
        self.counts = counts
        self.leads = False

    def run(self, writer: W) -> bool:
        """Do the work, and keep what it returned or raised until the batch is committed; True when it returned."""
        try:
            self._result = self._work(writer)
        except BaseException as exc:  # noqa: BLE001 - raised again in the caller whose work it is
            self._error = exc
            return False
        return True

    def announce(self) -> None:
        """Tell whoever wants to know that the work is committed, unless it raised."""
        if self._on_commit is not None and self._error is None:
            self._on_commit(self._result)

    def fail(self, error: BaseException) -> None:
        """Make *error* the outcome, whatever the work itself returned or raised."""
        self._error = error

    def settle(self) -> None:
        """Say that the batch is over: the outcome is what the caller gets."""
        self._is_settled = True

    def finish(self) -> T:
        """Return or raise the outcome."""
        if not self._is_settled:
            raise OutcomeUnknownError("the batch of this change is not over")
        if self._error is not None:
            raise self._error
        return self._result

    def wake(self) -> None:
        self._awake.release()

    def wait(self) -> None:
        self._awake.acquire()


class GroupCommitter(Generic[W]):
    """Collects turns into batches. Thread-safe; one batch at a time."""

    def __init__(self, run: Callable[[list[Turn[W, object]]], None]) -> None:
        """*run* runs one batch and commits it, or makes it the outcome of each turn that this failed."""
        self._run = run
        self._mutex = threading.Lock()
        self._waiting: deque[Turn[W, object]] = deque()
        self._is_led = False

    def submit(self, turn: Turn[W, T]) -> T:
        """Wait for the turn to be over and return or raise its outcome."""
        with self._mutex:
            self._waiting.append(turn)  # type: ignore[arg-type]  # only ever run, never given a result from here
            leads = not self._is_led
            self._is_led = True
        if not leads:
            turn.wait()
            leads = turn.leads
        if leads:
            self._lead()
        return turn.finish()

    def _lead(self) -> None:
        with self._mutex:
            batch = self._take()
        try:
            self._run(batch)
        except BaseException as exc:  # noqa: BLE001 - every caller of the batch gets it, as an unknown outcome
            for turn in batch:
                error = OutcomeUnknownError("the batch of this change broke off")
                error.__cause__ = exc
                turn.fail(error)
        finally:
            for turn in batch:
                turn.settle()
            with self._mutex:
                follower = self._waiting[0] if self._waiting else None
                if follower is None:
                    self._is_led = False
                else:
                    follower.leads = True
            if follower is not None:
                follower.wake()
            for turn in batch:
                turn.wake()

    def _take(self) -> list[Turn[W, object]]:
        batch = [self._waiting.popleft()]
        while self._waiting and len(batch) < GROUP and not batch[0].alone and not self._waiting[0].alone:
            batch.append(self._waiting.popleft())
        return batch
