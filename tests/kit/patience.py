"""How long tests wait: longer while the machine has more to do than it has processors.

A wait asks when its time is over: on an idle machine what hangs fails soon, and a busy one has until then up to six
times as long. Only time that has to be named before the wait begins, the deadline of a call or of a child process, is
the longest from the start.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

LONGEST: Final = 6.0  # times the seconds that an idle machine gets
INTERVAL_S: Final = 0.01

T = TypeVar("T")


def patience(seconds: float) -> float:
    """Return how long to wait, at the load that the machine has now, for what may take *seconds* on an idle one."""
    return seconds * min(max(os.getloadavg()[0] / len(os.sched_getaffinity(0)), 1.0), LONGEST)


def at_most(seconds: float) -> float:
    """Return the longest that `patience` can give, for a deadline that has to be named before the wait begins."""
    return seconds * LONGEST


class Deadline:
    """The end of a wait of *seconds*, counted from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()

    def is_over(self) -> bool:
        """Return whether the time is over, which asks how busy the machine is only once *seconds* are."""
        taken = time.monotonic() - self._began
        return taken > self.seconds and taken > patience(self.seconds)


def wait_until(condition: Callable[[], T], *, seconds: float, pause: float = INTERVAL_S) -> T:
    """Look until *condition* is true, and return its first true value, or the last one when the time is over."""
    deadline, never = Deadline(seconds), threading.Event()
    while not (value := condition()) and not deadline.is_over():
        never.wait(pause)
    return value


def patiently(wait: Callable[[float], bool], seconds: float) -> bool:
    """Return whether *wait*, given how many seconds it may take, was successful: `patiently(event.wait, 10)`."""
    return wait(seconds) or wait(patience(seconds) - seconds)


def join(thread: threading.Thread, seconds: float) -> None:
    """Wait for the end of *thread*, and fail when it goes on."""

    def has_ended(timeout: float) -> bool:
        thread.join(timeout)
        return not thread.is_alive()

    assert patiently(has_ended, seconds), f"{thread.name} goes on after {seconds:g} s"
