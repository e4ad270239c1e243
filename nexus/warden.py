"""The warden: brings the nexus to ready, and takes it back. Nothing else changes between recovering, sealed and ready.

- Keepers, or custodians, give a key; `nexus.serving.prove` has proved it before it comes here.
- A rollback mark that is newer than the store blocks the way: the proved key is held, and goes nowhere, until a
  superuser accepts the older store. One that comes while ready ends ready.
- Custodians know no points, and an accepted store may have lost its set: both draw a new set, which one change commits
  together with what it ends. Its shards are delivered afterwards, by refill; ready does not wait for them.
- A seal is committed first, then the keys are wiped and the keepers emptied. If it cannot be committed, that happens
  all the same, and the process ends.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from common.clock import Clock
from common.errors import ConflictError, ShardholdError, StoreUnavailableError, WrongStateError
from common.genesis import Genesis
from common.mark import SignedMark
from common.protected import ProtectedMemory
from nexus import control, records
from nexus.lifecycle import Lifecycle
from nexus.marks import MarkBook, MarkMaker, NewerMark
from nexus.quorum.pool import KeeperPool
from nexus.quorum.shard_set import Member, ShardSet, draw_set
from nexus.recovery import Recovery
from nexus.serving import Serving
from nexus.states import State
from nexus.store.protocol import Meta, Store, Writer

_DRAIN_S = 5.0  # for calls in flight when the keys are withdrawn
_MARK_WAIT_S = 0.5  # for the marks of keepers that have not answered, once the key is there

# Writes the audit entry of the change that it is called in.
WriteEntry = Callable[[Writer], None]

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
        if state is State.SEALED:
            obstacles.append("the nexus is sealed: custodians have to unseal it")
        elif state is not State.RECOVERING:
            obstacles.append(f"the nexus is {state}")
        elif self._recovery is not None and self._held is None:
            obstacles.append(self._recovery.missing)
        newer = self.find_newer_mark()
        if newer is not None:
            obstacles.append(_describe_newer(newer, self._load_meta()))
        return obstacles

    def find_newer_mark(self) -> NewerMark | None:
        """Return the newest rollback mark if it is newer than the store."""
        return None if self._book is None else self._book.find_newer(self._load_meta())

    def found(self, serving: Serving) -> None:
        """Serve the cluster that init has just committed."""
        with self._lock:
            self._install(serving)

    def admit(self, serving: Serving, write_entry: WriteEntry | None = None) -> bool:
        """Become ready with a proved key, or hold it while a newer mark blocks; return whether the nexus is ready.

        With *write_entry* the key came from custodians: its set is replaced, and the sealed flag cleared, in the change
        that the entry is written in. Takes over *serving*; on failure it is wiped.

        Raises:
            WrongStateError: The nexus became ready on another way.
            StoreUnavailableError: Nothing was committed.
        """
        with self._lock:
            try:
                self._check_admission(serving, by_custodians=write_entry is not None)
                if self._book is not None and self._book.find_newer(self._load_meta()) is not None:
                    self._hold(serving)
                    return False
                if write_entry is not None:
                    self._replace_set(serving, write_entry, lambda meta: replace(meta, sealed=False))
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
            if self._held is None:
                raise WrongStateError("there is no root key yet: keepers or custodians have to bring it back first")
            if (timeline, revision) != (meta.timeline, meta.revision):
                raise ConflictError(
                    f"store is at timeline {meta.timeline}, revision {meta.revision}; got {timeline}, {revision}"
                )
            self._replace_set(self._held, write_entry, lambda meta: _above(meta, newer))
            serving, self._held = self._held, None
            self._install(serving)
            return self._load_meta().timeline

    def seal(self, write_entry: WriteEntry, *, seconds: float) -> Emptied:
        """Commit the seal, wipe the keys, and empty the keepers: wait for them at most *seconds*.

        Raises:
            StoreUnavailableError: Not committed. Keys are wiped and keepers emptied all the same, and the process ends.
        """
        with self._lock:
            failure: StoreUnavailableError | None = None
            try:
                self._store.write(lambda writer: _write_seal(writer, write_entry))
            except StoreUnavailableError as exc:
                failure = exc
            mark = self._make_mark()
            self._drop_held()
            self._lifecycle.withdraw(State.SEALED, seconds=_DRAIN_S)
            self._pool.empty(self._require_book(), mark)
            self._wake.set()
        emptied = self._pool.wait_emptied(seconds=seconds)
        if failure is not None:
            self._lifecycle.give_up(f"the seal could not be committed: {failure}")
            raise failure
        return Emptied(emptied, len(self._pool.seats))

    def _run(self) -> None:
        while not self._ending:
            self._wake.clear()
            match self._lifecycle.state:
                case State.RECOVERING if self._held is None:
                    self._bring_back()
                case State.SEALED:
                    self._pool.empty(self._require_book(), None)
                    self._wake.wait()
                case State.READY:
                    self._wake.wait(1.0)
                    self._check_marks()
                case _:
                    self._wake.wait()

    def _bring_back(self) -> None:
        book = self._require_book()
        recovery = self._recovery = Recovery(self._store, self._pool, book, self._memory, self._clock)
        serving = recovery.run(self._wake)
        if serving is None:
            return
        book.wait_answers(len(self._pool.seats), seconds=_MARK_WAIT_S)
        try:
            self.admit(serving)
        except WrongStateError as exc:
            log.info("recovered, but not needed any more", why=str(exc))

    def _check_marks(self) -> None:
        """End ready when a mark that is newer than the store has come."""
        with self._lock:
            if self._lifecycle.state is State.READY and (newer := self.find_newer_mark()) is not None:
                log.critical("store was put back", what=_describe_newer(newer, self._load_meta()))
                self._lifecycle.withdraw(State.RECOVERING, seconds=_DRAIN_S)

    def _check_admission(self, serving: Serving, *, by_custodians: bool) -> None:
        state = self._lifecycle.state
        if state is not State.RECOVERING and not (by_custodians and state is State.SEALED):
            raise WrongStateError(f"the nexus is {state} meanwhile")
        with self._store.read() as reader:
            current = records.find_current_set(reader.load_controls())
        if current.set_id != serving.shard_set.record.set_id:
            raise WrongStateError("the current set is another one meanwhile")

    def _install(self, serving: Serving) -> None:
        maker = MarkMaker(serving.genesis, serving.root_key, self._clock)
        self._book = self._book or MarkBook(serving.genesis)
        self._lifecycle.install(serving)
        self._pool.keep(serving.shard_set, self._book, lambda: self._find_mark(maker))
        self._wake.set()

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

    def _replace_set(self, serving: Serving, write_entry: WriteEntry, edit: Callable[[Meta], Meta]) -> None:
        """Draw a new set for the same root key, commit it, and serve it from here on."""
        drawn: list[ShardSet] = []
        try:
            self._store.write(lambda writer: drawn.append(self._write_set(writer, serving, write_entry, edit)))
        except BaseException:
            for shard_set in drawn:
                shard_set.release()
            raise
        old, serving.shard_set = serving.shard_set, drawn[0]
        old.release()

    def _write_set(
        self, writer: Writer, serving: Serving, write_entry: WriteEntry, edit: Callable[[Meta], Meta]
    ) -> ShardSet:
        old = serving.shard_set.record
        meta = edit(writer.load_meta())
        record, points = draw_set(
            serving.root_key.view,
            [Member(member.name, member.spiffe_id, member.address) for member in old.members],
            threshold=old.threshold,
            generation=old.generation,
            set_number=meta.last_set_number + 1,
            timeline=meta.timeline,
            cluster_id=serving.cluster_id,
            memory=self._memory,
        )
        dead = records.replace_state(old, records.SetState.DEAD)
        put = {(records.SHARD_SET, str(one.set_number)): records.encode(one) for one in (dead, record)}
        control.change(
            writer,
            serving.root_key,
            put=put,
            edit=lambda meta: replace(edit(meta), last_set_number=record.set_number),
        )
        write_entry(writer)
        return ShardSet(record, record.label(serving.cluster_id, serving.genesis.fingerprint), points)

    def _find_mark(self, maker: MarkMaker) -> SignedMark | None:
        try:
            with self._lifecycle.borrow() as serving:
                record = serving.shard_set.record
                return maker.make(self._load_meta(), generation=record.generation, set_number=record.set_number)
        except ShardholdError:
            return None  # sealed or ending meanwhile; or the store cannot be read, which other calls say

    def _make_mark(self) -> SignedMark | None:
        try:
            with self._lifecycle.borrow() as serving:
                return self._find_mark(MarkMaker(serving.genesis, serving.root_key, self._clock))
        except ShardholdError:
            return None  # sealed from recovering: there is no key to sign with

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


def _write_seal(writer: Writer, write_entry: WriteEntry) -> None:
    writer.save_meta(replace(writer.load_meta(), sealed=True))
    write_entry(writer)


def _above(meta: Meta, newer: NewerMark) -> Meta:
    """A new timeline, and numbers that no store of the timelines before has given out."""
    mark = newer.mark
    return replace(
        meta,
        sealed=False,
        timeline=max(meta.timeline, mark.timeline) + 1,
        last_generation=max(meta.last_generation, mark.generation),
        last_set_number=max(meta.last_set_number, mark.set_number),
    )


def _describe_newer(newer: NewerMark, meta: Meta) -> str:
    mark = newer.mark
    return (
        f"the store is older than a rollback mark: it is at timeline {meta.timeline}, revision {meta.revision}, and "
        f"{', '.join(newer.keepers)} remember timeline {mark.timeline}, revision {mark.revision}"
    )
