"""What the audit hears of one keeper, so that a keeper that behaves badly for ever does not fill it.

The first `BURST` notes go through, and then one each `EVERY_S`. What was left out is counted in the next one.
"""

import threading
from collections.abc import Callable

from common.clock import Clock

BURST = 20  # notes; a keeper that is lost and comes back gives about five
EVERY_S = 60.0

# What was done, with which keeper, and the details.
Note = Callable[[str, str, str], None]


def note_nothing(action: str, keeper: str, detail: str) -> None:
    """Note nothing, where there is no audit."""


class LimitedNotes:
    """Passes on the notes about one keeper. Thread-safe; is itself a `Note`."""

    def __init__(self, note: Note, clock: Clock) -> None:
        self._note = note
        self._clock = clock
        self._lock = threading.Lock()
        self._left = float(BURST)
        self._at = clock.monotonic()
        self._left_out = 0

    def __call__(self, action: str, keeper: str, detail: str) -> None:
        with self._lock:
            now = self._clock.monotonic()
            self._left = min(BURST, self._left + (now - self._at) / EVERY_S)
            self._at = now
            if self._left < 1:
                self._left_out += 1
                return
            self._left -= 1
            left_out, self._left_out = self._left_out, 0
        self._note(action, keeper, f"{detail} ({left_out} notes before this one left out)" if left_out else detail)
