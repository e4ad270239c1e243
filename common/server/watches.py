"""Watches of gRPC health: streams that hear whenever the server begins or ceases to serve.

grpcio sends on the thread that asks it to, and returns once the peer has taken the message. A peer that takes nothing
would so hold whoever tells it. Rules:

1. A status is sent by a thread that exists for this one send: neither a worker nor whoever changes the status waits.
2. A watch that is behind gets the newest status only.
3. A watch whose peer has not taken a status within `drain_s` is ended.
4. A caller may have `per_caller` watches and all callers together `most`; further ones are refused.
5. A watch for which no thread can be started is ended; the others are told.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from common.errors import OverloadedError

_SWEEP_S = 0.5  # seconds between two sweeps
_NO_THREAD = "no thread can be started to tell the status"

Send = Callable[[health_pb2.HealthCheckResponse | None], None]  # None ends the stream
C = TypeVar("C")


class Watch(Generic[C]):
    """One stream."""

    __slots__ = ("call", "caller", "is_over", "send", "sending_since", "sent")

    def __init__(self, caller: str, call: C, send: Send) -> None:
        self.caller = caller
        self.call = call
        self.send = send
        self.sent: bool | None = None  # the status that the peer has, or is about to get
        self.sending_since: float | None = None  # monotonic seconds; None: nothing is being sent
        self.is_over = False


def _start_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="watch", daemon=True).start()


class Watches(Generic[C]):
    """All watches of one server. Thread-safe; no method waits for a peer.

    Args:
        end: Ends a call with this code and text from any thread. A send that waits then returns.
        per_caller: Most watches that one caller may have.
        most: Most watches that the server has.
        drain_s: Seconds that a peer may take to take a status.
        start_thread: Runs something in a thread; raises RuntimeError when the system gives none.
    """

    def __init__(
        self,
        end: Callable[[C, grpc.StatusCode, str], None],
        *,
        per_caller: int = 8,
        most: int = 256,
        drain_s: float = 5.0,
        start_thread: Callable[[Callable[[], None]], None] = _start_thread,
    ) -> None:
        self._end = end
        self._start_thread = start_thread
        self._per_caller = per_caller
        self._most = most
        self._drain_s = drain_s
        self._lock = threading.Lock()
        self._is_serving = False
        self._watches: set[Watch[C]] = set()
        self._callers: Counter[str] = Counter()
        self._stopped = threading.Event()

    @property
    def is_serving(self) -> bool:
        """The status that is told."""
        return self._is_serving

    def start(self) -> None:
        """End watches that do not drain, until `stop`, in a thread."""
        threading.Thread(target=self._run, name="watches", daemon=True).start()

    def stop(self) -> None:
        """End all watches, each after the status that is on its way; idempotent."""
        self._stopped.set()
        with self._lock:
            idle = [watch for watch in self._watches if watch.sending_since is None]
        for watch in idle:
            watch.send(None)

    def set_serving(self, serving: bool) -> None:
        """Tell every watch."""
        with self._lock:
            self._is_serving = serving
            untold = [watch for watch in self._watches if self._needs_to_hear(watch) and not self._begin_send(watch)]
        for watch in untold:
            self._give_up(watch)  # rule 5

    def open(self, caller: str, call: C, send: Send) -> Watch[C]:
        """Begin to tell a stream; whoever opens it calls `close` when it has ended.

        Raises:
            OverloadedError: The caller, or the server, has as many as it may.
        """
        watch = Watch(caller, call, send)
        with self._lock:
            if self._callers[caller] >= self._per_caller or len(self._watches) >= self._most:
                raise OverloadedError(f"more than {self._per_caller} watches of this caller, or {self._most} of all")
            if not self._begin_send(watch):
                raise OverloadedError(_NO_THREAD)
            self._watches.add(watch)
            self._callers[caller] += 1
        return watch

    def close(self, watch: Watch[C]) -> None:
        """Forget a stream that has ended; idempotent."""
        with self._lock:
            if not watch.is_over:
                watch.is_over = True
                self._watches.discard(watch)
                self._callers[watch.caller] -= 1
                if not self._callers[watch.caller]:
                    del self._callers[watch.caller]

    def sweep(self) -> None:
        """End the watches whose peers have taken nothing for too long."""
        now = time.monotonic()
        with self._lock:
            stuck = [
                watch
                for watch in self._watches
                if watch.sending_since is not None and now - watch.sending_since > self._drain_s
            ]
        for watch in stuck:
            self._end(watch.call, grpc.StatusCode.RESOURCE_EXHAUSTED, f"no status taken within {self._drain_s:g} s")

    def _needs_to_hear(self, watch: Watch[C]) -> bool:
        """Return whether nothing is being sent and the peer has another status. The lock is held."""
        return watch.sending_since is None and watch.sent is not self._is_serving

    def _begin_send(self, watch: Watch[C]) -> bool:
        """Let a thread send the status; return whether there is one. The lock is held."""
        watch.sent = self._is_serving
        watch.sending_since = time.monotonic()
        try:
            self._start_thread(lambda: self._send(watch))
        except RuntimeError:  # the system gives no further thread
            watch.sending_since = None
            return False
        return True

    def _send(self, watch: Watch[C]) -> None:
        status = health_pb2.HealthCheckResponse
        watch.send(status(status=status.SERVING if watch.sent else status.NOT_SERVING))
        with self._lock:
            watch.sending_since = None
            is_behind = not watch.is_over and self._needs_to_hear(watch)
            goes_on = is_behind and self._begin_send(watch)  # rule 2
        if is_behind and not goes_on:
            self._give_up(watch)
        elif not goes_on and self._stopped.is_set():
            watch.send(None)

    def _give_up(self, watch: Watch[C]) -> None:
        self._end(watch.call, grpc.StatusCode.RESOURCE_EXHAUSTED, _NO_THREAD)

    def _run(self) -> None:
        while not self._stopped.wait(_SWEEP_S):
            self.sweep()
