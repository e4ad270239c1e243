"""The pool of reading connections of the SQLite store, one for each thread that reads at the same time."""

import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from common.errors import StoreUnavailableError
from nexus.store.sqlite.connection import SQLITE_ERRORS, connect_reader, translate
from nexus.store.sqlite.reader import SqliteReader


class ReaderPool:
    """Thread-safe. Its common path takes no lock: a deque pops and appends atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: deque[SqliteReader] = deque()
        self._guard = threading.Condition()
        self._open = 0  # idle or in use
        self._is_draining = False
        self._refusal: StoreUnavailableError | None = None

    def read(self) -> "Reading":
        """Return a context that reads one committed state."""
        return Reading(self)

    def drain(self, seconds: float) -> bool:
        """Close every connection, waiting for those in use; False: some still are. New reads wait for `resume`."""
        deadline = time.monotonic() + seconds
        with self._guard:
            self._is_draining = True
            while self._open:
                while self._idle:
                    self._close(self._idle.pop())
                if self._open and time.monotonic() > deadline:
                    return False
                # A thread may have seen no drain and put its connection back just now: look again soon.
                self._guard.wait(0.01)
        return True

    def resume(self) -> None:
        """Let reads go on after a drain."""
        with self._guard:
            self._is_draining = False
            self._guard.notify_all()

    def refuse(self, error: type[StoreUnavailableError], why: str) -> None:
        """Refuse every read from now on, also those that wait."""
        with self._guard:
            self._refusal = error(why)
            self._guard.notify_all()

    def take(self) -> SqliteReader:
        """Take a connection; the caller gives it back to `put_back` or `discard`."""
        if self._refusal is not None:
            raise type(self._refusal)(*self._refusal.args)
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def put_back(self, reader: SqliteReader) -> None:
        if self._is_draining or self._refusal is not None:
            self.discard(reader)
        else:
            self._idle.append(reader)

    def discard(self, reader: SqliteReader) -> None:
        """Close a connection that is in use, and may be broken."""
        with self._guard:
            self._close(reader)
            self._guard.notify_all()

    def _connect(self) -> SqliteReader:
        with self._guard:
            self._guard.wait_for(lambda: not self._is_draining or self._refusal is not None)
            if self._refusal is not None:
                raise type(self._refusal)(*self._refusal.args)
            try:
                reader = SqliteReader(connect_reader(self._path))
            except SQLITE_ERRORS as exc:
                raise translate(exc, "connect") from exc
            self._open += 1
            return reader

    def _close(self, reader: SqliteReader) -> None:
        self._open -= 1
        reader.connection.close()


class Reading:
    """One read in one committed state."""

    __slots__ = ("_pool", "_reader")

    def __init__(self, pool: ReaderPool) -> None:
        self._pool = pool
        self._reader: SqliteReader

    def __enter__(self) -> SqliteReader:
        reader = self._reader = self._pool.take()
        try:
            reader.begin()
        except BaseException:
            self._pool.discard(reader)
            raise
        return reader

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._reader.end()
        except SQLITE_ERRORS:  # what was read stands; the next read gets another connection
            self._pool.discard(self._reader)
        else:
            self._pool.put_back(self._reader)
