"""The threads that run calls: each caller in its turn, and none with more calls than it may have.

gRPC hands a call to a worker by `submit`. Rules:

1. One caller may have `per_caller` calls that wait or run; a further one is refused at once, without a worker. gRPC's
   own limit is for all callers together, so without this one a single caller could have everybody refused.
2. Workers take from the callers that wait in turn, from each its oldest call: a caller with few calls waits for one
   call of each other caller, not for all that they have sent.
3. Callers that cannot be named, for example because their certificate has expired, count as one caller.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Arguments: TypeAlias = Sequence[Any]


class Workers(ThreadPoolExecutor):
    """The executor of a gRPC server.

    Args:
        count: Threads.
        name_caller: Names the caller of a call by what `submit` got; empty: nobody that can be named.
        refuse: Ends a call by the same; its arguments run nowhere then.
        per_caller: Most calls that one caller may have.
    """

    def __init__(
        self,
        count: int,
        *,
        name_caller: Callable[[Arguments], str],
        refuse: Callable[[Arguments], None],
        per_caller: int,
    ) -> None:
        super().__init__(count, thread_name_prefix="call")
        self._count = count
        self._name_caller = name_caller
        self._refuse = refuse
        self._per_caller = per_caller
        self._lock = threading.Lock()
        self._busy = 0
        self._calls: Counter[str] = Counter()  # of each caller, those that wait or run
        self._waiting: dict[str, deque[tuple[Callable[..., object], Arguments]]] = {}
        self._turns: deque[str] = deque()  # the callers with calls that wait
        self._current = threading.local()

    @property
    def caller(self) -> str:
        """The caller of the call that the current thread runs; empty: it cannot be named."""
        return str(self._current.caller)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Have a worker run a call, not necessarily the next: whose turn it is decides. Refuse one too many."""
        caller = self._name_caller(args)
        with self._lock:
            is_refused = self._calls[caller] >= self._per_caller  # rule 1
            if not is_refused:
                self._calls[caller] += 1
                waiting = self._waiting.get(caller)
                if waiting is None:
                    waiting = self._waiting[caller] = deque()
                    self._turns.append(caller)
                waiting.append((fn, args))
        if not is_refused:
            return super().submit(self._run)
        self._refuse(args)
        refused: Future[Any] = Future()
        refused.set_result(None)
        return refused

    @property
    def running(self) -> int:
        """How many calls workers run now."""
        return self._busy

    @property
    def waiting(self) -> int:
        """How many calls wait for a worker now."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def is_short(self) -> bool:
        """Return whether a call waits while all workers are busy; a call about to be taken does not count."""
        return self._busy >= self._count and bool(self._turns)

    def _run(self) -> Any:
        with self._lock:
            caller = self._turns.popleft()  # rule 2
            waiting = self._waiting[caller]
            work, args = waiting.popleft()
            if waiting:
                self._turns.append(caller)
            else:
                del self._waiting[caller]
            self._busy += 1
        self._current.caller = caller
        try:
            return work(*args)
        finally:
            with self._lock:
                self._busy -= 1
                self._calls[caller] -= 1
                if not self._calls[caller]:
                    del self._calls[caller]
