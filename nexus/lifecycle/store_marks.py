"""How far the store has come: the rollback marks that keepers remember, and those that this nexus gives them.

1. The book of marks begins with the genesis record of the store, which nothing has verified at that time. With another
   record than the true one, no true mark would count: the warden compares them before it admits a key.
2. A seal leaves a last mark of where the store stood, made after the last change. Without the store there is none:
   keepers then keep the marks that they have.
"""

import contextlib
import threading
from collections.abc import Callable

from common.clock import Clock
from common.errors import ShardholdError
from common.forms.mark import SignedMark
from nexus.keepers.marks import MarkBook, MarkMaker, NewerMark
from nexus.keys import records
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.opened import Serving
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.store.protocol import Meta, Store


class StoreMarks:
    """Changed by whoever holds *lock*; `book` and `find_newer` may be used by any thread."""

    def __init__(
        self, store: Store, lifecycle: Lifecycle, clock: Clock, lock: threading.RLock, pin: GenesisPin
    ) -> None:
        self._store = store
        self._pin = pin
        self._lifecycle = lifecycle
        self._clock = clock
        self._lock = lock
        self.book: MarkBook | None = None  # None: not begun yet
        self.last: SignedMark | None = None  # of a sealed store (rule 2)

    def require_book(self) -> MarkBook:
        """Return the book, which is begun with the stored genesis record (rule 1).

        Raises:
            StoreUnavailableError, CorruptRowError: The record cannot be read, or is not that of the configured cluster.
        """
        with self._lock:
            if self.book is None:
                with self._store.read() as reader:
                    genesis = records.load_genesis(reader)
                self._pin.check(genesis.fingerprint)
                self.book = MarkBook(genesis)
            return self.book

    def find_newer(self) -> NewerMark | None:
        """Return the newest mark if it is newer than the store."""
        return None if self.book is None else self.book.find_newer(self.load_meta())

    def begin_serving(self, serving: Serving) -> None:
        """Begin the book if it is not, and forget the last mark: the store goes on."""
        self.book = self.book or MarkBook(serving.genesis)
        self.last = None

    def make_finder(self, serving: Serving) -> Callable[[], SignedMark | None]:
        """Return what gives keepers the mark of the store, and None as soon as *serving* does not serve any more."""
        maker = MarkMaker(serving.genesis, serving.root_key, self._clock)

        def find() -> SignedMark | None:
            try:
                with self._lifecycle.borrow() as current:
                    if current is not serving:
                        return None  # asked for by an earlier duty; the key of this maker is wiped
                    return self._make(serving, maker)
            except ShardholdError:
                return None  # sealed or ending meanwhile; or the store cannot be read, which other calls say

        return find

    def make_last(self, serving: Serving) -> None:
        """Make the last mark before the keys of *serving* are wiped (rule 2)."""
        with contextlib.suppress(ShardholdError):  # the store cannot be read
            self.last = self._make(serving, MarkMaker(serving.genesis, serving.root_key, self._clock))

    def load_meta(self) -> Meta:
        """Load where the store stands."""
        with self._store.read() as reader:
            return reader.load_meta()

    def _make(self, serving: Serving, maker: MarkMaker) -> SignedMark:
        record = serving.shard_set.record
        return maker.make(self.load_meta(), generation=record.generation, set_number=record.set_number)
