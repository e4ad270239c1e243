"""The clock that everything which waits or expires is given, so that tests can turn it by hand."""

import threading
import time
from datetime import UTC, datetime
from typing import Protocol


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
