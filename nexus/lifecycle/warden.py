"""The warden: brings the nexus to ready, and takes it back. Nothing else changes between recovering, sealed and ready.

- `nexus.lifecycle.transitions` says what follows from what has happened, and in which order it is done.
- A proved key is admitted with the current set, the genesis record that marks were held against, and no newer mark:
  each is looked at under the lock, in which the key is then installed.
- When the store or a keeper fails, the warden says so and tries again: its thread ends with the process only.
"""

import threading
from dataclasses import replace

import structlog

from common.clock import Clock
from common.errors import ConflictError, CorruptRowError, ShardholdError, WrongStateError
from common.keys.protected import ProtectedMemory
from nexus.keepers.marks import NewerMark
from nexus.keepers.pool import KeeperPool
from nexus.keys import manifest
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.opened import Serving
from nexus.keys.replacement import WriteEntry, replace_set
from nexus.lifecycle.executor import Executor
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.recovery import KeeperRecovery
from nexus.lifecycle.sealing import Emptied, Sealing
from nexus.lifecycle.states import State
from nexus.lifecycle.store_marks import StoreMarks
from nexus.lifecycle.transitions import Duty, Event, Transition, find_duty
from nexus.store.protocol import Meta, Store

_MARK_WAIT_S = 0.5  # for the marks of keepers that have not answered, once the key is there
_ANY = GenesisPin()
_RETRY_S = 1.0  # between two looks at marks, and before what failed is tried again

log = structlog.get_logger("warden")


