"""The warden: brings the nexus to ready, and takes it back. Nothing else changes between recovering, sealed and ready.

- Keepers, or custodians, give a key; `nexus.keys.opened.prove` has proved it before it comes here.
- A rollback mark that is newer than the store blocks the way: the proved key is held, and goes nowhere, until a
  superuser accepts the older store. One that comes while ready ends ready.
- What custodians bring back, and an accepted older store, get a new set (`nexus.keys.replacement`). Its shards are
  delivered afterwards, by refill; ready does not wait for them.
- A seal is committed first, then calls in flight end, the keys are wiped, and the keepers emptied, each once it took a
  last mark of where the store stood. If the seal cannot be committed, that happens all the same, and the process ends;
  so it does when the disk hangs: then nothing waits for the store, nor for whoever waits for it, and no mark is made.
  A seal without a root key takes no revision: it could bring a store that was put back beyond the mark that says so.
- What the store or a keeper does wrong meanwhile is said, and tried again: the warden ends with the process only.
"""

import contextlib
import threading
from dataclasses import dataclass, replace

import structlog

from common.clock import Clock
from common.errors import (
    ConflictError,
    CorruptRowError,
    OutcomeUnknownError,
    SealedError,
    ShardholdError,
    StoreUnavailableError,
    WrongStateError,
)
from common.forms.genesis import Genesis
from common.forms.mark import SignedMark
from common.keys.protected import ProtectedMemory
from common.time_limit import finish_within
from nexus.keepers.marks import MarkBook, MarkMaker, NewerMark
from nexus.keepers.pool import KeeperPool
from nexus.keys import manifest, records
from nexus.keys.opened import Serving
from nexus.keys.replacement import WriteEntry, replace_set
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.recovery import Recovery
from nexus.lifecycle.states import State
from nexus.store.protocol import Meta, Store, Writer

_DRAIN_S = 5.0  # for calls in flight when the keys are withdrawn
# For the commit of a seal: more than the store itself waits for a foreign lock, and little enough that a caller who
# waits for 10 s still hears how it ended.
SEAL_COMMIT_S = 6.0
_HUNG_DRAIN_S = 1.0  # for calls in flight when the store hangs: those that wait for it do not end
_MARK_WAIT_S = 0.5  # for the marks of keepers that have not answered, once the key is there
_RETRY_S = 1.0  # between two looks at marks, and before what failed is tried again

log = structlog.get_logger("warden")


@dataclass(frozen=True, slots=True)
class Emptied:
    """How far a seal has come with the keepers."""

    keepers_emptied: int
    keepers: int


