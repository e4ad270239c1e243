"""A store that is made of the rows of a backup.

1. It is written beside its place, as `<path>.restoring`, under the lock of the store: no nexus runs on it.
2. Rows come one by one, and nothing of them is believed before all have come. So it takes its place only when whoever
   reads the backup says that it is whole; else it is removed.
3. It takes its place by one rename. What was there is kept as `<path>.replaced`, or with a later number, whole without
   a WAL: a WAL that was left would be read into the new file. Killed at any moment, there is the old store or the new.
   What is no store that can be read is kept as it is, with its WAL.
4. It holds what the store held: a version whose secret was lost there comes back without it, and is damage here too.
5. Its meta row says that it was restored: a nexus serves it only once a superuser has accepted that.
"""

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import BackupError, CorruptRowError, StoreUnavailableError, WrongStateError
from common.forms.backup.tables import META, Row, Table
from nexus.store.protocol import Phase
from nexus.store.sqlite.connection import (
    APPLICATION_ID,
    SQLITE_ERRORS,
    StoreLock,
    connect_writer,
    prepare_file,
    translate,
    truncate_wal,
)
from nexus.store.sqlite.migrations import migrate

_OTHER_NAMES: Final = {("audit_head", "digest"): "hash"}
_COUNT_LIVE: Final = """
    UPDATE secrets SET live_versions =
        (SELECT count(*) FROM versions AS v WHERE v.path = secrets.path AND v.deleted = 0)"""
_SUFFIXES: Final = ("", "-journal", "-wal", "-shm")
_KEPT: Final = _SUFFIXES[:3]  # the last one is made of the WAL


class RestoredStore:
    """Rows on their way into a new store. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Begin one at *path*, which is not open.

        Raises:
            StoreUnavailableError: The disk refuses.
        """
        self._path = path
        try:
            remove(path)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            # It is synced as a whole before it takes its place, and worth nothing before.
            self._connection.execute("PRAGMA journal_mode = OFF")
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute("PRAGMA temp_store = MEMORY")
            migrate(self._connection, path)
            self._connection.execute("BEGIN")
        except OSError as exc:
            raise StoreUnavailableError(f"store cannot be restored to {path}: {exc.strerror}") from exc
        except SQLITE_ERRORS as exc:
            raise translate(exc, "begin a restored store") from exc
        self._inserts: dict[str, str] = {}

    def take(self, table: Table, row: Row) -> None:
        """Take the next row.

        Raises:
            BackupError: It fits no store.
            StoreUnavailableError: The disk refuses.
        """
        try:
            if table is META:
                names = ", ".join(f"{column.name} = ?" for column in META.columns)
                self._connection.execute(f"UPDATE meta SET {names}, restored = 1", row)
            else:
                self._connection.execute(self._find_insert(table), row)
        except sqlite3.IntegrityError as exc:
            raise BackupError(f"a row of {table.name} fits no store") from exc
        except SQLITE_ERRORS as exc:
            raise translate(exc, "restore a row") from exc

    def finish(self) -> None:
        """Complete the file; it is closed and synced then.

        Raises:
            StoreUnavailableError: The disk refuses.
        """
        try:
            self._connection.execute(_COUNT_LIVE)
            self._connection.execute("COMMIT")
            self._connection.execute("PRAGMA optimize")
            self._connection.close()
            _sync(self._path)
        except SQLITE_ERRORS as exc:
            raise translate(exc, "complete a restored store") from exc
        except OSError as exc:
            raise StoreUnavailableError(f"store cannot be restored to {self._path}: {exc.strerror}") from exc

    def close(self) -> None:
        """Give it up, or have done with it."""
        self._connection.close()

    def _find_insert(self, table: Table) -> str:
        if (known := self._inserts.get(table.name)) is not None:
            return known
        names = [_OTHER_NAMES.get((table.name, column.name), column.name) for column in table.columns]
        if table.name == "secrets":  # counted at the end
            names.append("live_versions")
        values = ", ".join(["?"] * len(table.columns) + ["0"] * (len(names) - len(table.columns)))
        self._inserts[table.name] = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values})"
        return self._inserts[table.name]


