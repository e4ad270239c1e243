"""A time limit: work that ends in time gives its outcome, and work that hangs an unknown one."""

import threading

import pytest

from common.clock import SystemClock
from common.errors import ConflictError, OutcomeUnknownError, UnavailableError
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


def test_without_a_thread_it_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits gets an error of ours, which a seal takes for one that is not committed."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(UnavailableError, match="work has not begun"):
        finish_within(SystemClock(), 30, lambda: None, name="work")
