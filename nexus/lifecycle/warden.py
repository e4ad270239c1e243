"""The warden: brings the nexus to ready, and takes it back. Nothing else changes between recovering, sealed and ready.

- `nexus.lifecycle.transitions` says what follows from what has happened, and in which order it is done.
- A proved key is admitted with the current set, the genesis record that marks were held against, and no newer mark:
  each is looked at under the lock, in which the key is then installed.
- A store that is not as this nexus left it ends ready (`Lifecycle.lose_store`); the reason is an obstacle until the
  nexus is ready again. *inspect_store* says what is wrong with the files of the store as they are now.
- While ready, the store is looked at once a second: it stands where this nexus left it (`nexus.keys.floor`).
- When the store or a keeper fails, the warden says so and tries again: its thread ends with the process only.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

import structlog

from common.clock import Clock, to_micros
from common.errors import (
    ConflictError,
    CorruptRowError,
    OutcomeUnknownError,
    ShardholdError,
    StoreLostError,
    StoreUnavailableError,
    WrongStateError,
)
from common.forms.audit.entry import Entry
from common.forms.epoch import next_epoch
from common.forms.mark import NO_AUDIT, AuditEnd
from common.keys.protected import ProtectedMemory
from nexus.keepers.marks import NewerMark
from nexus.keepers.pool import KeeperPool
from nexus.keys import manifest
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.opened import Serving
from nexus.keys.outbox import append_entry
from nexus.keys.replacement import WriteEntry, replace_set
from nexus.lifecycle.executor import Executor
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.recovery import KeeperRecovery
from nexus.lifecycle.renewal import is_due, renew_controls
from nexus.lifecycle.sealing import Emptied, Sealing
from nexus.lifecycle.states import NO_CLUSTER, State
from nexus.lifecycle.store_marks import StoreMarks
from nexus.lifecycle.transitions import Duty, Event, Transition, find_duty
from nexus.lifecycle.way_back import WayBack
from nexus.store.protocol import Meta, Store, Writer

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
        inspect_store: Callable[[], str] = lambda: "",
        find_audit_gap: Callable[[Serving], str] = lambda serving: "",
        find_audit_end: Callable[[], AuditEnd] = lambda: NO_AUDIT,
    ) -> None:
        """*inspect_store* says why there is no serving from the store as it is now; empty: nothing is wrong.

        *find_audit_gap* says what the audit files lack that the store remembers; empty: nothing. *find_audit_end* says
        how far the audit has come, for the marks; it waits for nothing.
        """
        self._store = store
        self._inspect_store = inspect_store
        self._lifecycle = lifecycle
        self._pool = pool
        self._memory = memory
        self._clock = clock
        self._lock = threading.RLock()
        self._marks = StoreMarks(store, lifecycle, clock, self._lock, pin, find_audit_end)
        self._executor = Executor(lifecycle, pool, self._marks)
        self._sealing = Sealing(
            store=store,
            lifecycle=lifecycle,
            pool=pool,
            executor=self._executor,
            lock=self._lock,
            clock=clock,
        )
        self._way_back = WayBack(store, lifecycle, clock)
        self._ending = False
        self._recovery: KeeperRecovery | None = None
        self._find_audit_end = find_audit_end
        self._find_audit_gap = find_audit_gap
        self._audit_gap = ""  # why the held key is not served with, when that is the audit
        self._store_fault = ""  # why the store ended ready, until the nexus is ready again
        self._lost_cluster = ""  # that keepers serve while the store knows of none, as it was told last
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
        if state in NO_CLUSTER and (serving := self._pool.describe_serving()):
            obstacles.append(f"the nexus is {state}, but {serving}: put the store of that cluster back")
        if self._store_fault:
            obstacles.append(f"ready ended: {self._store_fault}")
        obstacles += filter(None, (self._trouble, self._inspect_store()))
        if self._audit_gap and self._executor.held is not None:
            obstacles.append(f"{self._audit_gap}: find out why, or 'pilot audit accept-new-chain'")
        try:
            newer = self.find_newer_mark()
            if newer is not None:
                obstacles.append(newer.describe(self._marks.load_meta()))
        except ShardholdError as exc:
            obstacles.append(str(exc))
        return list(dict.fromkeys(obstacles)) or [f"the nexus is {state}"]

    def list_alarms(self) -> list[str]:
        """Say what somebody has to see to although the nexus serves."""
        return [*filter(None, [self._way_back.fault]), *self._marks.list_dead()]

    @property
    def is_way_back_broken(self) -> bool:
        """Whether custodians could not bring the cluster back, as the store was found last."""
        return bool(self._way_back.fault)

    def count_lacking_shards(self) -> int:
        """Count the shards that are still to come before there can be a key; 0 when none is waited for."""
        recovery = self._recovery
        is_waiting = self._lifecycle.state is State.RECOVERING and self._executor.held is None
        return recovery.lacking if recovery is not None and is_waiting else 0

    def find_newer_mark(self) -> NewerMark | None:
        """Return the newest rollback mark if it is newer than the store."""
        return self._marks.find_newer(self._executor.held)

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
                transition = self._judge(serving, by_custodians=write_entry is not None)
                if transition.replaces_set and write_entry is not None:
                    replace_set(self._store, serving, write_entry, self._unsealed, self._memory)
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
            newer = self.find_newer_mark()
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
            replace_set(self._store, held, write_entry, lambda meta: self._above(meta, newer), self._memory)
            self._become_ready(transition, held)
            return held.shard_set.record.timeline  # of the set that was just drawn; the store need not be read for it

    def require_audit_gap(self) -> str:
        """Return what the audit files lack, if that blocks this nexus.

        Raises:
            WrongStateError: It does not, or a newer mark blocks too.
        """
        self._require_held_for_audit()
        if self.find_newer_mark() is not None:
            raise WrongStateError("the store is older than a mark: accepting that begins a new chain too")
        return self._audit_gap

    def accept_new_chain(self, write_entry: WriteEntry) -> None:
        """Serve although the audit files are not those that the store remembers.

        Raises:
            WrongStateError: That does not block this nexus.
            StoreUnavailableError: Nothing was committed; it stays blocked.
        """
        with self._lock:
            self.require_audit_gap()
            held = self._require_held_for_audit()
            transition = self._executor.find_transition(Event.NEW_CHAIN_ACCEPTED)
            replace_set(self._store, held, write_entry, self._unsealed, self._memory)
            self._become_ready(transition, held)

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
            except OutcomeUnknownError as exc:
                self._lifecycle.give_up(f"warden: {exc}")
                self._executor.wake.wait()
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
                self._pool.empty(self._marks.require_book(), self._marks.last, self._marks.find_epoch())
                self._trouble = ""
                self._executor.wake.wait()
            case Duty.CHECK_MARKS:
                self._clock.wait(self._executor.wake, _RETRY_S)
                self._look_at_store()
                if self._lifecycle.state is State.READY:
                    self._way_back.look()
                self._trouble = ""
            case Duty.REST:
                self._clock.wait(self._executor.wake, _RETRY_S)
                self._tell_lost_cluster()
                self._look_at_files()
                self._trouble = ""

    def _tell_lost_cluster(self) -> None:
        """Say once that keepers serve a cluster, when this store knows of none."""
        serving = self._pool.describe_serving() if self._lifecycle.state in NO_CLUSTER else ""
        if serving != self._lost_cluster:
            self._lost_cluster = serving
            if serving:
                log.critical("store knows no cluster", but=serving)

    def _recover(self) -> None:
        book = self._marks.require_book()
        self._pool.watch(self._executor.wake)  # nothing can be given to them any more, nor asked of them yet
        self._check_files()
        self._trouble = ""
        recovery = self._recovery = KeeperRecovery(self._store, self._pool, book, self._memory, self._clock)
        serving = recovery.run(self._executor.wake)
        if serving is None:
            return
        try:
            self.admit(serving)
        except WrongStateError as exc:
            log.info("recovered, but not needed any more", why=str(exc))

    def _look_at_store(self) -> None:
        """End ready when a mark that is newer than the store has come, or the store is not as this nexus left it."""
        with self._lock:
            serving = self._lifecycle.find_serving()
            if self._lifecycle.state is not State.READY or serving is None:
                return
            if fault := self._find_fault(serving):
                log.critical("store is lost", why=fault)
                self._store_fault = fault
                self._marks.remember_floor(serving)
                self._end_ready(Event.STORE_LOST)
            elif (newer := self.find_newer_mark()) is not None:
                log.critical("store was put back", what=newer.describe(self._marks.load_meta()))
                self._end_ready(Event.NEWER_MARK)
            elif is_due(serving):
                self._renew(serving)

    def _find_fault(self, serving: Serving) -> str:
        if fault := self._lifecycle.store_fault or self._inspect_store():
            return fault
        try:
            self._marks.check_floor(serving)
        except StoreLostError as exc:
            return str(exc)
        return ""

    def _renew(self, serving: Serving) -> None:
        """Replace what an older program left."""

        def write_note(writer: Writer, detail: str) -> None:
            entry = Entry(at=to_micros(self._clock.now()), actor="", action="manifest.renew", detail=detail)
            append_entry(writer, serving.root_key, self._find_audit_end().nexus, entry.encode())

        def begin_epoch(meta: Meta) -> Meta:
            return replace(meta, epoch=self._next_epoch(meta), kek_id=serving.keyring.current_id)

        with self._lifecycle.borrow():
            renew_controls(self._store, serving, begin_epoch=begin_epoch, write_note=write_note)
        self._executor.keep(serving)

    def _end_ready(self, event: Event) -> None:
        self._recovery = None
        self._executor.carry_out(self._executor.find_transition(event))

    def _look_at_files(self) -> None:
        """Wipe a key that is held for a store whose files are lost."""
        try:
            self._check_files()
        except StoreUnavailableError:
            with self._lock:
                self._executor.wipe_held()
            raise

    def _check_files(self) -> None:
        if fault := self._inspect_store():
            raise StoreUnavailableError(fault)

    def _check_admission(self, serving: Serving, asked_in: State) -> None:
        self._check_files()
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
            found = reader.load_position()
        if current.set_id != serving.shard_set.record.set_id:
            raise WrongStateError("the current set is another one meanwhile")
        serving.floor.check_basis(found)

    def _judge(self, serving: Serving, *, by_custodians: bool) -> Transition:
        self._audit_gap = self._find_audit_gap(serving)
        if self._marks.find_newer(serving) is not None:
            return self._executor.find_transition(Event.KEY_BEHIND_MARK)
        if self._audit_gap:
            return self._executor.find_transition(Event.KEY_WITHOUT_AUDIT)
        event = Event.KEY_FROM_CUSTODIANS if by_custodians else Event.KEY_FROM_KEEPERS
        return self._executor.find_transition(event)

    def _require_held_for_audit(self) -> Serving:
        held = self._executor.held
        if held is None or not self._audit_gap:
            raise WrongStateError("the audit does not block this nexus: there is nothing to accept")
        return held

    def _become_ready(self, transition: Transition, serving: Serving) -> None:
        self._recovery = None
        self._audit_gap = ""
        self._way_back.look_now()
        self._store_fault = ""
        self._executor.carry_out_with(transition, serving)

    def _unsealed(self, meta: Meta) -> Meta:
        return replace(meta, sealed=False, epoch=self._next_epoch(meta))

    def _above(self, meta: Meta, newer: NewerMark) -> Meta:
        """Begin a new timeline, with numbers that no store of the earlier timelines has given out."""
        return replace(
            meta,
            sealed=False,
            timeline=max(meta.timeline, newer.mark.timeline) + 1,
            epoch=self._next_epoch(meta),
            last_generation=max(meta.last_generation, newer.last_generation),
            last_set_number=max(meta.last_set_number, newer.last_set_number),
            last_kek_id=max(meta.last_kek_id, newer.last_kek_id),
        )

    def _next_epoch(self, meta: Meta) -> int:
        return next_epoch(meta.epoch, self._pool.find_epoch(meta.timeline))
