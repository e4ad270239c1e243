"""Moves the entries of changes from the store's outbox into the audit files.

1. An entry is in the store, durably, with its change; here it is appended, synced, and only then discarded there:
   exactly its row, together with the head of the files (`nexus.keys.outbox`).
2. With a key every row is judged. One whose MAC does not verify, whose revision the store has not reached, or that was
   exported before, is forged: it is named by its digest, and removed. It holds up no true row.
3. Without a key only rows that this process committed are exported, by their digests. They stay in the store until
   there is a key: the head covers them then.
4. An entry that this process committed, or that a revision after the head must have, and that is not in the outbox, is
   named as missing.
5. After a crash in between, an entry is found in the segments and not appended again: the same revision with the same
   bytes. (By its revision alone it could be taken for one of another store that wrote here before.)
6. Discards are bundled: each costs a sync of the store. A discard whose outcome is unknown ends the process at once, as
   any change with an unknown outcome does.
7. Places, and the MACs of rows and head, are those of one timeline and one root key: of one era. With another era all
   begins anew from the head, and rule 5 holds. Rows are judged only with the key that the store has when they are read,
   and discarded only in the era that they were judged in: a key may follow another one at any moment.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

import structlog

from common.clock import Clock, SystemClock, to_micros
from common.errors import (
    CorruptRowError,
    OutcomeUnknownError,
    RecoveringError,
    SealedError,
    ShardholdError,
    WrongStateError,
)
from common.forms.audit.entry import Entry, decode_entry
from nexus.access.audit.alarm import Alarm
from nexus.access.audit.directory import ChainPosition
from nexus.access.audit.log import AuditLog
from nexus.keys.outbox import is_authentic_head, is_authentic_row, make_head
from nexus.keys.signer import AuditAuthenticator
from nexus.store.protocol import AuditHead, OutboxRow, Position, Reader, Store

GROUP_S: Final = 0.02  # changes committed within this time are exported together
# How soon a failed export is tried again, a change without a nudge is found, and what is exported is discarded.
POLL_S: Final = 1.0
DISCARD_AT: Final = 1000  # rows
HEAD_EVERY_S: Final = 60.0  # how often the head follows lines that are not of changes
_BATCH: Final = 500  # rows
_MOST_PAGES: Final = 200  # in one go
_MOST_COMMITTED: Final = 10_000  # digests; while the files refuse, so are changes

_NO_KEY: Final = (SealedError, RecoveringError, WrongStateError)

_log = structlog.get_logger("audit")

Place = tuple[int, int]  # revision and position
Era = tuple[int, int]  # timeline and generation
BorrowKey = Callable[[], AbstractContextManager[AuditAuthenticator]]


class Exporter:
    """Works on a thread of its own between `start` and `stop`."""

    def __init__(
        self,
        store: Store,
        log: AuditLog,
        *,
        borrow_key: BorrowKey,
        clock: Clock | None = None,
        give_up: Callable[[str], None] = lambda reason: None,
        beside: Callable[[], None] = lambda: None,
    ) -> None:
        """*borrow_key* raises SealedError, RecoveringError or WrongStateError while there is no key.

        *give_up* ends the process; *beside* discards what else is old, about once a second.
        """
        self._give_up = give_up
        self._discard_beside = beside
        self._store = store
        self._audit = log
        self._borrow_key = borrow_key
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()  # guards the two below
        self._committed: dict[Place, bytes] = {}  # digests of entries that this process committed (rule 3)
        self._early: dict[Place, bytes] = {}  # the same of those that were exported before `take`
        self._era: Era | None = None  # that the following are of (rule 7); None: there was no key yet
        self._cursor: Place | None = None  # all rows up to it were judged with a key
        self._covered = 0  # revision up to which all entries are exported
        self._head: AuditHead | None = None
        self._had_key = False
        self._done: list[OutboxRow] = []  # in the files, synced, judged with a key
        self._written: dict[int, set[bytes]] | None = None  # entries that may be in the files (rule 5)
        self._written_since = 0  # revision from which on that is known
        self._position = log.position  # of what is known to be synced
        self._discarded_at = self._head_at = self._clock.monotonic()
        self._refused = Alarm("audit.refused-row", self._clock)
        self._missing = Alarm("audit.missing-row", self._clock)
        self._failing = ""
        self._nudged = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-export", daemon=True)

    @property
    def failing(self) -> str:
        """Why entries of changes do not reach the files; empty: they do."""
        return self._failing

    @property
    def alarms(self) -> tuple[Alarm, Alarm]:
        """Rows that were refused, and rows that are missing, since the start."""
        return self._refused, self._missing

    @property
    def waiting(self) -> int:
        """How many entries of changes that this process committed are not in the files yet."""
        return len(self._committed)

    def start(self) -> None:
        self._thread.start()

    def take(self, row: OutboxRow) -> None:
        """Take note of a row that was committed. Cheap."""
        with self._lock:
            place, digest = (row.revision, row.position), _digest(row.entry)
            if self._early.pop(place, None) != digest and len(self._committed) < _MOST_COMMITTED:
                self._committed[place] = digest
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
        try:
            if self._has_key():
                self._export_all()
            else:
                self._export_committed()
            for alarm in (self._refused, self._missing):
                alarm.say(self._audit)
        except ShardholdError:
            self._written = None  # what was appended and not synced may be lost
            raise

    def discard(self) -> None:
        """Remove from the store what is exported, if there is a key to make the head with, and its era goes on.

        Raises:
            StoreUnavailableError: It stays for now.
        """
        self._discarded_at = self._clock.monotonic()
        is_head_due = self._discarded_at - self._head_at >= HEAD_EVERY_S or self._stopping.is_set()
        self._position = self._audit.end_stretch() if is_head_due else self._audit.sync()
        era = self._era
        if era is not None and (self._done or (is_head_due and self._position != self._head_position())):
            head = self._make_head()
            if head is not None and self._store.discard_audit(self._done, head, at=era):
                self._head, self._done = head, []
                self._head_at = self._discarded_at
        self._sweep()

    def _export_all(self) -> None:
        """Judge and export every row (rules 2 and 4)."""
        with self._lock:
            expected = set(self._committed)
        first: Position | None = None
        seen = set[int]()
        for _ in range(_MOST_PAGES):
            page = self._load_page()
            if page is None:
                return  # the key is gone meanwhile: rule 3 next time; or the next one is about to be there
            found, rows, verdicts = page
            first = first or found
            if _era_of(found) != _era_of(first):
                return  # the next export begins anew (rule 7)
            if not rows:
                break
            true = [row for row, why in zip(rows, verdicts, strict=True) if not why]
            self._append(true)
            seen.update(row.revision for row in true)
            self._refuse([(row, why) for row, why in zip(rows, verdicts, strict=True) if why])
            self._find_gaps(true)
            for row in true:
                self._pass(row)
            self._done += true
            if len(rows) < _BATCH:
                break
        else:
            return  # a flood of forged rows: what is exported so far is discarded in between
        self._covered = max(self._covered, first.revision)
        self._find_missing(expected)
        if not self._had_key:
            self._had_key = True
            self._find_missing_revisions(first.revision, seen)
        self._written = {}

    def _load_page(self) -> tuple[Position, list[OutboxRow], list[str]] | None:
        """Load the next rows, and say why each is forged, empty: it is true; None: there is no key that could tell.

        The key comes first: one that was replaced before the rows were read is then seen to be another one than theirs.
        """
        try:
            with self._borrow_key() as key:
                with self._store.read() as reader:
                    found = reader.load_position()
                    if found.generation not in (0, key.generation):
                        return None
                    if not self._had_key or _era_of(found) != self._era:
                        self._begin(reader, _era_of(found), key)
                    rows = reader.load_audit(self._audit.nexus, after=self._cursor, limit=_BATCH)
                return found, rows, [_find_fault(row, found, key) for row in rows]
        except _NO_KEY:
            return None

    def _begin(self, reader: Reader, era: Era, key: AuditAuthenticator) -> None:
        """Go on from the head, if it is of the timeline; what is known of another era says nothing (rule 7)."""
        if era != self._era:
            self._era, self._had_key = era, False
            self._cursor, self._covered, self._head, self._done, self._written = None, 0, None, [], None
        head = reader.load_audit_head(self._audit.nexus)
        if head is None or head.timeline != era[0] or not is_authentic_head(key, head):
            return  # who becomes ready with another one is told elsewhere
        self._head = head
        self._covered = max(self._covered, head.revision)
        self._cursor = self._cursor or (head.revision, (1 << 63) - 1)

    def _pass(self, row: OutboxRow) -> None:
        """Note that a true row is exported; what this process committed in its place, and is another entry, is lost."""
        place, digest = (row.revision, row.position), _digest(row.entry)
        self._cursor = place
        self._covered = max(self._covered, row.revision - 1)
        with self._lock:
            committed = self._committed.pop(place, None)
            if committed != digest:
                self._early[place] = digest
                if len(self._early) > _MOST_COMMITTED:
                    del self._early[next(iter(self._early))]
        if committed not in (None, digest):
            self._say_missing(place, committed)

    def _has_key(self) -> bool:
        try:
            with self._borrow_key():
                return True
        except _NO_KEY:
            return False

    def _append(self, rows: Sequence[OutboxRow]) -> None:
        if not rows:
            return
        if self._written is None or rows[0].revision < self._written_since:
            self._written_since = rows[0].revision
            self._written = self._audit.load_recent_changes(since=rows[0].revision, after=self._head_position())
        unmarked = sum(not row.nexus for row in rows)
        if unmarked:
            self._note("audit.unmarked-rows", f"{unmarked} entries of an older program, which made no MACs, follow")
        for row in rows:
            self._append_one(row.revision, row.entry, self._written)
        self._position = self._audit.sync()

    def _append_one(self, revision: int, entry: bytes, written: dict[int, set[bytes]]) -> None:
        try:
            decode_entry(entry)
        except CorruptRowError as exc:
            entry = _describe_corrupt(revision, entry, exc)
        if entry not in written.get(revision, ()):
            self._audit.append_change(revision, entry)
            written.setdefault(revision, set()).add(entry)

    def _export_committed(self) -> None:
        """Export what this process committed, by its digests (rule 3)."""
        with self._lock:
            committed = dict(self._committed)
        for place, digest in sorted(committed.items()):
            with self._store.read() as reader:
                before = place[0], place[1] - 1
                rows = reader.load_audit(self._audit.nexus, after=before, through=place, limit=1)
            if rows and _digest(rows[0].entry) == digest:
                self._append(rows)
            else:
                self._say_missing(place, digest)
            with self._lock:
                self._committed.pop(place, None)

    def _refuse(self, forged: Sequence[tuple[OutboxRow, str]]) -> None:
        """Name forged rows, and remove them: they would be met again and again (rule 2)."""
        for row, why in forged:
            self._refused.add(
                f"revision {row.revision} position {row.position}, SHA-256 {_digest(row.entry).hex()}: {why}"
            )
        if forged:
            self._store.discard_audit([row for row, _ in forged])

    def _sweep(self) -> None:
        """Refuse rows that came where everything was judged already: they repeat what is exported, or are forged."""
        cursor = self._cursor
        if cursor is None or not self._has_key():
            return
        with self._store.read() as reader:
            if _era_of(reader.load_position()) != self._era:
                return
            rows = reader.load_audit(self._audit.nexus, through=cursor, limit=_BATCH + len(self._done))
        done = set(self._done)
        self._refuse([(row, "it was judged before") for row in rows if row not in done])

    def _find_gaps(self, rows: Sequence[OutboxRow]) -> None:
        """Name entries that are missing before those of the same change."""
        last = self._cursor or (-1, 0)
        for row in rows:
            wanted = last[1] + 1 if row.revision == last[0] else 0
            if row.nexus and row.position > wanted:
                self._missing.add(f"revision {row.revision} position {wanted}")
            last = row.revision, row.position

    def _find_missing(self, expected: set[Place]) -> None:
        """Name what this process committed before the outbox was read, and what was not in it (rule 4)."""
        with self._lock:
            missing = [(place, self._committed.pop(place)) for place in sorted(expected & self._committed.keys())]
        for place, digest in missing:
            self._say_missing(place, digest)

    def _say_missing(self, place: Place, digest: bytes) -> None:
        self._missing.add(f"revision {place[0]} position {place[1]}, SHA-256 {digest.hex()}")

    def _find_missing_revisions(self, revision: int, seen: set[int]) -> None:
        """Name revisions after the head whose entry is neither in the outbox nor in the files (rule 4)."""
        head = self._head
        if head is None or revision <= head.revision:
            return
        written = self._audit.load_recent_changes(since=head.revision + 1, after=self._head_position())
        there = {one for one in seen | written.keys() if head.revision < one <= revision}
        if missing := revision - head.revision - len(there):
            self._missing.add(f"{missing} of the changes from revision {head.revision + 1} to {revision}")

    def _make_head(self) -> AuditHead | None:
        try:
            with self._borrow_key() as key:
                return make_head(key, self._audit.nexus, *self._position, revision=self._covered)
        except _NO_KEY:
            return None

    def _head_position(self) -> ChainPosition | None:
        head = self._head
        return None if head is None else ChainPosition(head.timeline, head.seq, head.digest)

    def _note(self, action: str, detail: str) -> None:
        self._audit.append(Entry(at=to_micros(self._clock.now()), actor="", action=action, detail=detail))

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
                self._look_beside()
        except ShardholdError as exc:
            if not self._failing:
                _log.error("audit entries of changes stay in the store", reason=str(exc))
            self._failing = str(exc)
            if isinstance(exc, OutcomeUnknownError):
                self._give_up(f"discarding of exported audit entries: {exc}")
        else:
            self._failing = ""
        # What the files themselves refuse is over as soon as they work again.
        self._audit.set_export_failing("" if self._audit.refuses else self._failing)

    def _look_beside(self) -> None:
        try:
            self._discard_beside()
        except OutcomeUnknownError:
            raise
        except ShardholdError as exc:  # no entry waits for it: the audit goes on
            _log.warning("what is old stays in the store", reason=str(exc))

    def _is_discard_due(self) -> bool:
        is_old = self._clock.monotonic() - self._discarded_at >= POLL_S
        return is_old or len(self._done) >= DISCARD_AT


def _find_fault(row: OutboxRow, found: Position, key: AuditAuthenticator) -> str:
    if row.revision > found.revision:
        return f"the store is at revision {found.revision}"
    return "" if is_authentic_row(key, row, found.timeline) else "its MAC does not verify"


def _era_of(position: Position) -> Era:
    return position.timeline, position.generation


def _digest(entry: bytes) -> bytes:
    return hashlib.sha256(entry).digest()


def _describe_corrupt(revision: int, entry: bytes, exc: CorruptRowError) -> bytes:
    """Return an entry that stands for one that does not decode; the same each time."""
    detail = f"entry of revision {revision}: {len(entry)} bytes, SHA-256 {_digest(entry).hex()}"
    return Entry(at=0, actor="", action="audit.corrupt-row", outcome=exc.reason, detail=detail).encode()
