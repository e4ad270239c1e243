"""A time limit for work that may hang when a disk does."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from common.clock import Clock
from common.errors import OutcomeUnknownError, UnavailableError

T = TypeVar("T")


def finish_within(clock: Clock, seconds: float, work: Callable[[], T], *, name: str) -> T:
    """Do *work* on a thread of its own, called *name*, and return or raise its outcome.

    Raises:
        OutcomeUnknownError: *work* has not finished after *seconds*. It goes on, and may still succeed.
        UnavailableError: There is no thread for it: it has not begun.
    """
    attempt = _Attempt(work)
    try:
        threading.Thread(target=attempt.run, name=name, daemon=True).start()
    except RuntimeError as exc:
        raise UnavailableError(f"{name} has not begun: no thread can be started") from exc
    if not clock.wait(attempt.is_over, seconds):
        raise OutcomeUnknownError(f"{name} has not finished after {seconds:g} s")
    return attempt.finish()


class _Attempt(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._result: T
        self._error: BaseException | None = None
        self.is_over = threading.Event()

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as exc:  # noqa: BLE001 - raised again in the thread that waits
            self._error = exc
        finally:
            self.is_over.set()

    def finish(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result
