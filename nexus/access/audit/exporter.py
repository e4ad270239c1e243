"""Moves the entries of changes from the store's outbox into the audit files.

- An entry is in the store, durably, with its change; here it is appended, synced, and only then discarded there.
- After a crash in between it is found in the segments and not appended again: the same revision with the same bytes.
  (By its revision alone it could be taken for one of another store that wrote here before.)
- Discards are bundled: each costs a sync of the store. A discard whose outcome is unknown ends the process at
  once, as any change with an unknown outcome does.
"""

import hashlib
import threading
from collections.abc import Callable
from typing import Final

import structlog

from common.clock import Clock, SystemClock
from common.errors import CorruptRowError, OutcomeUnknownError, ShardholdError, StoreLostError
from common.forms.audit.entry import Entry, decode_entry
from nexus.access.audit.log import AuditLog
from nexus.store.protocol import Store

GROUP_S: Final = 0.02  # changes committed within this time are exported together
# How soon a failed export is tried again, a change without a nudge is found, and what is exported is discarded.
POLL_S: Final = 1.0
DISCARD_AT: Final = 1000  # revisions
_BATCH: Final = 500  # entries

_log = structlog.get_logger("audit")


class Exporter:
    """Works on a thread of its own between `start` and `stop`."""

    def __init__(
        self,
        store: Store,
        log: AuditLog,
        *,
        clock: Clock | None = None,
        give_up: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """*give_up* ends the process."""
        self._give_up = give_up
        self._store = store
        self._audit = log
        self._clock = clock or SystemClock()
        self._exported = 0  # all entries up to this revision are in the files, synced
        self._discarded = 0
        self._discarded_at = self._clock.monotonic()
        self._written: dict[int, set[bytes]] | None = None  # entries after `_exported` that may be in the files
        self._failing = ""
        self._nudged = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-export", daemon=True)

    @property
    def failing(self) -> str:
        """Why entries of changes do not reach the files; empty: they do."""
        return self._failing

    def start(self) -> None:
        self._thread.start()

    def nudge(self) -> None:
        """Say that a change was committed. Cheap."""
        if not self._nudged.is_set():
            self._nudged.set()

    def stop(self) -> None:
        """Export and discard what is left, as far as possible, and end."""
        self._stopping.set()
        self._nudged.set()
        if self._thread.ident is not None:
            self._thread.join()

    def export(self) -> None:
        """Export what the outbox holds; after `start` only the exporter's own thread does.

        Raises:
            AuditUnavailableError: The files refuse; what is not exported stays in the store.
            StoreUnavailableError, CorruptRowError: The store refuses.
        """
        while rows := self._store.load_audit(limit=_BATCH, after=self._exported):
            if self._written is None:
                self._written = self._audit.load_recent_changes(since=rows[0][0])
            for revision, entry in rows:
                self._append(revision, entry, self._written)
            self._audit.sync()
            self._exported = rows[-1][0]
            self._written = {revision: left for revision, left in self._written.items() if revision > self._exported}

    def discard(self) -> None:
        """Remove from the store what is exported.

        Raises:
            StoreUnavailableError: It stays for now.
        """
        self._discarded_at = self._clock.monotonic()
        if self._exported > self._discarded:
            self._store.discard_audit(self._exported)
            self._discarded = self._exported

    def _append(self, revision: int, entry: bytes, written: dict[int, set[bytes]]) -> None:
        try:
            decode_entry(entry)
        except CorruptRowError as exc:
            entry = _describe_corrupt(revision, entry, exc)
        if entry not in written.get(revision, ()):
            self._audit.append_change(revision, entry)
            written.setdefault(revision, set()).add(entry)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._clock.wait(self._nudged, POLL_S)
            self._clock.wait(self._stopping, GROUP_S)
            self._nudged.clear()
            self._work(must_discard=False)
            if self._failing:
                self._clock.wait(self._stopping, POLL_S)
        self._work(must_discard=True)

    def _work(self, *, must_discard: bool) -> None:
        try:
            self.export()
            if must_discard or self._is_discard_due():
                self.discard()
        except ShardholdError as exc:
            if not self._failing:
                _log.error("audit entries of changes stay in the store", reason=str(exc))
            self._failing = str(exc)
            if isinstance(exc, OutcomeUnknownError) and not isinstance(exc, StoreLostError):
                self._give_up(f"discarding of exported audit entries: {exc}")
        else:
            self._failing = ""
        self._audit.set_export_failing(self._failing)

    def _is_discard_due(self) -> bool:
        is_old = self._clock.monotonic() - self._discarded_at >= POLL_S
        return is_old or self._exported - self._discarded >= DISCARD_AT


def _describe_corrupt(revision: int, entry: bytes, exc: CorruptRowError) -> bytes:
    """Return an entry that stands for one that does not decode; the same each time."""
    detail = f"entry of revision {revision}: {len(entry)} bytes, SHA-256 {hashlib.sha256(entry).hexdigest()}"
    return Entry(at=0, actor="", action="audit.corrupt-row", outcome=exc.reason, detail=detail).encode()
