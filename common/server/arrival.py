"""Calls that hold a worker while their one message is on its way.

gRPC hands a call to a worker once its headers have arrived. A caller that never sends the message would hold that
worker for as long as the connection lives, and a few such calls would hold all workers. Rules:

1. A call without its message ends after `wait_s`.
2. A call is slow once five sweeps have found it without its message. While calls wait for a worker, one caller may have
   at most `per_caller` slow calls: a sweep ends the younger ones beyond that, and while the caller is at this limit its
   further calls are refused at once. Calls that are not slow are not counted: under load an honest caller may have
   every worker wait a moment for bytes that have already arrived.
3. While workers are free, slow calls harm nobody and are left alone: on a busy machine the messages of honest calls are
   late too.
4. Age is counted in sweeps, not by a clock: a process that was paused finds no honest call too old when it resumes.

One thread sweeps for all calls; a call costs two short dictionary operations.
"""

import threading
from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

import grpc

from common.errors import OverloadedError

_SWEEP_S = 0.1  # seconds between two sweeps
_SLOW_SWEEPS = 5

C = TypeVar("C")


class Arrival(Generic[C]):
    """One call without its message. `code` is OK until a sweep ends it."""

    __slots__ = ("born", "call", "code", "details")

    def __init__(self, call: C, born: int) -> None:
        self.call = call
        self.born = born  # number of the sweep before it
        self.code = grpc.StatusCode.OK
        self.details = ""


class Arrivals(Generic[C]):
    """Every call that waits for its message. Thread-safe.

    Args:
        end: Ends a call with this code and text from any thread. It wakes the worker, which calls `leave`.
        is_short: Returns whether calls wait for a worker.
        per_caller: Most slow calls that one caller may have.
        wait_s: Seconds that a call may take to send its message, to a tenth.
    """

    def __init__(
        self,
        end: Callable[[C, grpc.StatusCode, str], None],
        *,
        is_short: Callable[[], bool],
        per_caller: int,
        wait_s: float = 2.0,
    ) -> None:
        self._end = end
        self._is_short = is_short
        self._per_caller = per_caller
        self._wait_s = wait_s
        self._max_sweeps = max(_SLOW_SWEEPS, round(wait_s / _SWEEP_S))
        self._lock = threading.Lock()
        self._callers: dict[str, dict[Arrival[C], None]] = {}  # of each caller, the oldest first
        self._sweeps = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Sweep until `stop`, in a thread."""
        threading.Thread(target=self._run, name="arrivals", daemon=True).start()

    def stop(self) -> None:
        """End the thread; idempotent."""
        self._stopped.set()

    def enter(self, caller: str, call: C) -> Arrival[C]:
        """Note that a call of *caller* begins to wait for its message.

        Raises:
            OverloadedError: The caller is at its limit of slow calls while calls wait for a worker.
        """
        with self._lock:
            arrival = Arrival(call, self._sweeps)
            arrivals = self._callers.get(caller)
            if arrivals is None:
                self._callers[caller] = {arrival: None}
            elif len(arrivals) >= self._per_caller and self._is_full(arrivals) and self._is_short():
                raise OverloadedError(self._too_many())
            else:
                arrivals[arrival] = None
            return arrival

    def leave(self, caller: str, arrival: Arrival[C]) -> None:
        """Note that the message has arrived, or never will."""
        with self._lock:
            arrivals = self._callers[caller]
            del arrivals[arrival]
            if not arrivals:
                del self._callers[caller]

    def sweep(self) -> None:
        """End the calls that are too old, and each caller's slow calls beyond its limit."""
        ended: list[Arrival[C]] = []
        is_short = self._is_short()
        with self._lock:
            self._sweeps += 1
            for arrivals in self._callers.values():
                slow = 0
                for arrival in arrivals:
                    age = self._sweeps - arrival.born
                    if age < _SLOW_SWEEPS:
                        break
                    if arrival.code is not grpc.StatusCode.OK:
                        continue
                    if age >= self._max_sweeps:
                        arrival.code = grpc.StatusCode.DEADLINE_EXCEEDED
                        arrival.details = f"no message within {self._wait_s:g} s of the call's start"
                    elif is_short and slow >= self._per_caller:
                        arrival.code, arrival.details = grpc.StatusCode.RESOURCE_EXHAUSTED, self._too_many()
                    else:
                        slow += 1
                        continue
                    ended.append(arrival)
        for arrival in ended:
            self._end(arrival.call, arrival.code, arrival.details)

    def _is_full(self, arrivals: dict[Arrival[C], None]) -> bool:
        last = next(islice(arrivals, self._per_caller - 1, None))
        return self._sweeps - last.born >= _SLOW_SWEEPS

    def _too_many(self) -> str:
        return f"more than {self._per_caller} calls of this caller have sent headers but no message"

    def _run(self) -> None:
        while not self._stopped.wait(_SWEEP_S):
            self.sweep()
