"""The warden: brings the nexus to ready, and takes it back. Nothing else changes between recovering, sealed and ready.

- `nexus.lifecycle.transitions` says what follows from what has happened, and in which order it is done.
- `nexus.lifecycle.admission` admits a proved key, or holds it while something blocks it.
- A store that is not as this nexus left it ends ready (`Lifecycle.lose_store`); the reason is an obstacle until the
  nexus is ready again. *inspect_store* says what is wrong with the files of the store as they are now.
- While ready, the store is looked at once a second: it stands where this nexus left it (`nexus.keys.floor`). So are the
  audit files, if a keeper told how far they had come (`nexus.lifecycle.audit_guard`).
- When the store or a keeper fails, the warden says so and tries again: its thread ends with the process only.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import structlog

from common.clock import Clock, to_micros
from common.errors import OutcomeUnknownError, ShardholdError, StoreLostError, StoreUnavailableError, WrongStateError
from common.forms.audit.entry import Entry
from common.forms.mark import Mark
from common.keys.protected import ProtectedMemory
from nexus.keepers.marks import NewerMark
from nexus.keepers.pool import KeeperPool
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.opened import OtherSets, Serving
from nexus.keys.outbox import WriteEntry, append_entry
from nexus.keys.replacement import SetReplacement
from nexus.keys.root_key import RootKey
from nexus.lifecycle.admission import Admission
from nexus.lifecycle.audit_guard import AuditFiles, AuditGuard
from nexus.lifecycle.executor import Executor
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.obstacles import Obstacles
from nexus.lifecycle.recovery import KeeperRecovery
from nexus.lifecycle.renewal import is_due, renew_controls
from nexus.lifecycle.sealing import Emptied, Sealing
from nexus.lifecycle.states import State
from nexus.lifecycle.store_marks import StoreMarks
from nexus.lifecycle.transitions import Duty, Event, find_duty
from nexus.lifecycle.way_back import WayBack
from nexus.store.protocol import Meta, Store, Writer

_REFUSAL_PAUSE_S = 60.0  # between two sets that are drawn because keepers refuse the one before
_RETRY_S = 1.0  # between two looks at marks, and before what failed is tried again

T = TypeVar("T")

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
        pin: GenesisPin,
        inspect_store: Callable[[], str],
        audit_files: AuditFiles,
    ) -> None:
        """*inspect_store* says why there is no serving from the store as it is now; empty: nothing is wrong."""
        self._store = store
        self._inspect_store = inspect_store
        self._lifecycle = lifecycle
        self._pool = pool
        self._memory = memory
        self._clock = clock
        self._lock = threading.RLock()
        self._audit_files = audit_files
        self._marks = StoreMarks(store, lifecycle, clock, self._lock, pin, audit_files.find_end)
        self._audit = AuditGuard(store, self._marks, audit_files)
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
        self._obstacles = Obstacles(lifecycle, pool, self._marks, self._executor, lambda: self._inspect_store())
        self._replacement = SetReplacement(store, memory, clock)
        self._replaced_at: float | None = None  # when a set that keepers refused was replaced
        self._admission = Admission(
            store=store,
            lifecycle=lifecycle,
            pool=pool,
            replacement=self._replacement,
            marks=self._marks,
            audit=self._audit,
            executor=self._executor,
            obstacles=self._obstacles,
            way_back=self._way_back,
            lock=self._lock,
            inspect_store=lambda: self._inspect_store(),
        )
        self._ending = False
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
        return self._obstacles.list_now()

    def list_alarms(self) -> list[str]:
        """Say what somebody has to see to although the nexus serves."""
        why = self._store.unscrubbed
        unscrubbed = f"what was deleted may be in the files of the store yet: {why}" if why else ""
        return [*filter(None, [self._way_back.fault, unscrubbed]), *self._marks.list_dead()]

    @property
    def is_way_back_broken(self) -> bool:
        """Whether custodians could not bring the cluster back, as the store was found last."""
        return bool(self._way_back.fault)

    def count_lacking_shards(self) -> int:
        """Count the shards that are still to come before there can be a key; 0 when none is waited for."""
        return self._obstacles.count_lacking_shards()

    def find_own_mark(self) -> Mark | None:
        """Return the newest rollback mark that this nexus made since it started, None: none yet."""
        book = self._marks.book
        return None if book is None else book.find_own()

    def find_newer_mark(self) -> NewerMark | None:
        """Return the newest rollback mark if it is newer than the store."""
        return self._marks.find_newer(self._executor.held)

    def begin_serving(self, serving: Serving) -> None:
        """Serve the cluster that init has just committed."""
        self._admission.begin_serving(serving)

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
        return self._admission.admit(serving, write_entry, asked_in)

    def accept(self, timeline: int, revision: int, write_entry: WriteEntry, *, actor: str) -> int:
        """Accept the store as it is, older than a mark says; return the timeline that begins, with a new root key.

        Raises:
            WrongStateError: No newer mark blocks, or there is no proved key yet.
            ConflictError: The store is at another position.
            StoreUnavailableError: Nothing was committed; it stays blocked.
        """
        return self._admission.accept_older_store(timeline, revision, write_entry, actor=actor)

    def require_audit_gap(self) -> str:
        """Return what the audit files lack, if that blocks this nexus.

        Raises:
            WrongStateError: It does not, or a newer mark blocks too.
        """
        return self._admission.require_audit_gap()

    def accept_new_chain(self, write_entry: WriteEntry) -> None:
        """Serve with a new chain: the audit files are not those that were remembered, or not where they were.

        A nexus that is blocked by its audit becomes ready. A ready one commits that its chain began anew.

        Raises:
            WrongStateError: That does not block this nexus.
            StoreUnavailableError: Nothing was committed; it stays as it was.
        """
        self._admission.accept_new_chain(write_entry)

    def change(self, act: Callable[[Serving], T]) -> T:
        """Let *act* commit something with the keys of a ready nexus, while no transition is under way.

        Raises:
            SealedError, RecoveringError, WrongStateError: The nexus is not ready. What *act* raises comes out as it is.
        """
        with self._lock, self._lifecycle.borrow() as serving:
            return act(serving)

    def hand_out(self, serving: Serving, others: OtherSets) -> None:
        """Let keepers know which sets there are beside the current one; wipes the points of a set that is no more.

        Does nothing once the keys of *serving* are withdrawn.
        """
        with self._lock:
            if self._lifecycle.find_serving() is not serving:
                return
            before, serving.others = serving.others, others
            self._executor.keep(serving)
        if before.pending is not None and before.pending is not others.pending:
            before.pending.release()

    def keep_again(self) -> None:
        """Give the keepers their duty anew, at the epoch of now."""
        with self._lock:
            serving = self._lifecycle.find_serving()
            if serving is not None and self._lifecycle.state is State.READY:
                self._executor.keep(serving)

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
                if str(exc) != self._obstacles.trouble:
                    log.warning("cannot go on yet", why=str(exc))
                self._obstacles.trouble = str(exc)
                self._clock.wait(self._executor.wake, _RETRY_S)

    def _do_duty(self) -> None:
        match find_duty(self._executor.situation):
            case Duty.RECOVER:
                self._recover()
            case Duty.EMPTY:
                self._executor.empty()
                self._obstacles.trouble = ""
                self._executor.wake.wait()
            case Duty.CHECK_MARKS:
                self._clock.wait(self._executor.wake, _RETRY_S)
                self._look_at_store()
                if self._lifecycle.state is State.READY:
                    self._way_back.look()
                self._obstacles.trouble = ""
            case Duty.REST:
                self._clock.wait(self._executor.wake, _RETRY_S)
                self._obstacles.tell_lost_cluster()
                self._look_at_files()
                self._obstacles.trouble = ""

    def _recover(self) -> None:
        book = self._marks.require_book()
        self._pool.watch(self._executor.wake)  # nothing can be given to them any more, nor asked of them yet
        self._admission.check_files()
        self._obstacles.trouble = ""
        recovery = KeeperRecovery(self._store, self._pool, book, self._memory, self._clock)
        self._obstacles.recovery = recovery
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
                self._obstacles.store_fault = fault
                self._marks.remember_floor(serving)
                self._end_ready(Event.STORE_LOST)
            elif (newer := self.find_newer_mark()) is not None:
                log.critical("store was put back", what=newer.describe(self._marks.load_meta()))
                self._end_ready(Event.NEWER_MARK)
            elif gap := self._audit.find_new_gap(serving):
                log.critical("audit files lack lines", what=gap)
                self._end_ready(Event.AUDIT_GAP)
            elif is_due(serving):
                self._renew(serving)
            elif not self._audit.has_begun(serving):
                self._begin_audit(serving)
            elif self._pool.is_current_refused:
                self._replace_refused(serving)

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
            self._write_note(writer, serving.root_key, "manifest.renew", detail)

        def begin_epoch(meta: Meta) -> Meta:
            return replace(meta, epoch=self._admission.next_epoch(meta))

        with self._lifecycle.borrow():
            renew_controls(self._store, serving, begin_epoch=begin_epoch, write_note=write_note)
        self._executor.keep(serving)

    def _begin_audit(self, serving: Serving) -> None:
        """Let the store say that this nexus has an audit."""

        def write(writer: Writer, key: RootKey) -> None:
            self._write_note(writer, key, "audit.begin", self._audit_files.nexus)
            self._audit_files.begin(writer, key)

        with self._lifecycle.borrow():
            self._audit.commit_row(serving, write)
        log.info("audit begins", nexus=self._audit_files.nexus)
        self._executor.keep(serving)

    def _replace_refused(self, serving: Serving) -> None:
        """Draw a new set when so many keepers refuse the current one that it could not bring the key back.

        They held a newer one, which an operation that was taken back had given them. The new one is newer still.
        """
        now = self._clock.monotonic()
        if self._replaced_at is not None and now - self._replaced_at < _REFUSAL_PAUSE_S:
            return
        self._replaced_at = now
        refused = serving.shard_set.record.set_number

        def write(writer: Writer, key: RootKey) -> None:
            self._write_note(writer, key, "root.replace-set", f"keepers refuse set {refused}: they held a newer one")

        def edit(meta: Meta) -> Meta:
            return replace(meta, epoch=self._admission.next_epoch(meta))

        with self._lifecycle.borrow():
            self._replacement.commit(serving, write, edit)
        log.warning("shard set replaced", refused=refused, now=serving.shard_set.record.set_number)
        self._executor.keep(serving)

    def _write_note(self, writer: Writer, key: RootKey, action: str, detail: str) -> None:
        entry = Entry(at=to_micros(self._clock.now()), actor="", action=action, detail=detail)
        append_entry(writer, key, self._audit_files.nexus, entry.encode())

    def _end_ready(self, event: Event) -> None:
        self._obstacles.recovery = None
        self._executor.carry_out(self._executor.find_transition(event))

    def _look_at_files(self) -> None:
        """Wipe a key that is held for a store whose files are lost."""
        try:
            self._admission.check_files()
        except StoreUnavailableError:
            with self._lock:
                self._executor.wipe_held()
            raise
