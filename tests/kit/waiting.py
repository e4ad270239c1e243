"""Waiting for what other threads and processes do."""

from collections.abc import Callable
from typing import Literal, TypeVar

from tests.kit import patience

WAIT_S = 30.0  # seconds; far more than anything takes, so that a busy machine fails no test

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | Literal[False] | None],
    *,
    what: str = "the condition",
    seconds: float = WAIT_S,
    pause: float = patience.INTERVAL_S,
) -> T:
    """Return the first true value of *condition*; fail when there is none within *seconds* of an idle machine."""
    value = patience.wait_until(condition, seconds=seconds, pause=pause)
    assert value, f"{what}: not within {seconds:g} s"
    return value
