"""The embedded store: one SQLite file in WAL mode, held by one nexus.

- Reads go through a pool of connections; changes through the group committer, which runs one BEGIN IMMEDIATE … COMMIT
  for each batch and one savepoint for each change.
- After a COMMIT that raised, nobody knows the outcome: its frames may be in the WAL, unsynced. So all connections are
  closed, the file is opened afresh, and its position says what happened. If that cannot be done, every further call is
  refused. A batch of discards leaves the position where it was: its outcome is not known, and what there is of it is
  made durable before anything is committed on top.
- A scrub empties the WAL between two batches, which it holds up for a moment; reads and a copying hold the scrub up.
- No outcome leaves while a file of the store is not at its place (`nexus.store.sqlite.files`). Every further call is
  then refused. At the close SQLite still copies a lost WAL into its database; if the database itself was taken away, it
  leaves alone whatever is at the path now.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog

from common.errors import OutcomeUnknownError, ShardholdError, StoreFileLostError, StoreUnavailableError
from nexus.store.committer import GroupCommitter, Turn
from nexus.store.protocol import AuditHead, OutboxRow, Position, Reader, StoreCopy, Writer
from nexus.store.sqlite.connection import (
    SQLITE_ERRORS,
    SqliteError,
    StoreLock,
    connect_writer,
    forget_pages,
    prepare_file,
    tighten_mode,
    translate,
    truncate_wal,
)
from nexus.store.sqlite.files import StoreFiles
from nexus.store.sqlite.migrations import migrate
from nexus.store.sqlite.origin import check_origin
from nexus.store.sqlite.pool import ReaderPool
from nexus.store.sqlite.reader import POSITION
from nexus.store.sqlite.remnants import Remnants
from nexus.store.sqlite.snapshot import Copier
from nexus.store.sqlite.writer import SqliteWriter

T = TypeVar("T")
_Batch = Sequence[Turn[SqliteWriter, object]]

DRAIN_S: Final = 5.0  # how long reads in flight may keep the file from being closed
SCRUB_BUSY_S: Final = 0.1  # how long one attempt to scrub waits for reads, and changes for it
_SCRUB_PAUSES_S: Final = (0.05, 1.0)  # the first one and the longest: changes go on in between

log = structlog.get_logger("store")


class _NotCommittedError(Exception):
    """The batch is rolled back as a whole."""


@dataclass(frozen=True, slots=True)
class _Ran:
    """What a batch has done in its transaction."""

    before: Position
    after: Position
    has_written: bool
    has_removed: bool  # versions, which are in the files until a scrub

    @property
    def is_ambiguous(self) -> bool:
        """Whether the position does not tell if it is committed."""
        return self.has_written and self.before == self.after


class SqliteStore:
    """Implements `nexus.store.protocol.Store`. Thread-safe, not fork-safe."""

    def __init__(
        self, path: Path, lock: StoreLock, writer: sqlite3.Connection, files: StoreFiles, remnants: Remnants
    ) -> None:
        """Use `open`."""
        self._path = path
        self._lock = lock
        self._writer = writer
        self._files = files
        self._remnants = remnants
        self._writing = threading.Lock()  # held while the writer is in use or replaced
        self._committer: GroupCommitter[SqliteWriter] = GroupCommitter(self._run)
        self._pool = ReaderPool(path)
        self._copier = Copier(path)
        self._copier.remove()
        self._refusal: tuple[type[StoreUnavailableError], str] | None = None
        self.is_scrub_due = False
        self.unscrubbed = ""
        self._is_closed = False

    @classmethod
    def open(cls, path: Path) -> "SqliteStore":
        """Open the store, make it if there is no file, and bring its schema up to date.

        The folder of *path* must exist. `<path>.lock` is held until `close`, or until the process dies.

        Raises:
            StoreUnavailableError: Another nexus has the store, a newer program wrote it, or the disk refuses.
            CorruptRowError: The file is something else than a store of ours; it is left as it is.
        """
        path = path.resolve()
        if not path.parent.is_dir():
            raise StoreUnavailableError(f"store {path}: directory {path.parent} does not exist")
        lock = StoreLock(path)
        try:
            prepare_file(path)
            writer = _connect_migrated(path)
            files = StoreFiles(path)
            remnants = Remnants(path)
        except BaseException:
            lock.release()
            raise
        store = cls(path, lock, writer, files, remnants)
        store._scrub_opened()
        return store

    def read(self) -> AbstractContextManager[Reader]:
        return self._pool.read()

    @contextmanager
    def copy(self) -> Iterator[StoreCopy]:
        with self._copier.copy() as made:
            if fault := self.find_fault():
                raise StoreFileLostError(fault)
            yield made

    def write(
        self,
        change: Callable[[Writer], T],
        *,
        counts: bool = True,
        alone: bool = False,
        on_commit: Callable[[T], None] | None = None,
    ) -> T:
        return self._committer.submit(Turn[SqliteWriter, T](change, counts=counts, alone=alone, on_commit=on_commit))

    def discard_audit(
        self, rows: Sequence[OutboxRow], head: AuditHead | None = None, *, at: tuple[int, int] | None = None
    ) -> bool:
        return self._committer.submit(
            Turn[SqliteWriter, bool](lambda writer: writer.discard_audit(rows, head, at), counts=False)
        )

    def discard_requests(self, *, made_from: int, made_until: int, limit: int) -> int:
        bounds = (made_from, made_until, limit)
        with self._pool.read() as reader:
            if not reader.has_outdated_requests(*bounds):
                return 0  # without a sync of the disk
        return self._committer.submit(
            Turn[SqliteWriter, int](lambda writer: writer.discard_requests(*bounds), counts=False)
        )

    def find_fault(self) -> str:
        if not self._writing.acquire(blocking=False):
            return ""  # a batch is under way, and looks itself before it is over
        try:
            if self._refusal is None and (fault := self._files.find_fault()):
                self._refuse(StoreFileLostError, fault)
            kind, why = self._refusal or (None, "")
            return why if kind is StoreFileLostError else ""
        finally:
            self._writing.release()

    def scrub(self, *, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        pause, longest = _SCRUB_PAUSES_S
        while not self._try_scrub():
            if (left := deadline - time.monotonic()) <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest)
        return True

    def close(self) -> None:
        """Wait for reads and changes in flight, then close. A second call does nothing."""
        with self._writing:
            if self._is_closed:
                return
            self._is_closed = True
            self._refuse(StoreUnavailableError, "store is closed")
            self._copier.pause(DRAIN_S)
            is_unused = self._pool.drain(DRAIN_S)
            self._writer.close()
            if is_unused:  # else SQLite has the file open yet, and the process is about to end
                self._remnants.close()
            self._lock.release()

    def _run(self, batch: _Batch) -> None:
        with self._writing:
            if self._refusal is not None:
                _fail(batch, *self._refusal)
                return
            try:
                self._run_and_commit(batch)
            except BaseException as exc:
                self._refuse_unknown(batch, "store failed as it never should, and what was committed is not known", exc)
                raise
            if fault := self._files.find_fault():
                self._refuse_unknown(batch, fault, StoreFileLostError(fault))

    def _run_and_commit(self, batch: _Batch) -> None:
        try:
            ran = self._run_changes(batch)
        except (*SQLITE_ERRORS, _NotCommittedError) as exc:
            self._roll_back(batch, exc)
            return
        try:
            if self._writer.in_transaction:
                self._writer.execute("COMMIT")
        except SQLITE_ERRORS as exc:
            self._settle(batch, ran, exc)
        self.is_scrub_due |= ran.has_removed
        for turn in batch:
            turn.announce()

    def _run_changes(self, batch: _Batch) -> _Ran:
        """Run the changes in a transaction that stays open, unless there is nothing to commit."""
        execute = self._writer.execute
        execute("BEGIN IMMEDIATE")
        row = execute(POSITION).fetchone()
        if row is None:
            raise _NotCommittedError("store has no meta row")
        before = Position(*row)
        return self._run_one(batch[0], before) if len(batch) == 1 else self._run_group(batch, before)

    def _run_one(self, turn: Turn[SqliteWriter, object], before: Position) -> _Ran:
        """Without a savepoint: a change that fails is undone with its transaction."""
        changes = self._writer.total_changes
        writer = SqliteWriter(self._writer, before)
        is_done = turn.run(writer) and _finish(turn, writer)
        self._check_open()
        if not is_done:
            self._writer.execute("ROLLBACK")
            return _Ran(before, before, has_written=False, has_removed=False)
        has_written = self._writer.total_changes > changes
        return _Ran(before, writer.standing, has_written=has_written, has_removed=writer.has_removed)

    def _run_group(self, batch: _Batch, before: Position) -> _Ran:
        execute, standing = self._writer.execute, before
        has_written = has_removed = False
        for turn in batch:
            execute("SAVEPOINT change")
            changes = self._writer.total_changes
            writer = SqliteWriter(self._writer, standing)
            if turn.run(writer) and _finish(turn, writer):
                standing = writer.standing
                has_written |= self._writer.total_changes > changes
                has_removed |= writer.has_removed
            elif self._writer.in_transaction:
                execute("ROLLBACK TO change")
            self._check_open()
            execute("RELEASE change")
        return _Ran(before, standing, has_written=has_written, has_removed=has_removed)

    def _check_open(self) -> None:
        """See that SQLite did not roll the transaction back by itself, as it does when the disk is full."""
        if not self._writer.in_transaction:
            raise _NotCommittedError("store failed to write: the whole transaction was rolled back")

    def _roll_back(self, batch: _Batch, cause: Exception) -> None:
        """Undo a batch that was never to be committed."""
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except SQLITE_ERRORS:
            try:
                self._reopen()
            except (*SQLITE_ERRORS, StoreUnavailableError) as exc:
                self._refuse_unknown(batch, "store cannot be opened again after a failed rollback", exc)
                return
        why = str(translate(cause, "write") if isinstance(cause, SQLITE_ERRORS) else cause)
        _fail(batch, StoreUnavailableError, why, cause)

    def _settle(self, batch: _Batch, ran: _Ran, cause: SqliteError) -> None:
        """Find out what a COMMIT that raised has done, and answer accordingly."""
        why = str(translate(cause, "commit"))
        try:
            found = self._reopen()
            if found == ran.before and not (ran.is_ambiguous and _may_have_committed(cause)):
                _fail(batch, StoreUnavailableError, why, cause)
                return
            if found not in (ran.before, ran.after):
                raise StoreUnavailableError(f"position is {found}, want {ran.before} or {ran.after}")
            self._copy_wal()
            if ran.is_ambiguous:
                _fail(batch, StoreUnavailableError, f"{why}; it may be committed, and can be repeated", cause)
        except (*SQLITE_ERRORS, StoreUnavailableError) as exc:
            self._refuse_unknown(batch, f"{why}, and whether it was committed cannot be told", exc)

    def _reopen(self) -> Position:
        """Close every connection, open the file afresh and return where the store stands.

        Raises:
            StoreUnavailableError: Reads in flight did not end in time.
            StoreFileLostError: It is not at its place, or another file is.
            sqlite3.Error: The file cannot be opened or read.
        """
        self._files.check()
        if not (self._copier.pause(DRAIN_S) and self._pool.drain(DRAIN_S)):
            raise StoreUnavailableError("reads in flight did not end in time")
        self._writer.close()
        self._writer = connect_writer(self._path)
        found = Position(*self._writer.execute(POSITION).fetchone())
        self._files.renew()
        self._pool.resume()
        self._copier.resume()
        return found

    def _copy_wal(self) -> None:
        """Copy the WAL into the main file. After a failed sync of the WAL only this makes its frames durable.

        Raises:
            StoreUnavailableError: Somebody reads an older state.
            sqlite3.Error: The disk refuses.
        """
        if not truncate_wal(self._writer):
            raise StoreUnavailableError("WAL cannot be copied: the database is busy")

    def _scrub_opened(self) -> None:
        """Do what a process did not come to that ended before its scrub. The store works without it.

        What takes long, to look for remnants in the whole file, is due from then on.
        """
        try:
            self._try_scrub(wipes=False)
        except StoreUnavailableError as exc:
            self.unscrubbed = str(exc)
        if self.unscrubbed:
            log.warning("store not scrubbed: what was deleted may be in its files", why=self.unscrubbed)

    def _try_scrub(self, *, wipes: bool = True) -> bool:
        """Scrub once, and hold changes up for no longer than `SCRUB_BUSY_S` when somebody reads."""
        if not self._try_empty_wal():
            return False
        if wipes and (pages := self._find_remnants()):
            return self._try_empty_wal(pages)
        self.is_scrub_due |= not wipes
        return True

    def _find_remnants(self) -> list[int]:
        """Look through the whole file, which may take long; changes go on."""
        try:
            return self._remnants.find()
        except StoreUnavailableError as exc:
            self.unscrubbed, self.is_scrub_due = str(exc), True
            raise

    def _try_empty_wal(self, pages: Sequence[int] = ()) -> bool:
        """Empty the WAL, and wipe what is left behind in *pages*, in one go."""
        with self._writing:
            if self._refusal is not None:
                kind, why = self._refusal
                raise kind(why)
            has_removed = bool(pages) and self.is_scrub_due  # versions, since somebody began to look for the pages
            self.is_scrub_due = True
            try:
                is_done = truncate_wal(self._writer, busy_s=SCRUB_BUSY_S)
                if is_done and pages:
                    self._remnants.wipe(pages)
                    forget_pages(self._writer)
            except (*SQLITE_ERRORS, StoreUnavailableError) as exc:
                error = exc if isinstance(exc, StoreUnavailableError) else translate(exc, "scrub")
                self.unscrubbed = str(error)
                raise error from exc
            self.unscrubbed = "" if is_done else "somebody reads the database"
            self.is_scrub_due = not is_done or has_removed
            if fault := self._files.find_fault():
                self._refuse(StoreFileLostError, fault)
                raise StoreFileLostError(fault)
            return is_done

    def _refuse_unknown(self, batch: _Batch, why: str, cause: BaseException) -> None:
        kind = StoreFileLostError if isinstance(cause, StoreFileLostError) else OutcomeUnknownError
        self._refuse(kind, why)
        _fail(batch, kind, why, cause)

    def _refuse(self, error: type[StoreUnavailableError], why: str) -> None:
        self._refusal = (error, why)
        self._pool.refuse(error, why)
        self._copier.refuse(error, why)


def _connect_migrated(path: Path) -> sqlite3.Connection:
    try:
        writer = connect_writer(path)
    except SQLITE_ERRORS as exc:
        raise translate(exc, f"open {path}") from exc
    try:
        migrate(writer, path)
        check_origin(writer, path)
        tighten_mode(path)
    except SQLITE_ERRORS as exc:
        writer.close()
        raise translate(exc, f"migrate {path}") from exc
    except BaseException:
        writer.close()
        raise
    return writer


def _fail(
    batch: _Batch,
    kind: type[StoreUnavailableError],
    why: str,
    cause: BaseException | None = None,
) -> None:
    for turn in batch:
        error = kind(why)  # one for each caller: raising adds a traceback to it
        error.__cause__ = cause
        turn.fail(error)


def _may_have_committed(cause: SqliteError) -> bool:
    """Say whether a COMMIT that raised *cause* may have written all its frames. With a full disk one is missing."""
    return getattr(cause, "sqlite_errorname", "") != "SQLITE_FULL"


def _finish(turn: Turn[SqliteWriter, object], writer: SqliteWriter) -> bool:
    try:
        writer.finish(counts=turn.counts)
    except ShardholdError as exc:
        turn.fail(exc)
        return False
    return True
