"""A copy of one committed state, which a backup is made from.

The copying holds one state open, so a scrub waits for it; what reads the copy afterwards holds up nothing. Opening the
store again interrupts the copying, which then begins anew. The copy has no free pages: what was deleted before is not
in it. It is `<path>.copy`, with mode 0600, and is removed when it is not needed any more, and at each open.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Final

from common.errors import StoreUnavailableError
from nexus.store.protocol import Meta, StoreCopy
from nexus.store.sqlite.connection import SQLITE_ERRORS, connect_copier, translate
from nexus.store.sqlite.reader import SqliteReader

PROGRAM: Final = "nexus.store.sqlite.export"  # reads a copy
_SPARE: Final = 64 << 20  # bytes
_LOOK_S: Final = 0.01  # an interrupt that comes before the statement is lost: again, until the copying is over


class _InterruptedError(Exception):
    """The store is opened again: the copying begins anew."""


class Copier:
    """Thread-safe; one copy at a time."""

    def __init__(self, path: Path, find_free: Callable[[Path], int] = lambda folder: disk_usage(folder).free) -> None:
        """*find_free* gives the bytes that the disk of a folder has left."""
        self._path = path
        self._find_free = find_free
        self._copy = path.with_name(f"{path.name}.copy")
        self._one = threading.Lock()  # held for as long as there is a copy
        self._guard = threading.Condition()
        self._connection: sqlite3.Connection | None = None  # that copies now
        self._is_paused = False
        self._refusal: tuple[type[StoreUnavailableError], str] | None = None

    @contextmanager
    def copy(self) -> Iterator[StoreCopy]:
        """Copy the state of now, and remove the copy after the block.

        Raises:
            StoreUnavailableError: There is another copy, or the store or its disk refuses.
        """
        if not self._one.acquire(blocking=False):
            raise StoreUnavailableError("store is being copied already")
        try:
            while True:
                with contextlib.suppress(_InterruptedError):
                    self._make()
                    break
            yield StoreCopy(self._load_meta(), self._copy, PROGRAM)
        finally:
            self.remove()
            self._one.release()

    def remove(self) -> None:
        """Remove a copy that an earlier process has left."""
        for suffix in ("", "-journal", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                self._copy.with_name(self._copy.name + suffix).unlink()

    def pause(self, seconds: float) -> bool:
        """Interrupt the copying until `resume`; False: it goes on after *seconds* yet."""
        deadline = time.monotonic() + seconds
        with self._guard:
            self._is_paused = True
            while self._connection is not None:
                self._connection.interrupt()
                if time.monotonic() > deadline:
                    return False
                self._guard.wait(_LOOK_S)
        return True

    def resume(self) -> None:
        """Let the copying begin anew."""
        with self._guard:
            self._is_paused = False
            self._guard.notify_all()

    def refuse(self, error: type[StoreUnavailableError], why: str) -> None:
        """Refuse every copy from now on, also one that is under way."""
        with self._guard:
            self._refusal = (error, why)
            if self._connection is not None:
                self._connection.interrupt()
            self._guard.notify_all()

    def _make(self) -> None:
        connection = self._connect()
        try:
            self._prepare()
            connection.execute("VACUUM INTO ?", (str(self._copy),))
        except SQLITE_ERRORS as exc:
            if getattr(exc, "sqlite_errorname", "") == "SQLITE_INTERRUPT":
                raise _InterruptedError from exc
            raise translate(exc, "copy") from exc
        finally:
            self._disconnect(connection)

    def _prepare(self) -> None:
        """Make the file of the copy, which nobody else may read."""
        self.remove()
        try:
            self._check_room()
            os.close(os.open(self._copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except OSError as exc:
            raise StoreUnavailableError(f"store cannot be copied to {self._copy}: {exc.strerror}") from exc

    def _check_room(self) -> None:
        """Leave changes room on the disk: a copy that filled it would have them refused."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        wanted = sum(file.stat().st_size for file in files) + _SPARE
        if (free := self._find_free(self._path.parent)) < wanted:
            raise StoreUnavailableError(f"store cannot be copied: its disk has {free} bytes left, want {wanted}")

    def _connect(self) -> sqlite3.Connection:
        with self._guard:
            self._guard.wait_for(lambda: not self._is_paused or self._refusal is not None)
            if self._refusal is not None:
                kind, why = self._refusal
                raise kind(why)
            try:
                self._connection = connect_copier(self._path)
            except SQLITE_ERRORS as exc:
                raise translate(exc, "connect") from exc
            return self._connection

    def _disconnect(self, connection: sqlite3.Connection) -> None:
        with self._guard:  # nobody interrupts a connection that is closed
            connection.close()
            self._connection = None
            self._guard.notify_all()

    def _load_meta(self) -> Meta:
        with open_copy(self._copy) as reader:
            return reader.load_meta()


@contextmanager
def open_copy(path: Path) -> Iterator[SqliteReader]:
    """Read a copy; nothing is written beside it.

    Raises:
        StoreUnavailableError: It cannot be opened.
    """
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    except SQLITE_ERRORS as exc:
        raise translate(exc, "open its copy") from exc
    with contextlib.closing(connection):
        yield SqliteReader(connection)
