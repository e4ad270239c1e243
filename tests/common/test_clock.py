"""Clocks: the machine's, and the one that tests turn."""

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest

from common.clock import Clock, JumpWatch, SystemClock, to_micros
from tests.kit.manual_clock import ManualClock


def test_system_clock_is_aware_and_monotonic() -> None:
    """Wall time is in UTC, monotonic time does not go back, and a set event ends the wait at once."""
    clock: Clock = SystemClock()
    assert clock.now().utcoffset() == timedelta(0)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    assert clock.monotonic() <= clock.monotonic()
    event = threading.Event()
    assert not clock.wait(event, 0.001)
    assert not clock.wait(event, -1)
    event.set()
    assert clock.wait(event, 3600)


def test_manual_clock_stands_still_until_turned() -> None:
    """Both times move by as much as the clock is turned, and only then."""
    clock = ManualClock(datetime(2030, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))))
    assert clock.now() == datetime(2030, 1, 1, tzinfo=UTC)
    assert (clock.monotonic(), clock.monotonic()) == (0.0, 0.0)
    clock.advance(90.5)
    assert clock.now() == datetime(2030, 1, 1, 0, 1, 30, 500_000, tzinfo=UTC)
    assert clock.monotonic() == 90.5


def test_manual_clock_refuses_to_go_back() -> None:
    """A manual clock neither goes back nor starts without a time zone."""
    with pytest.raises(ValueError, match="want 0 or more"):
        ManualClock().advance(-1)
    with pytest.raises(ValueError, match="aware"):
        ManualClock(datetime(2030, 1, 1))  # noqa: DTZ001


def test_waiter_returns_when_its_time_has_come() -> None:
    """A waiter sleeps through a turn that is too short and returns after one that is long enough."""
    clock, event, results = ManualClock(), threading.Event(), list[bool]()
    waiter = threading.Thread(target=lambda: results.append(clock.wait(event, 10)))
    waiter.start()
    assert clock.wait_for_waiters()
    clock.advance(9)
    assert clock.wait_for_waiters()
    assert not results
    clock.advance(1)
    waiter.join(5)
    assert results == [False]
    assert not clock.wait_for_waiters(timeout=0.01)


def test_waiter_returns_when_its_event_is_set() -> None:
    """Setting the event ends the wait even if the clock stands still."""
    clock, event, results = ManualClock(), threading.Event(), list[bool]()
    waiter = threading.Thread(target=lambda: results.append(clock.wait(event, 10)))
    waiter.start()
    assert clock.wait_for_waiters()
    event.set()
    waiter.join(5)
    assert results == [True]
    assert clock.wait(event, 10)
    assert not clock.wait(threading.Event(), 0)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 5.5, -5.5])
def test_a_jump_of_the_wall_time_is_found_once(seconds: float) -> None:
    """A jump in either direction is found once; time that passes, however long, is not a jump."""
    clock = ManualClock()
    watch = JumpWatch(clock)
    clock.advance(86_400)
    assert watch.find_jump() == 0.0
    clock.offset += timedelta(seconds=seconds)
    clock.advance(1)
    assert watch.find_jump() == pytest.approx(seconds)
    clock.advance(1)
    assert watch.find_jump() == 0.0


def test_a_clock_that_is_slewed_does_not_jump() -> None:
    """Corrections within the tolerance are not jumps, and they do not add up to one."""
    clock = ManualClock()
    watch = JumpWatch(clock, tolerance=1.0)
    for step in (0.9, -0.9, 0.9, 0.9, 0.9):
        clock.offset += timedelta(seconds=step)
        clock.advance(1)
        assert watch.find_jump() == 0.0


def test_a_manual_clock_does_not_jump() -> None:
    """Turning a manual clock moves both its times together, so it never jumps."""
    clock = ManualClock()
    watch = JumpWatch(clock)
    clock.advance(10_000)
    assert watch.find_jump() == 0.0


@pytest.mark.parametrize(
    ("moment", "micros"),
    [
        pytest.param(datetime(1970, 1, 1, tzinfo=UTC), 0, id="the epoch"),
        pytest.param(datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0, id="in another zone"),
        pytest.param(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1, id="before the epoch"),
        pytest.param(
            datetime(2024, 3, 1, 7, 8, 9, 999_999, tzinfo=UTC), 1_709_276_889_999_999, id="a full second less one"
        ),
        pytest.param(
            datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 253_402_300_799_999_999, id="the last moment"
        ),
    ],
)
def test_microseconds_are_exact(moment: datetime, micros: int) -> None:
    """A float has too few bits for the last moments, and truncates others one microsecond low."""
    assert to_micros(moment) == micros
