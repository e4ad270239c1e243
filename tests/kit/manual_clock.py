"""A clock that a test turns by hand."""

import threading
from datetime import UTC, datetime, timedelta

# Real seconds between two looks of a waiter at its event, which anybody may set unknown to the clock.
_GLANCE_S = 0.002


class ManualClock:
    """A clock that stands still until it is turned."""

    def __init__(self, now: datetime = datetime(2025, 1, 1, tzinfo=UTC)) -> None:
        if now.tzinfo is None:
            raise ValueError("now has no time zone, want an aware datetime")
        self.offset = timedelta()  # of the wall time alone, which NTP or somebody may set at any time
        self._start = now.astimezone(UTC)
        self._elapsed = 0.0
        self._waiting = 0
        self._changed = threading.Condition()

    def now(self) -> datetime:
        """Return the start and what the clock was turned since, with the offset."""
        with self._changed:
            return self._start + timedelta(seconds=self._elapsed) + self.offset

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
