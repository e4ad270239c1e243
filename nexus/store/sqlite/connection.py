"""How the file of the SQLite store is locked, recognised and connected to.

The database file itself is opened by SQLite, and by `nexus.store.sqlite.remnants`, which closes it after SQLite has:
closing a descriptor of it earlier would drop SQLite's locks in this process.
"""

import contextlib
import fcntl
import os
import sqlite3
import stat
from pathlib import Path
from typing import Final

from common.errors import CorruptRowError, ShardholdError, StoreUnavailableError

APPLICATION_ID: Final = 0x53687264  # "Shrd"; in the header of the database file
BUSY_S: Final = 5.0  # how long a statement waits for a foreign process that has the database locked

# What the driver raises: the second when a message of SQLite quotes damaged text, the third when a number that was
# counted up from a stored one does not fit, the last for SQLITE_NOMEM.
SqliteError = sqlite3.Error | UnicodeDecodeError | OverflowError | MemoryError
SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError, OverflowError, MemoryError)

_CORRUPT: Final = {"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_MISMATCH", "SQLITE_FORMAT"}


def translate(exc: SqliteError, doing: str) -> ShardholdError:
    """Name what SQLite found, without its own message, which could hold a stored value."""
    name = getattr(exc, "sqlite_errorname", None)
    if isinstance(name, str):
        damaged = any(name == kind or name.startswith(f"{kind}_") for kind in _CORRUPT)
        return (CorruptRowError if damaged else StoreUnavailableError)(f"store failed to {doing}: {name}")
    if isinstance(exc, sqlite3.OperationalError | UnicodeDecodeError):  # the driver's own
        return CorruptRowError(f"store failed to {doing}: a stored text does not decode")
    if isinstance(exc, OverflowError):
        return CorruptRowError(f"store failed to {doing}: a stored number is too large")
    return StoreUnavailableError(f"store failed to {doing}: {type(exc).__name__}")


class StoreLock:
    """The lock on `<path>.lock`: this process is the only nexus on the store. The kernel drops it with the process."""

    def __init__(self, path: Path) -> None:
        """Take it.

        Raises:
            StoreUnavailableError: Another nexus has it, or the file cannot be made.
        """
        self.path = path.with_name(path.name + ".lock")
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise StoreUnavailableError(f"store lock {self.path} cannot be opened: {exc.strerror}") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._fd)
            raise StoreUnavailableError(f"store lock {self.path} is held: another nexus has this store") from exc

    def release(self) -> None:
        """Give it back; the file stays."""
        os.close(self._fd)


def prepare_file(path: Path) -> None:
    """Make the file if there is none, or see that it is a store of ours; anything else is left as it is.

    Raises:
        StoreUnavailableError: The file cannot be made or read, or it is missing while its WAL is there.
        CorruptRowError: It is something else.
    """
    if not path.parent.is_dir():
        raise StoreUnavailableError(f"store {path}: directory {path.parent} does not exist")
    wal = path.with_name(f"{path.name}-wal")
    has_wal = wal.is_file() and wal.stat().st_size > 0
    if has_wal and not (path.exists() and path.stat().st_size):
        # Its main file was there first. SQLite would delete the WAL of an empty file, with what was written last.
        raise StoreUnavailableError(f"store {path} is missing, but its {wal.name} is there: put the file back")
    try:
        # Not open(): see above. The mode is there from the start, and SQLite gives it to the WAL as well.
        os.mknod(path, stat.S_IFREG | 0o600)
        return
    except FileExistsError:
        pass
    except OSError as exc:
        raise StoreUnavailableError(f"store {path} cannot be made: {exc.strerror}") from exc
    if not path.is_file():
        raise CorruptRowError(f"store {path} is not a file")
    if path.stat().st_size == 0:  # made just before a crash, or for us
        return
    try:
        found = _read_application_id(path)
    except SQLITE_ERRORS as exc:
        if getattr(exc, "sqlite_errorname", "") == "SQLITE_NOTADB":
            raise CorruptRowError(f"store {path} is not a SQLite database") from exc
        raise translate(exc, f"read the header of {path}") from exc
    if found != APPLICATION_ID:
        raise CorruptRowError(f"store {path} is another database: application id {found:#x}, want {APPLICATION_ID:#x}")


def _read_application_id(path: Path) -> int:
    """Read whose file it is, from its header and nothing else, so that a foreign WAL and journal stay as they are.

    A main file that a checkpoint was killed in is whole only together with its WAL: then that is read as well.
    """
    try:
        return _query_application_id(f"{path.as_uri()}?mode=ro&immutable=1")
    except SQLITE_ERRORS as exc:
        if getattr(exc, "sqlite_errorname", "") != "SQLITE_CORRUPT":
            raise
    return _query_application_id(f"{path.as_uri()}?mode=rw")


def _query_application_id(uri: str) -> int:
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        return int(connection.execute("PRAGMA application_id").fetchone()[0])


def connect_writer(path: Path) -> sqlite3.Connection:
    """Connect for changes; marks a new file as ours, then puts it into WAL mode.

    Raises:
        sqlite3.Error: As it comes.
    """
    connection = _connect(path)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        if connection.execute("PRAGMA application_id").fetchone()[0] == 0:
            # Before WAL mode, so that it is in the header of the main file, where prepare_file looks.
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
    except SQLITE_ERRORS:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Connect for reads.

    Raises:
        sqlite3.Error: As it comes.
    """
    connection = _connect(path)
    try:
        connection.execute("PRAGMA query_only = ON")
    except SQLITE_ERRORS:
        connection.close()
        raise
    return connection


def connect_copier(path: Path) -> sqlite3.Connection:
    """Connect for copying the whole database into another file, which a connection for reads may not do.

    Raises:
        sqlite3.Error: As it comes.
    """
    return _connect(path)


def truncate_wal(writer: sqlite3.Connection, *, busy_s: float = BUSY_S) -> bool:
    """Copy the WAL into the database and empty it; False: somebody reads, and still did after *busy_s*.

    What was deleted or replaced is in neither afterwards, except in what `nexus.store.sqlite.remnants` wipes:
    `secure_delete` has overwritten it where it stood.

    Raises:
        sqlite3.Error: The disk refuses.
    """
    writer.execute(f"PRAGMA busy_timeout = {round(busy_s * 1000)}")
    try:
        is_busy, _, _ = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        writer.execute(f"PRAGMA busy_timeout = {round(BUSY_S * 1000)}")
    return not is_busy


def forget_pages(writer: sqlite3.Connection) -> None:
    """Drop every page that the connection has in its cache.

    Raises:
        sqlite3.Error: As it comes.
    """
    writer.execute("PRAGMA shrink_memory")


def tighten_mode(path: Path) -> None:
    """Take the store's files away from group and others: a restored copy may have come with another mode."""
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        file = path.with_name(name)
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        # Large sorts and statements would spill into /tmp, which may not be there, and is not the store's folder.
        connection.execute("PRAGMA temp_store = MEMORY")
    except SQLITE_ERRORS:
        connection.close()
        raise
    return connection