@dataclass(frozen=True, slots=True)
class Present:
    """What a store says of itself, whatever its schema."""

    cluster_id: bytes
    timeline: int
    revision: int


class StorePlace:
    """Where a store is put, or put back: no nexus runs on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.present: Present | None = None  # the store that was there; None: none, or it cannot be read
        self.kept: Path | None = None  # where what was there is now

    def look(self) -> None:
        """Look what is there.

        Raises:
            StoreUnavailableError: It cannot be looked at.
            CorruptRowError: It is no store that can be read.
        """
        wal = _add(self.path, "-wal")
        if not _has_content(self.path):
            if _has_content(wal):
                raise CorruptRowError(f"store {self.path} is missing, but its {wal.name} is there: put the file back")
            return
        prepare_file(self.path)
        with self._connect() as connection:
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                return  # its nexus was killed before it made a table
            row = connection.execute("SELECT phase, cluster_id, timeline, revision FROM meta").fetchone()
        if row is None:
            raise CorruptRowError("store has no meta row")
        self.present = None if row[0] == Phase.EMPTY else Present(*row[1:])

    @contextmanager
    def begin(self) -> Iterator[RestoredStore]:
        """Give a store to fill; after a block that ended well, it is at its place.

        Raises:
            StoreUnavailableError: The disk refuses; what was there is there.
        """
        new = self.path.with_name(f"{self.path.name}.restoring")
        store = RestoredStore(new)
        try:
            yield store
            store.finish()
            self._put_in_place(new)
        finally:
            store.close()
            with contextlib.suppress(OSError):
                remove(new)

    def _put_in_place(self, new: Path) -> None:
        try:
            if self.present is not None:
                self._empty_wal()
            self._keep()
            for suffix in _SUFFIXES[1:]:
                _add(self.path, suffix).unlink(missing_ok=True)
            new.rename(self.path)
            _sync(self.path.parent)
        except OSError as exc:
            raise StoreUnavailableError(f"store {self.path} cannot be replaced: {exc.strerror}") from exc

    def _empty_wal(self) -> None:
        """Bring everything into the database file, unless that is damaged: then the WAL is kept as well."""
        with contextlib.suppress(CorruptRowError), self._connect() as connection:
            if not truncate_wal(connection):
                raise StoreUnavailableError("somebody reads the store that is to be replaced")

    def _keep(self) -> None:
        """Give what is there a second name."""
        there = [suffix for suffix in _KEPT if _has_content(_add(self.path, suffix))]
        if not there:
            return
        names = (
            _add(self.path, f".replaced{number}")
            for number in itertools.chain([""], map(".{}".format, itertools.count(2)))
        )
        self.kept = next(name for name in names if not any(_add(name, suffix).exists() for suffix in _KEPT))
        for suffix in there:
            os.link(_add(self.path, suffix), _add(self.kept, suffix))

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(connect_writer(self.path)) as connection:
                yield connection
        except SQLITE_ERRORS as exc:
            raise translate(exc, f"open {self.path}") from exc


@contextmanager
def store_place(path: Path, *, replaces: bool) -> Iterator[StorePlace]:
    """Hold the place of a store; nothing may be there, unless *replaces*.

    Raises:
        StoreUnavailableError: A nexus runs on it, or it cannot be looked at.
        WrongStateError: There is a store.
        CorruptRowError: There is something else, or a damaged store.
    """
    path = path.resolve()
    if not path.parent.is_dir():
        raise StoreUnavailableError(f"store {path}: directory {path.parent} does not exist")
    lock = StoreLock(path)
    try:
        place = StorePlace(path)
        with contextlib.suppress(*([CorruptRowError] if replaces else [])):
            place.look()
        if place.present is not None and not replaces:
            cluster = place.present.cluster_id.hex()
            raise WrongStateError(f"there is a store at {path}, of cluster {cluster}: --replace keeps it aside")
        yield place
    finally:
        lock.release()


def remove(path: Path) -> None:
    """Remove a database and what SQLite keeps beside it.

    Raises:
        OSError: The disk refuses.
    """
    for suffix in _SUFFIXES:
        _add(path, suffix).unlink(missing_ok=True)


def _add(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
