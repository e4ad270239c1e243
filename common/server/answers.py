"""Answers that their callers have not read yet.

A method has returned long before its answer is read: gRPC keeps the answer until its stream ends, twice, and a caller
that opens no window never ends it. Rules:

1. An answer counts from the return of its method to the end of its stream: its bytes, and `OVERHEAD` for the call
   itself. So no number of small answers gets around the limits.
2. One caller may have `per_caller` bytes. A new answer that does not fit first ends the caller's answers that are older
   than `grace` sweeps, the oldest first: whoever reads slowly keeps what it has nearly got. If it does not fit even
   then, it is refused if it is large; for a small one further answers are ended. An answer that tells of a change is
   small, so no change is made and then refused.
3. All callers together may have `most` bytes. Beyond that the caller that has most loses its oldest answers, whatever
   their age: a caller that has little is never refused because others read nothing.
4. An answer that has not been read after `drain_s`, and the time that its bytes take at `_SLOWEST`, is ended.
5. Age is counted in sweeps, not by a clock: a process that was paused finds no answer too old when it resumes.
6. Memory that ended answers held goes back to the system, where malloc can be told so.

What gRPC holds is twice the bytes counted here. One thread sweeps for all answers; an answer costs a few dictionary
operations.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc

from common.errors import OverloadedError

MIB = 1024 * 1024
OVERHEAD = 16 * 1024  # bytes; gRPC 1.85 was measured to hold 22 KiB for an unread answer of a few bytes
LARGE = 64 * 1024  # bytes; beyond what any change answers

_SWEEP_S = 0.5  # seconds between two sweeps
_GRACE_SWEEPS = 4
_SLOWEST = 128 * 1024  # bytes per second, one megabit
_TRIMMED_FROM = 8 * MIB  # bytes that were ended

C = TypeVar("C")


class Answer(Generic[C]):
    """One answer that is on its way."""

    __slots__ = ("_answers", "born", "call", "caller", "is_over", "size")

    def __init__(self, answers: "Answers[C]", caller: str, call: C, size: int, born: int) -> None:
        self._answers = answers
        self.caller = caller
        self.call = call
        self.size = size  # bytes, with OVERHEAD
        self.born = born  # number of the sweep before it
        self.is_over = False

    def close(self) -> None:
        """Note that its stream has ended; idempotent."""
        self._answers.close(self)


class _Holder(Generic[C]):
    """What one caller has not read."""

    __slots__ = ("answers", "size")

    def __init__(self) -> None:
        self.answers: dict[Answer[C], None] = {}  # the oldest first
        self.size = 0


class Answers(Generic[C]):
    """Every unread answer of one server. Thread-safe; no method waits for a peer.

    Args:
        end: Ends a call with this code and text from any thread.
        per_caller: Most bytes of unread answers that one caller may have; more than any one answer.
        most: Most bytes of all callers.
        drain_s: Seconds that a caller may take to begin reading.
    """

    def __init__(
        self,
        end: Callable[[C, grpc.StatusCode, str], None],
        *,
        per_caller: int = 32 * MIB,
        most: int = 64 * MIB,
        drain_s: float = 5.0,
    ) -> None:
        self._end = end
        self._per_caller = per_caller
        self._most = most
        self._drain_s = drain_s
        self._lock = threading.Lock()
        self._holders: dict[str, _Holder[C]] = {}
        self._size = 0  # of all
        self._sweeps = 0
        self._ended_size = 0  # since memory was last given back
        self._stopped = threading.Event()

    @property
    def size(self) -> int:
        """Bytes that are counted now."""
        return self._size

    def start(self) -> None:
        """Sweep until `stop`, in a thread."""
        threading.Thread(target=self._run, name="answers", daemon=True).start()

    def stop(self) -> None:
        """End the thread; idempotent."""
        self._stopped.set()

    def open(self, caller: str, call: C, size: int) -> Answer[C]:
        """Count an answer of *size* bytes, which its worker then hands to gRPC; `Answer.close` ends that.

        Raises:
            OverloadedError: It is large and does not fit (rule 2).
        """
        ended: list[Answer[C]] = []
        counted = size + OVERHEAD
        with self._lock:
            holder = self._holders.get(caller)
            fits = holder is None or self._make_room(holder, counted, is_large=size >= LARGE, ended=ended)
            if fits:
                holder = self._holders.get(caller)  # it may have lost all
                if holder is None:
                    holder = self._holders[caller] = _Holder()
                answer = Answer(self, caller, call, counted, self._sweeps)
                holder.answers[answer] = None
                holder.size += counted
                self._size += counted
                while self._size > self._most:
                    largest = max(self._holders.values(), key=lambda other: other.size)
                    self._drop(next(iter(largest.answers)), ended)  # rule 3
        for other in ended:
            self._end(other.call, grpc.StatusCode.UNAVAILABLE, "the answer was not read while newer ones needed room")
        if not fits:
            raise OverloadedError(f"this caller has {self._per_caller // MIB} MiB of answers that it does not read")
        return answer

    def close(self, answer: Answer[C]) -> None:
        """Forget an answer whose stream has ended; idempotent."""
        with self._lock:
            if not answer.is_over:
                self._forget(answer)

    def sweep(self) -> None:
        """End the answers that are too old, and give memory back."""
        ended: list[Answer[C]] = []
        with self._lock:
            self._sweeps += 1
            is_trimming = self._ended_size >= _TRIMMED_FROM  # what was ended before the last sweep is free by now
            if is_trimming:
                self._ended_size = 0
            for holder in list(self._holders.values()):
                for answer in list(holder.answers):
                    age_s = (self._sweeps - answer.born) * _SWEEP_S
                    if age_s <= self._drain_s:
                        break
                    if age_s > self._drain_s + answer.size / _SLOWEST:
                        self._drop(answer, ended)
        for answer in ended:
            self._end(answer.call, grpc.StatusCode.DEADLINE_EXCEEDED, "the answer was not read in time")
        if is_trimming:
            _give_memory_back()

    def _make_room(self, holder: _Holder[C], size: int, *, is_large: bool, ended: list[Answer[C]]) -> bool:
        """Drop what rule 2 lets go, and return whether *size* bytes fit then. The lock is held."""
        while holder.size + size > self._per_caller:
            oldest = next(iter(holder.answers))
            if is_large and self._sweeps - oldest.born <= _GRACE_SWEEPS:
                return False
            self._drop(oldest, ended)
        return True

    def _drop(self, answer: Answer[C], ended: list[Answer[C]]) -> None:
        self._forget(answer)
        self._ended_size += answer.size
        ended.append(answer)

    def _forget(self, answer: Answer[C]) -> None:
        answer.is_over = True
        self._size -= answer.size
        holder = self._holders[answer.caller]
        holder.size -= answer.size
        del holder.answers[answer]
        if not holder.answers:
            del self._holders[answer.caller]

    def _run(self) -> None:
        while not self._stopped.wait(_SWEEP_S):
            self.sweep()


def _give_memory_back() -> None:
    """Let malloc return what is free to the system; only glibc has the call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
