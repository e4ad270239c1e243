"""A time limit: work that ends in time gives its outcome, and work that hangs an unknown one."""

import threading

import pytest

from common.clock import SystemClock
from common.errors import ConflictError, OutcomeUnknownError
from common.time_limit import finish_within
from tests.kit.manual_clock import ManualClock
from tests.kit.patience import at_most, patiently


def test_what_ends_in_time_returns_or_raises_what_it_did() -> None:
    """Work that ends in time returns or raises its own outcome, from a thread with the given name."""
    clock = SystemClock()
    assert finish_within(clock, 30, lambda: threading.current_thread().name, name="work") == "work"

    def fail() -> None:
        raise ConflictError("as it is")

    with pytest.raises(ConflictError, match="as it is"):
        finish_within(clock, 30, fail, name="work")


def test_of_what_hangs_the_outcome_is_unknown() -> None:
    """When work hangs the caller goes on with an unknown outcome, and so does the work."""
    clock, go, over = ManualClock(), threading.Event(), threading.Event()

    def hang() -> None:
        go.wait(at_most(30))
        over.set()

    def turn() -> None:
        clock.wait_for_waiters(timeout=30)
        clock.advance(5)

    turning = threading.Thread(target=turn)
    turning.start()
    with pytest.raises(OutcomeUnknownError, match="work has not finished after 5 s"):
        finish_within(clock, 5, hang, name="work")
    assert not over.is_set()
    go.set()
    assert patiently(over.wait, 30)
    turning.join()
