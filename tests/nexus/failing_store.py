"""A real store that fails where a test says."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from common.errors import CorruptRowError, OutcomeUnknownError, StoreUnavailableError
from nexus.store.protocol import AuditHead, OutboxRow, Reader, Store, Writer

T = TypeVar("T")
_FORGOTTEN = "store failed to commit, and cannot be opened again"


class FailingStore:
    """Implements `nexus.store.protocol.Store`. Everything works until one of the flags is set."""

    def __init__(self, store: Store) -> None:
        self.cannot_read = False
        self.cannot_audit = False  # the entry of a change cannot be written
        self.is_corrupt = False  # a change meets a row that does not decode
        self.cannot_commit = False  # all of a change runs, and is then undone
        self.forgets_outcome = False  # it is committed, and nobody can say so
        self.at_read: Callable[[], object] | None = None  # called once, before the next read
        self.after_read: Callable[[], object] | None = None  # called once, when the next read is over
        self.at_discard: Callable[[], object] | None = None  # called once, before audit rows are discarded
        self.at_write: Callable[[], object] | None = None  # called once, before the next change
        self.after_write: Callable[[], object] | None = None  # called once, when a change is committed
        self.at_scrub: Callable[[], object] | None = None  # called once, before the next scrub
        self.cannot_scrub = False  # a scrub does not succeed
        self.scrubs = 0  # so far
        self.writes = 0  # so far, those that failed as well
        self.refused: set[str] = set()  # names of threads that were refused a read
        self._store = store

    @contextmanager
    def read(self) -> Iterator[Reader]:
        at_read, self.at_read = self.at_read, None
        if at_read is not None:
            at_read()
        if self.cannot_read:
            self.refused.add(threading.current_thread().name)
            raise StoreUnavailableError("store failed to read: SQLITE_IOERR")
        with self._store.read() as reader:
            yield reader
        after_read, self.after_read = self.after_read, None
        if after_read is not None:
            after_read()

    def write(
        self,
        change: Callable[[Writer], T],
        *,
        counts: bool = True,
        alone: bool = False,
        on_commit: Callable[[T], None] | None = None,
    ) -> T:
        self.writes += 1
        at_write, self.at_write = self.at_write, None
        if at_write is not None:
            at_write()

        def run(writer: Writer) -> T:
            if self.is_corrupt:
                raise CorruptRowError("meta row does not decode")
            result = change(cast(Writer, _NoAudit(writer)) if self.cannot_audit else writer)
            if self.cannot_commit:
                raise StoreUnavailableError("store failed to commit: SQLITE_FULL")
            return result

        result = self._store.write(run, counts=counts, alone=alone, on_commit=on_commit)
        after_write, self.after_write = self.after_write, None
        if after_write is not None:
            after_write()
        if self.forgets_outcome:
            raise OutcomeUnknownError(_FORGOTTEN)
        return result

    def discard_audit(
        self, rows: Sequence[OutboxRow], head: AuditHead | None = None, *, at: tuple[int, int] | None = None
    ) -> bool:
        at_discard, self.at_discard = self.at_discard, None
        if at_discard is not None:
            at_discard()
        is_done = self._store.discard_audit(rows, head, at=at)
        if self.forgets_outcome:
            raise OutcomeUnknownError(_FORGOTTEN)
        return is_done

    def discard_requests(self, *, made_from: int, made_until: int, limit: int) -> int:
        return self._store.discard_requests(made_from=made_from, made_until=made_until, limit=limit)

    def find_fault(self) -> str:
        return self._store.find_fault()

    @property
    def is_scrub_due(self) -> bool:
        return self._store.is_scrub_due

    @property
    def unscrubbed(self) -> str:
        return self._store.unscrubbed

    def scrub(self, *, seconds: float) -> bool:
        self.scrubs += 1
        at_scrub, self.at_scrub = self.at_scrub, None
        if at_scrub is not None:
            at_scrub()
        if self.cannot_scrub:
            return False
        return self._store.scrub(seconds=seconds)

    def close(self) -> None:
        self._store.close()


class _NoAudit:
    """A writer that refuses audit entries."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def append_audit(self, nexus: str, entry: bytes, authenticate: Callable[[int, int], bytes]) -> OutboxRow:
        raise StoreUnavailableError("store failed to write: SQLITE_FULL")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)
