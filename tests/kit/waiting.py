"""Waiting for what other threads and processes do."""

import threading
import time
from collections.abc import Callable
from typing import Literal, TypeVar

WAIT_S = 30.0  # seconds; far more than anything takes, so that a busy machine fails no test
PAUSE_S = 0.01  # between two looks

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | Literal[False] | None],
    *,
    what: str = "the condition",
    seconds: float = WAIT_S,
    pause: float = PAUSE_S,
) -> T:
    """Return the first true value of *condition*; fail when there is none within *seconds*."""
    deadline, never = time.monotonic() + seconds, threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        never.wait(pause)
    return value
