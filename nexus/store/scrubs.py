"""When the store is scrubbed of versions that were pruned: nobody waits for that, so it is done later, by and by."""

from typing import Final

from common.clock import Clock
from nexus.store.protocol import Store

LOOK_S: Final = 600.0  # one scrub reads the whole store, some 2 s for each GiB
AGAIN_S: Final = 10.0  # after one that did not succeed


class LateScrubs:
    """Scrubs when `look` is called often enough, by one thread."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._due = clock.monotonic() + LOOK_S

    def look(self) -> None:
        """Scrub once if versions were removed; most calls find that it is not yet time to.

        Raises:
            StoreUnavailableError: What was removed may be in the files yet; the next look tries again.
        """
        now = self._clock.monotonic()
        if now < self._due:
            return
        self._due = now + AGAIN_S
        if not self._store.is_scrub_due or self._store.scrub(seconds=0):
            self._due = now + LOOK_S
