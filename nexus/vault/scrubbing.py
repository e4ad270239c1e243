"""Scrubs of the store that a destroy waits for; those that wait at the same time share one."""

import threading
import time
from typing import Final

from common.errors import NotScrubbedError, StoreUnavailableError
from nexus.store.protocol import Store

SCRUB_S: Final = 5.0  # that a destroy waits for a scrub


class SharedScrub:
    """Thread-safe."""

    def __init__(self, store: Store, *, seconds: float = SCRUB_S) -> None:
        self._store = store
        self._seconds = seconds
        self._scrubbing = threading.Lock()
        self._covered = 0  # revision up to which a scrub of this process has covered all changes

    def run(self, revision: int) -> None:
        """Leave nothing in the files of what was destroyed by the change with this *revision*, or before it.

        A scrub that began after it is enough, however long it took and whatever was changed since: a request that is
        repeated because its scrub took too long finds that it is done.

        Raises:
            NotScrubbedError: It did not succeed in time; the message says why.
        """
        deadline = time.monotonic() + self._seconds
        try:
            if not self._scrubbing.acquire(timeout=self._seconds):
                raise NotScrubbedError("other scrubs are under way")
            try:
                if revision > self._covered:
                    self._scrub(max(deadline - time.monotonic(), 0.0))
            finally:
                self._scrubbing.release()
        except StoreUnavailableError as exc:
            raise NotScrubbedError(str(exc)) from exc

    def _scrub(self, seconds: float) -> None:
        begun_at = self._load_revision()
        if not self._store.scrub(seconds=seconds):
            raise NotScrubbedError(self._store.unscrubbed or "somebody reads the database")
        self._covered = begun_at

    def _load_revision(self) -> int:
        with self._store.read() as reader:
            return reader.load_position().revision