class Warden:
    """Thread-safe: one transition at a time."""

    def __init__(
        self,
        *,
        store: Store,
        lifecycle: Lifecycle,
        pool: KeeperPool,
        memory: ProtectedMemory,
        clock: Clock,
        pin: GenesisPin = _ANY,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._pool = pool
        self._memory = memory
        self._clock = clock
        self._lock = threading.RLock()
        self._marks = StoreMarks(store, lifecycle, clock, self._lock, pin)
        self._executor = Executor(lifecycle, pool, self._marks)
        self._sealing = Sealing(
            store=store, lifecycle=lifecycle, pool=pool, executor=self._executor, lock=self._lock, clock=clock
        )
        self._ending = False
        self._recovery: KeeperRecovery | None = None
        self._trouble = ""  # what keeps the warden itself from going on
        self._thread = threading.Thread(target=self._run, name="warden", daemon=True)

    def start(self) -> None:
        """Begin to bring the nexus back, if it has a cluster."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wipe the key that is held."""
        self._ending = True
        self._executor.wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._executor.wipe_held()

    def list_obstacles(self) -> list[str]:
        """Say what keeps the nexus from being ready; empty when it is."""
        state = self._lifecycle.state
        if state is State.READY:
            return []
        obstacles = []
        recovery = self._recovery
        if state is State.SEALED:
            obstacles.append("the nexus is sealed: custodians have to unseal it")
        elif recovery is not None and self._executor.held is None:
            obstacles.append(recovery.missing)
        if self._trouble:
            obstacles.append(self._trouble)
        try:
            newer = self.find_newer_mark()
            if newer is not None:
                obstacles.append(newer.describe(self._marks.load_meta()))
        except ShardholdError as exc:
            obstacles.append(str(exc))
        return obstacles or [f"the nexus is {state}"]

    def count_lacking_shards(self) -> int:
        """Count the shards that are still to come before there can be a key; 0 when none is waited for."""
        recovery = self._recovery
        is_waiting = self._lifecycle.state is State.RECOVERING and self._executor.held is None
        return recovery.lacking if recovery is not None and is_waiting else 0

    def find_newer_mark(self) -> NewerMark | None:
        """Return the newest rollback mark if it is newer than the store."""
        return self._marks.find_newer()

    def begin_serving(self, serving: Serving) -> None:
        """Serve the cluster that init has just committed."""
        with self._lock:
            self._become_ready(self._executor.find_transition(Event.CLUSTER_FOUNDED), serving)

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
            self._marks.require_book().wait_answers(len(self._pool.seats), seconds=_MARK_WAIT_S)
        except BaseException:
            serving.release()
            raise
        with self._lock:
            try:
                self._check_admission(serving, asked_in)
                transition = self._judge(by_custodians=write_entry is not None)
                if transition.replaces_set and write_entry is not None:
                    replace_set(self._store, serving, write_entry, _unsealed, self._memory)
            except BaseException:
                serving.release()
                raise
            if transition.state is State.READY:
                self._become_ready(transition, serving)
                return True
            self._executor.carry_out_with(transition, serving)
            log.critical("blocked", obstacles=self.list_obstacles())
            return False

    def accept(self, timeline: int, revision: int, write_entry: WriteEntry) -> int:
        """Accept the store as it is, older than a mark says; return the timeline that begins.

        Raises:
            WrongStateError: No newer mark blocks, or there is no proved key yet.
            ConflictError: The store is at another position.
            StoreUnavailableError: Nothing was committed; it stays blocked.
        """
        with self._lock:
            meta = self._marks.load_meta()
            newer = self._marks.book.find_newer(meta) if self._marks.book is not None else None
            if newer is None:
                raise WrongStateError("no newer rollback mark blocks this nexus: there is nothing to accept")
            held = self._executor.held
            if held is None:
                raise WrongStateError("there is no root key yet: keepers or custodians have to bring it back first")
            if (timeline, revision) != (meta.timeline, meta.revision):
                raise ConflictError(
                    f"store is at timeline {meta.timeline}, revision {meta.revision}; got {timeline}, {revision}"
                )
            transition = self._executor.find_transition(Event.OLDER_STORE_ACCEPTED)
            replace_set(self._store, held, write_entry, lambda meta: _above(meta, newer), self._memory)
            self._become_ready(transition, held)
            return held.shard_set.record.timeline  # of the set that was just drawn; the store need not be read for it

    def seal(self, write_entry: WriteEntry, *, seconds: float) -> Emptied:
        """Commit the seal, wipe the keys, and empty the keepers: wait for them at most *seconds*.

        Raises:
            StoreUnavailableError, CorruptRowError: Not committed, or nobody knows. Keys are wiped and keepers emptied
                all the same, and the process ends.
        """
        return self._sealing.seal(write_entry, seconds=seconds)

    def _run(self) -> None:
        while True:
            self._executor.wake.clear()  # before anything that it may announce is looked at
            if self._ending:
                return
            try:
                self._do_duty()
            except ShardholdError as exc:
                if str(exc) != self._trouble:
                    log.warning("cannot go on yet", why=str(exc))
                self._trouble = str(exc)
                self._clock.wait(self._executor.wake, _RETRY_S)

    def _do_duty(self) -> None:
        match find_duty(self._executor.situation):
            case Duty.RECOVER:
                self._recover()
            case Duty.EMPTY:
                self._pool.empty(self._marks.require_book(), self._marks.last)
                self._trouble = ""
                self._executor.wake.wait()
            case Duty.CHECK_MARKS:
                self._clock.wait(self._executor.wake, _RETRY_S)
                self._check_marks()
                self._trouble = ""
            case Duty.REST:
                self._executor.wake.wait()

    def _recover(self) -> None:
        book = self._marks.require_book()
        self._trouble = ""
        recovery = self._recovery = KeeperRecovery(self._store, self._pool, book, self._memory, self._clock)
        serving = recovery.run(self._executor.wake)
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
                log.critical("store was put back", what=newer.describe(self._marks.load_meta()))
                self._recovery = None
                self._executor.carry_out(self._executor.find_transition(Event.NEWER_MARK))

    def _check_admission(self, serving: Serving, asked_in: State) -> None:
        state = self._lifecycle.state
        if state is not asked_in:
            raise WrongStateError(f"the nexus is {state} meanwhile")
        # Marks were held against a genesis record that nothing had verified. With another record than the true one, no
        # true mark counted.
        if self._marks.require_book().fingerprint != serving.genesis.fingerprint:
            reason = "genesis record is another one than at the start"
            self._lifecycle.give_up(reason)
            raise CorruptRowError(reason)
        with self._store.read() as reader:
            current = manifest.find_current_set(serving.cluster_id, reader.load_controls())
        if current.set_id != serving.shard_set.record.set_id:
            raise WrongStateError("the current set is another one meanwhile")

    def _judge(self, *, by_custodians: bool) -> Transition:
        if self.find_newer_mark() is not None:
            return self._executor.find_transition(Event.KEY_BEHIND_MARK)
        event = Event.KEY_FROM_CUSTODIANS if by_custodians else Event.KEY_FROM_KEEPERS
        return self._executor.find_transition(event)

    def _become_ready(self, transition: Transition, serving: Serving) -> None:
        self._recovery = None
        self._executor.carry_out_with(transition, serving)


def _unsealed(meta: Meta) -> Meta:
    return replace(meta, sealed=False)


def _above(meta: Meta, newer: NewerMark) -> Meta:
    """Begin a new timeline, with numbers that no store of the earlier timelines has given out."""
    mark = newer.mark
    return replace(
        meta,
        sealed=False,
        timeline=max(meta.timeline, mark.timeline) + 1,
        last_generation=max(meta.last_generation, newer.last_generation),
        last_set_number=max(meta.last_set_number, newer.last_set_number),
    )
