"""A store that is made of the rows of a backup.

1. It is written beside its place, as `<path>.restoring`, under the lock of the store: no nexus runs on it.
2. Rows come one by one, and nothing of them is believed before all have come. So it takes its place only when whoever
   reads the backup says that it is whole; else it is removed.
3. It takes its place by one rename. What was there is kept as `<path>.replaced`, or with a later number, whole without
   a WAL: a WAL that was left would be read into the new file. Killed at any moment, there is the old store or the new.
4. Its meta row says that it was restored: a nexus serves it only once a superuser has accepted that.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import BackupError, CorruptRowError, StoreUnavailableError, WrongStateError
from common.forms.backup.tables import META, Row, Table
from nexus.store.protocol import Meta, Phase
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
from nexus.store.sqlite.reader import SqliteReader

_OTHER_NAMES: Final = {("audit_head", "digest"): "hash"}
_COUNT_LIVE: Final = """
    UPDATE secrets SET live_versions =
        (SELECT count(*) FROM versions AS v WHERE v.path = secrets.path AND v.deleted = 0)"""
_SUFFIXES: Final = ("", "-journal", "-wal", "-shm")


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
        """Complete the file, and see that it is a store; it is closed and synced then.

        Raises:
            BackupError: The rows do not fit each other.
            StoreUnavailableError: The disk refuses.
        """
        try:
            self._connection.execute(_COUNT_LIVE)
            if self._connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
                raise BackupError("a row of the backup belongs to a secret that is not in it")
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


class StorePlace:
    """Where a store is put, or put back: no nexus runs on it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find_present(self) -> Meta | None:
        """Return what the store that is there says of itself; None: there is none, or an empty one.

        Raises:
            StoreUnavailableError, CorruptRowError: Something is there that cannot be read.
        """
        if not self.path.exists() or self.path.stat().st_size == 0:
            return None
        prepare_file(self.path)
        with self._connect() as connection:
            meta = SqliteReader(connection).load_meta()
        return None if meta.phase is Phase.EMPTY else meta

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
            if self.path.exists() and self.path.stat().st_size:
                self._empty_wal()
                os.link(self.path, self._choose_name())
            for suffix in _SUFFIXES[1:]:
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            new.rename(self.path)
            _sync(self.path.parent)
        except OSError as exc:
            raise StoreUnavailableError(f"store {self.path} cannot be replaced: {exc.strerror}") from exc

    def _empty_wal(self) -> None:
        """Bring everything into the database file; only then can the WAL go."""
        with self._connect() as connection:
            if not truncate_wal(connection):
                raise StoreUnavailableError("somebody reads the store that is to be replaced")

    def _choose_name(self) -> Path:
        number = 1
        while (
            path := self.path.with_name(f"{self.path.name}.replaced" + (f".{number}" if number > 1 else ""))
        ).exists():
            number += 1
        return path

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(connect_writer(self.path)) as connection:
                yield connection
        except SQLITE_ERRORS as exc:
            raise translate(exc, f"open {self.path}") from exc


@contextmanager
def store_place(path: Path, *, replaces: bool) -> Iterator[tuple[StorePlace, Meta | None]]:
    """Hold the place of a store, with what is there; nothing may be, unless *replaces*.

    Raises:
        StoreUnavailableError: A nexus runs on it, or it cannot be read.
        WrongStateError: There is a store.
    """
    path = path.resolve()
    if not path.parent.is_dir():
        raise StoreUnavailableError(f"store {path}: directory {path.parent} does not exist")
    lock = StoreLock(path)
    try:
        place = StorePlace(path)
        try:
            present = place.find_present()
        except CorruptRowError:
            if not replaces:
                raise
            present = None
        if present is not None and not replaces:
            raise WrongStateError(f"there is a store at {path}, of cluster {present.cluster_id.hex()}")
        yield place, present
    finally:
        lock.release()


def remove(path: Path) -> None:
    """Remove a database and what SQLite keeps beside it.

    Raises:
        OSError: The disk refuses.
    """
    for suffix in _SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
