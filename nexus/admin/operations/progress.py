"""How far the keyring job is, as people see it."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from common.clock import Clock

_WINDOW_S: Final = 30.0  # that the speed is taken over
_POINTS: Final = 256  # at most, within it


@dataclass(frozen=True, slots=True)
class JobView:
    """The keyring job, while a row is under an older KEK, an older KEK is left, or somebody has to decide."""

    rows_total: int  # that were to be brought to the current KEK when this pass began
    rows_left: int  # of these
    rows_per_second: float  # of late, rests included; 0: not known yet
    seconds_left: float | None  # at that speed; None: not known
    quarantine: int  # versions that did not open and that nobody has given up
    waits_for: str  # "operation", "quarantine" or "backup"; empty: it goes on
    paused: str  # why it rests; empty: it does not


class Progress:
    """Counts the rows of one pass. Used by one thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._points: deque[tuple[float, int]] = deque(maxlen=_POINTS)  # moment, and rows done by then
        self._kek_id = 0  # that rows are brought to; 0: no pass is under way
        self._total = self._done = 0

    def has_begun(self, kek_id: int) -> bool:
        """Whether a pass to this KEK is under way."""
        return self._kek_id == kek_id

    def begin(self, kek_id: int, total: int) -> None:
        """Begin a pass over *total* rows to a KEK."""
        self._kek_id, self._total, self._done = kek_id, total, 0
        self._points.clear()
        self._points.append((self._clock.monotonic(), 0))

    def add(self, rows: int) -> None:
        """Count *rows* as done."""
        self._done += rows
        now = self._clock.monotonic()
        self._points.append((now, self._done))
        while len(self._points) > 2 and self._points[1][0] < now - _WINDOW_S:
            self._points.popleft()

    def end(self) -> None:
        """Forget the pass."""
        self._kek_id = self._total = self._done = 0
        self._points.clear()

    def view(self, *, has_rows: bool, quarantine: int, waits_for: str, paused: str) -> JobView:
        """Describe the job; *has_rows*: rows are left to bring."""
        total = max(self._total, self._done)
        left = max(total - self._done, 1) if has_rows else 0
        speed = self._find_speed()
        seconds_left = left / speed if speed else None
        return JobView(total, left, speed, seconds_left if left else 0.0, quarantine, waits_for, paused)

    def _find_speed(self) -> float:
        if len(self._points) < 2:
            return 0.0
        (began, before), (now, done) = self._points[0], self._points[-1]
        return (done - before) / (now - began) if now > began else 0.0
