"""The thread of one seat: takes one step of the duty after the other, until it is ended."""

import threading
from collections.abc import Callable

from common.clock import Clock
from nexus.keepers.seat import Seat

Duty = Callable[[Seat], float]  # takes one step, and returns the seconds until the next


class SeatThread:
    """Owns the link of its seat. Thread-safe."""

    def __init__(self, seat: Seat, find_duty: Callable[[], Duty], clock: Clock, on_step: Callable[[], None]) -> None:
        """*find_duty* is asked before each step, and *on_step* hears of the end of each."""
        self.seat = seat
        self._find_duty = find_duty
        self._clock = clock
        self._on_step = on_step
        self._ended = False
        self._nudged = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"keeper-{seat.member.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def nudge(self) -> None:
        """Let the next step begin at once."""
        self._nudged.set()

    def end(self) -> None:
        """Take no further step; a call in flight fails."""
        self._ended = True
        self.nudge()
        self.seat.retire()

    def join(self, *, seconds: float) -> None:
        """Wait until it has ended, at most *seconds*."""
        if self._thread.ident is not None:
            self._thread.join(timeout=seconds)

    def _run(self) -> None:
        while True:
            self._nudged.clear()
            if self._ended:
                return
            pause = self._find_duty()(self.seat)
            self._on_step()
            self._clock.wait(self._nudged, pause)
