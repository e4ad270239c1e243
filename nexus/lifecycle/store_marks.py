"""How far the store has come: the rollback marks that keepers remember, and those that this nexus gives them.

1. The book of marks begins with the genesis record of the store, which nothing has verified at that time. With another
   record than the true one, no true mark would count: the warden compares them before it admits a key.
2. A seal leaves a last mark of where the store stood, made after the last change. Without the store there is none:
   keepers then keep the marks that they have.
3. A mark is made only of a store that stands where this nexus left it: else a store that was put back would be
   laundered. What the nexus left is in the book before anybody looks at the store anew.
4. A store is older than a mark only if it still is when both were read a second time.
"""

import contextlib
import threading
from collections.abc import Callable

import structlog

from common.clock import Clock, to_micros
from common.errors import ShardholdError, StoreLostError
from common.forms.chain import Chain
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.forms.mark import AuditEnd, Mark, SignedMark
from nexus.keepers.marks import MarkBook, MarkMaker, NewerMark
from nexus.keepers.plan import list_leaving, list_members
from nexus.keys import records
from nexus.keys.floor import describe, differs_by_revision, is_below
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.lineage import find_chain
from nexus.keys.manifest import list_sets
from nexus.keys.opened import Serving
from nexus.keys.records import SetState
from nexus.keys.shard_set import Member
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.store.protocol import Meta, Store

log = structlog.get_logger("warden")


class StoreMarks:
    """Changed by whoever holds *lock*; `book` and `find_newer` may be used by any thread."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        clock: Clock,
        lock: threading.RLock,
        pin: GenesisPin,
        find_audit_end: Callable[[], AuditEnd],
    ) -> None:
        self._store = store
        self._pin = pin
        self._find_audit_end = find_audit_end
        self.epoch = NO_EPOCH  # of the store, as it was last known
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

    def find_newer(self, proved: Serving | None = None) -> NewerMark | None:
        """Return the newest mark if it is newer than the store (rule 4), whose chain *proved* has, if it is there."""
        newer: NewerMark | None = None
        for _ in range(2):
            known = self.book.list_known() if self.book is not None else None
            newer = None if known is None else known.find_newer(*self._load_position(proved))
            if newer is None:
                return None
        return newer

    def list_dead(self) -> list[str]:
        """Say which keepers hold a mark that was signed with a dead key; none while the nexus is not ready."""
        serving, book = self._lifecycle.find_serving(), self.book
        if serving is None or book is None:
            return []
        dead = book.list_known().list_dead(serving.chain)
        return [
            f"{keeper} remembers a rollback mark that was signed with the dead key of generation {mark.generation}: "
            f"timeline {mark.timeline}, revision {mark.revision}"
            for keeper, mark in dead
        ]

    def find_epoch(self) -> StoreEpoch:
        """Return the epoch of the store, as it was last known when the store cannot be read."""
        with contextlib.suppress(ShardholdError):
            position = self.load_meta().position
            self.epoch = max(self.epoch, StoreEpoch(position.timeline, position.epoch))
        return self.epoch

    def list_keepers(self) -> list[Member]:
        """Name the keepers of every set that the store tells of, whatever its state. Nothing of it is verified.

        What cannot be read tells of none: a seal goes on without.
        """
        try:
            with self._store.read() as reader:
                sets = list_sets(reader.load_meta().cluster_id, reader.load_controls())
        except ShardholdError as exc:
            log.warning("keepers of other sets are not known", why=str(exc))
            return []
        current = [one for one in sets if one.state is SetState.CURRENT]
        return [*list_leaving(sets), *(member for one in current for member in list_members(one))]

    def check_floor(self, serving: Serving) -> None:
        """See that the store stands where this nexus left it. Waits for the store when it seems to have gone further.

        Raises:
            StoreLostError: It does not.
        """
        floor, before = serving.floor, serving.floor.position
        found = self.load_meta().position
        floor.check_read(before, found)
        if not differs_by_revision(found, before):
            # A change may have been committed meanwhile. In a turn at the writer nothing of ours is in flight.
            self._store.write(lambda writer: floor.check_basis(writer.basis), counts=False, alone=True)

    def remember_floor(self, serving: Serving) -> None:
        """Enter what this nexus left of its store into the book (rule 3)."""
        if self.book is not None:
            position, root = serving.floor.position, serving.root
            mark = Mark(
                serving.cluster_id,
                timeline=position.timeline,
                revision=position.revision,
                control_revision=position.control_revision,
                epoch=position.epoch,
                generation=root.chain.generation,
                set_number=root.shard_set.record.set_number,
                chain_seq=root.chain.seq,
                made_at=to_micros(self._clock.now()),
            )
            self.book.take_own(mark, root.chain)

    def begin_serving(self, serving: Serving) -> None:
        """Begin the book if it is not, and forget the last mark: the store goes on."""
        self.book = self.book or MarkBook(serving.genesis)
        self.last = None
        position = serving.floor.position
        self.epoch = StoreEpoch(position.timeline, position.epoch)

    def make_finder(self, serving: Serving) -> Callable[[], SignedMark | None]:
        """Return what gives keepers the mark of the store, and None as soon as *serving* does not serve any more."""
        maker = MarkMaker(self._clock)

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
        self.remember_floor(serving)
        with contextlib.suppress(ShardholdError):  # the store cannot be read, or was put back
            self.last = self._make(serving, MarkMaker(self._clock))

    def load_meta(self) -> Meta:
        """Load where the store stands."""
        with self._store.read() as reader:
            return reader.load_meta()

    def _make(self, serving: Serving, maker: MarkMaker) -> SignedMark:
        """Make a mark of where the store stands (rule 3).

        Raises:
            StoreLostError: It does not stand where this nexus left it, or is about to go further.
        """
        before, meta = serving.floor.position, self.load_meta()
        left, found = serving.floor.position, meta.position
        if is_below(found, before):
            self._lifecycle.lose_store(describe(found, before))
        elif differs_by_revision(found, before) or differs_by_revision(found, left):
            return self._sign(meta, serving, maker)
        raise StoreLostError(describe(found, left))

    def _sign(self, meta: Meta, serving: Serving, maker: MarkMaker) -> SignedMark:
        root = serving.root  # after the floor: a root key that was replaced meanwhile signs nothing (`Root`)
        if root.chain.links and meta.position[:2] < root.chain.links[-1].position:
            raise StoreLostError("the store was read before the root key was replaced")
        mark, signed = maker.make(
            meta,
            self._find_audit_end(),
            chain=root.chain,
            signer=root.root_key,
            set_number=root.shard_set.record.set_number,
        )
        if self.book is not None:
            self.book.take_own(mark, root.chain)
        return signed

    def _load_position(self, proved: Serving | None) -> tuple[Meta, Chain]:
        """Load where the store stands; then take the chain of the key that was proved on it, or that of its rows."""
        meta = self.load_meta()
        proved = proved or self._lifecycle.find_serving()
        if proved is not None:
            return meta, proved.chain
        with self._store.read() as reader:
            return reader.load_meta(), find_chain(reader.load_controls())
