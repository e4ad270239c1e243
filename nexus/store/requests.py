"""When the requests that the store keeps are forgotten.

1. A request is kept for a day and an hour: the hour covers a clock that is set in steps too small to be noticed.
2. Nothing is forgotten in the first hour of a process, whose clock may have been set while none ran.
3. Nothing is forgotten for that day and hour after a clock jump: whatever was made before it is old enough by then.
4. A request from more than a day and an hour ahead was made by a clock that was wrong, and is forgotten like an old
   one. Otherwise it would stay for years, and with it all that came after it.
"""

from typing import Final

from common.clock import Clock, JumpWatch, to_micros
from nexus.store.protocol import Store

KEPT_S: Final = 25 * 3600.0
SETTLED_S: Final = 3600.0  # from the start of a process
LOOK_S: Final = 10.0
BATCH: Final = 500  # requests removed in one commit, which changes wait for
MOST_BATCHES: Final = 10  # at one look, which the export of audit entries waits for


class RequestRetention:
    """Forgets old requests when `look` is called often enough, by one thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._jumps = JumpWatch(clock)
        self._due = clock.monotonic() + SETTLED_S  # rule 2

    def look(self) -> None:
        """Forget what is old enough; most calls find that it is not yet time to.

        Raises:
            StoreUnavailableError, OutcomeUnknownError: What was not forgotten stays for now.
        """
        now = self._clock.monotonic()
        if self._jumps.find_jump():
            self._due = now + KEPT_S  # rule 3
        if now < self._due:
            return
        self._due = now + LOOK_S
        at, kept = to_micros(self._clock.now()), int(KEPT_S * 1_000_000)
        for _ in range(MOST_BATCHES):
            if self._store.discard_requests(made_from=at - kept, made_until=at + kept, limit=BATCH) < BATCH:
                return
        self._due = now  # there may be more
