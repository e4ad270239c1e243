"""The clock that everything which waits or expires is given, so that tests can turn it by hand."""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

# Real seconds between two looks of a ManualClock's waiter at its event, which anybody may set unknown to the clock.
_GLANCE_S = 0.002


class Clock(Protocol):
    """Wall time, monotonic time, and waiting. Thread-safe."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC. It may jump; nothing that expires in memory goes by it."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes backwards."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until *event* is set or *seconds* have passed; return whether it is set."""
        ...


def to_micros(moment: datetime) -> int:
    """Return microseconds since 1970, exactly: a float would round them."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since some fixed moment."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until *event* is set or *seconds* have passed; return whether it is set."""
        return event.wait(max(0.0, seconds))


class JumpWatch:
    """Notices when the wall time was set: nothing goes by it but certificates, and that is enough."""

    def __init__(self, clock: Clock, *, tolerance: float = 5.0) -> None:
        """*tolerance* is in seconds, between two looks."""
        self._clock = clock
        self._tolerance = tolerance
        self._offset = self._measure()

    def find_jump(self) -> float:
        """Return by how many seconds the wall time jumped since the last look, 0.0 when it did not."""
        offset = self._measure()
        jump, self._offset = offset - self._offset, offset
        return jump if abs(jump) > self._tolerance else 0.0

    def _measure(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()


class ManualClock:
    """A clock that stands still until it is turned; for tests."""

    def __init__(self, now: datetime = datetime(2025, 1, 1, tzinfo=UTC)) -> None:
        if now.tzinfo is None:
            raise ValueError("now has no time zone, want an aware datetime")
        self._start = now.astimezone(UTC)
        self._elapsed = 0.0
        self._waiting = 0
        self._changed = threading.Condition()

    def now(self) -> datetime:
        """Return the start and what the clock was turned since."""
        with self._changed:
            return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Return the seconds that the clock was turned."""
        with self._changed:
            return self._elapsed

    def advance(self, seconds: float) -> None:
        """Turn the clock forward and wake the waiters whose time has come."""
        if seconds < 0:
            raise ValueError(f"advance by {seconds} s, want 0 or more")
        with self._changed:
            self._elapsed += seconds
            self._changed.notify_all()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until *event* is set or the clock was turned by *seconds*; return whether it is set."""
        with self._changed:
            due = self._elapsed + seconds
            self._waiting += 1
            self._changed.notify_all()
            try:
                while not event.is_set() and self._elapsed < due:
                    self._changed.wait(_GLANCE_S)
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        return event.is_set()

    def wait_for_waiters(self, count: int = 1, *, timeout: float = 5.0) -> bool:
        """Return once at least *count* threads wait on this clock; False after *timeout* real seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting >= count, timeout)