class Warden:
    """Thread-safe: one transition at a time."""

    def __init__(
        self, *, store: Store, lifecycle: Lifecycle, pool: KeeperPool, memory: ProtectedMemory, clock: Clock
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._pool = pool
        self._memory = memory
        self._clock = clock
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._ending = False
        self._recovery: Recovery | None = None
        self._held: Serving | None = None  # proved, and blocked by a newer mark
        self._book: MarkBook | None = None
        self._last_mark: SignedMark | None = None  # of a sealed store, made when it was sealed
        self._trouble = ""  # what keeps the warden itself from going on
        self._thread = threading.Thread(target=self._run, name="warden", daemon=True)

    def start(self) -> None:
        """Begin to bring the nexus back, if it has a cluster."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wipe what is held."""
        self._ending = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._drop_held()

    def list_obstacles(self) -> list[str]:
        """Say what keeps the nexus from being ready; empty when it is."""
        state = self._lifecycle.state
        if state is State.READY:
            return []
        obstacles = []
        recovery = self._recovery
        if state is State.SEALED:
            obstacles.append("the nexus is sealed: custodians have to unseal it")
        elif recovery is not None and self._held is None:
            obstacles.append(recovery.missing)
        if self._trouble:
            obstacles.append(self._trouble)
        try:
            newer = self.find_newer_mark()
            if newer is not None:
                obstacles.append(newer.describe(self._load_meta()))
        except ShardholdError as exc:
            obstacles.append(str(exc))
        return obstacles or [f"the nexus is {state}"]

    def count_lacking_shards(self) -> int:
        """Count the shards that are still to come before there can be a key; 0 when none is waited for."""
        recovery = self._recovery
        is_waiting = self._lifecycle.state is State.RECOVERING and self._held is None
        return recovery.lacking if recovery is not None and is_waiting else 0

    def find_newer_mark(self) -> NewerMark | None:
        """Return the newest rollback mark if it is newer than the store."""
        return None if self._book is None else self._book.find_newer(self._load_meta())

    def found(self, serving: Serving) -> None:
        """Serve the cluster that init has just committed."""
        with self._lock:
            self._install(serving)

    def admit(
        self, serving: Serving, write_entry: WriteEntry | None = None, *, asked_in: State = State.RECOVERING
    ) -> bool:
        """Become ready with a proved key, or hold it while a newer mark blocks; return whether the nexus is ready.

        With *write_entry* the key came from custodians: its set is replaced, and the sealed flag cleared, in the change
        that the entry is written in. Takes over *serving*; on failure it is wiped. Waits a moment for marks.

        Raises:
            WrongStateError: The nexus is not in the state *asked_in* any more, or its set is another one.
            CorruptRowError: The genesis record is not the one that marks were held against; the process ends.
            StoreUnavailableError: Nothing was committed.
        """
        try:
            self._require_book().wait_answers(len(self._pool.seats), seconds=_MARK_WAIT_S)
        except BaseException:
            serving.release()
            raise
        with self._lock:
            try:
                self._check_admission(serving, asked_in)
                if self._require_book().find_newer(self._load_meta()) is not None:
                    self._hold(serving)
                    return False
                if write_entry is not None:
                    replace_set(self._store, serving, write_entry, _unsealed, self._memory)
            except BaseException:
                serving.release()
                raise
            self._install(serving)
            return True

    def accept(self, timeline: int, revision: int, write_entry: WriteEntry) -> int:
        """Accept the store as it is, older than a mark says; return the timeline that begins.

        Raises:
            WrongStateError: No newer mark blocks, or there is no proved key yet.
            ConflictError: The store is at another position.
            StoreUnavailableError: Nothing was committed; it stays blocked.
        """
        with self._lock:
            meta = self._load_meta()
            newer = self._book.find_newer(meta) if self._book is not None else None
            if newer is None:
                raise WrongStateError("no newer rollback mark blocks this nexus: there is nothing to accept")
            held = self._held
            if held is None:
                raise WrongStateError("there is no root key yet: keepers or custodians have to bring it back first")
            if (timeline, revision) != (meta.timeline, meta.revision):
                raise ConflictError(
                    f"store is at timeline {meta.timeline}, revision {meta.revision}; got {timeline}, {revision}"
                )
            replace_set(self._store, held, write_entry, lambda meta: _above(meta, newer), self._memory)
            self._held = None
            self._install(held)
            return held.shard_set.record.timeline  # of the set that was just drawn; the store need not be read for it

    def seal(self, write_entry: WriteEntry, *, seconds: float) -> Emptied:
        """Commit the seal, wipe the keys, and empty the keepers: wait for them at most *seconds*.

        Raises:
            StoreUnavailableError, CorruptRowError: Not committed, or nobody knows. Keys are wiped and keepers emptied
                all the same, and the process ends.
        """
        deadline = self._clock.monotonic() + seconds
        has_lock = self._lock.acquire(timeout=SEAL_COMMIT_S)
        try:
            hangs = StoreUnavailableError("another call waits for the store, and goes on waiting")
            failure = self._commit_seal(write_entry) if has_lock else hangs
            if failure is hangs or isinstance(failure, OutcomeUnknownError):
                self._shut_for_good()
            else:
                failure = self._shut() or failure
        finally:
            if has_lock:
                self._lock.release()
        emptied = Emptied(self._pool.wait_emptied(seconds=deadline - self._clock.monotonic()), len(self._pool.seats))
        if failure is not None:
            self._lifecycle.give_up(f"the seal could not be committed: {failure}")
            raise _explain_seal(failure, emptied) from failure
        return emptied

    def _commit_seal(self, write_entry: WriteEntry) -> ShardholdError | None:
        """Return why the seal is not committed, None when it is."""

        def commit() -> None:
            if self._lifecycle.state is State.READY:
                self._store.write(lambda writer: _write_seal(writer, write_entry))
            else:
                # The caller's entry is then written like that of a read.
                self._store.write(_set_sealed, counts=False)

        try:
            finish_within(self._clock, SEAL_COMMIT_S, commit, name="commit of the seal")
        except ShardholdError as exc:
            return exc
        return None

    def _shut(self) -> ShardholdError | None:
        """Wipe the keys and let the keepers be emptied; return why the latter cannot be."""
        self._drop_held()
        # Calls in flight may still commit. The mark is made behind the last of them.
        self._lifecycle.withdraw(State.SEALED, seconds=_DRAIN_S, last_use=self._make_last_mark)
        self._wake.set()  # before the new duty: a recovery that is under way gives none any more
        try:
            self._pool.empty(self._require_book(), self._last_mark)
        except ShardholdError as exc:
            return exc  # the store does not tell whose sets to drop
        return None

    def _shut_for_good(self) -> None:
        """Do the same without the store, and perhaps without the lock: whoever has it installs no key any more."""
        self._lifecycle.withdraw(State.SEALED, seconds=_HUNG_DRAIN_S, for_good=True)
        self._drop_held()
        self._wake.set()
        if self._book is not None:
            self._pool.empty(self._book, self._last_mark)

    def _run(self) -> None:
        while True:
            self._wake.clear()  # before all that it may announce is looked at
            if self._ending:
                return
            try:
                self._look_after()
            except ShardholdError as exc:
                if str(exc) != self._trouble:
                    log.warning("cannot go on yet", why=str(exc))
                self._trouble = str(exc)
                self._clock.wait(self._wake, _RETRY_S)

    def _look_after(self) -> None:
        match self._lifecycle.state:
            case State.RECOVERING if self._held is None:
                self._bring_back()
            case State.SEALED:
                self._pool.empty(self._require_book(), self._last_mark)
                self._trouble = ""
                self._wake.wait()
            case State.READY:
                self._clock.wait(self._wake, _RETRY_S)
                self._check_marks()
                self._trouble = ""
            case _:
                self._wake.wait()

    def _bring_back(self) -> None:
        book = self._require_book()
        self._trouble = ""
        recovery = self._recovery = Recovery(self._store, self._pool, book, self._memory, self._clock)
        serving = recovery.run(self._wake)
        if serving is None:
            return
        try:
            self.admit(serving)
        except WrongStateError as exc:
            log.info("recovered, but not needed any more", why=str(exc))

    def _check_marks(self) -> None:
        """End ready when a mark that is newer than the store has come."""
        with self._lock:
            if self._lifecycle.state is State.READY and (newer := self.find_newer_mark()) is not None:
                log.critical("store was put back", what=newer.describe(self._load_meta()))
                self._recovery = None
                self._lifecycle.withdraw(State.RECOVERING, seconds=_DRAIN_S)

    def _check_admission(self, serving: Serving, asked_in: State) -> None:
        state = self._lifecycle.state
        if state is not asked_in:
            raise WrongStateError(f"the nexus is {state} meanwhile")
        # The book was begun with a record that nothing had verified: with another one than the true one, no true mark
        # would count.
        if self._require_book().fingerprint != serving.genesis.fingerprint:
            reason = "genesis record is another one than at the start"
            self._lifecycle.give_up(reason)
            raise CorruptRowError(reason)
        with self._store.read() as reader:
            current = manifest.find_current_set(serving.cluster_id, reader.load_controls())
        if current.set_id != serving.shard_set.record.set_id:
            raise WrongStateError("the current set is another one meanwhile")

    def _install(self, serving: Serving) -> None:
        maker = MarkMaker(serving.genesis, serving.root_key, self._clock)
        book = self._book = self._book or MarkBook(serving.genesis)
        self._recovery = self._last_mark = None
        try:
            self._lifecycle.install(serving)
        except SealedError:
            serving.release()
            raise
        self._wake.set()  # before the new duty, as in `seal`
        self._pool.keep(serving.shard_set, book, lambda: self._find_mark(serving, maker))

    def _hold(self, serving: Serving) -> None:
        self._drop_held()
        self._held = serving
        self._lifecycle.enter(State.RECOVERING)
        log.critical("blocked", obstacles=self.list_obstacles())
        self._wake.set()

    def _drop_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _find_mark(self, serving: Serving, maker: MarkMaker) -> SignedMark | None:
        try:
            with self._lifecycle.borrow() as current:
                if current is not serving:
                    return None  # asked for by a duty of before; the key of this maker is wiped
                return self._make_mark(serving, maker)
        except ShardholdError:
            return None  # sealed or ending meanwhile; or the store cannot be read, which other calls say

    def _make_last_mark(self, serving: Serving) -> None:
        with contextlib.suppress(ShardholdError):  # the store cannot be read: keepers keep the marks that they have
            self._last_mark = self._make_mark(serving, MarkMaker(serving.genesis, serving.root_key, self._clock))

    def _make_mark(self, serving: Serving, maker: MarkMaker) -> SignedMark:
        record = serving.shard_set.record
        return maker.make(self._load_meta(), generation=record.generation, set_number=record.set_number)

    def _require_book(self) -> MarkBook:
        with self._lock:
            if self._book is None:
                self._book = MarkBook(self._load_genesis())
            return self._book

    def _load_genesis(self) -> Genesis:
        with self._store.read() as reader:
            return records.load_genesis(reader)

    def _load_meta(self) -> Meta:
        with self._store.read() as reader:
            return reader.load_meta()


def _explain_seal(failure: ShardholdError, emptied: Emptied) -> ShardholdError:
    known = "may be committed or not" if isinstance(failure, OutcomeUnknownError) else "is not committed"
    return type(failure)(
        f"the seal {known}: {failure}; keys are wiped, {emptied.keepers_emptied} of {emptied.keepers} keepers hold no "
        "shard any more, and the nexus ends"
    )


def _write_seal(writer: Writer, write_entry: WriteEntry) -> None:
    _set_sealed(writer)
    write_entry(writer)


def _set_sealed(writer: Writer) -> None:
    writer.save_meta(replace(writer.load_meta(), sealed=True))


def _unsealed(meta: Meta) -> Meta:
    return replace(meta, sealed=False)


def _above(meta: Meta, newer: NewerMark) -> Meta:
    """A new timeline, and numbers that no store of the timelines before has given out."""
    mark = newer.mark
    return replace(
        meta,
        sealed=False,
        timeline=max(meta.timeline, mark.timeline) + 1,
        last_generation=max(meta.last_generation, newer.last_generation),
        last_set_number=max(meta.last_set_number, newer.last_set_number),
    )
