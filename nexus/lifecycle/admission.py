"""How a proved key comes to be served with: admitted, held while something blocks it, or let in by somebody's word.

A proved key is admitted with the current set, the genesis record that marks were held against, no newer mark, and the
audit files that store and keepers remember: each is looked at under the lock, in which the key is then installed.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

import structlog

from common.errors import ConflictError, CorruptRowError, StoreUnavailableError, WrongStateError
from common.forms.epoch import next_epoch
from nexus.keepers.marks import NewerMark
from nexus.keepers.pool import KeeperPool
from nexus.keys import manifest
from nexus.keys.opened import Serving
from nexus.keys.outbox import WriteEntry
from nexus.keys.replacement import Renewal, SetReplacement
from nexus.lifecycle.audit_guard import AuditGuard
from nexus.lifecycle.executor import Executor
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.obstacles import Obstacles
from nexus.lifecycle.states import State
from nexus.lifecycle.store_marks import StoreMarks
from nexus.lifecycle.transitions import Event, Transition
from nexus.lifecycle.way_back import WayBack
from nexus.store.protocol import Meta, Store

_MARK_WAIT_S = 0.5  # for the marks of keepers that have not answered, once the key is there

log = structlog.get_logger("warden")


class Admission:
    """Thread-safe: *lock* is the warden's, held during a transition. Callers use `Warden`, which documents them."""

    def __init__(
        self,
        *,
        store: Store,
        lifecycle: Lifecycle,
        pool: KeeperPool,
        replacement: SetReplacement,
        marks: StoreMarks,
        audit: AuditGuard,
        executor: Executor,
        obstacles: Obstacles,
        way_back: WayBack,
        lock: threading.RLock,
        inspect_store: Callable[[], str],
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._pool = pool
        self._replacement = replacement
        self._marks = marks
        self._audit = audit
        self._executor = executor
        self._obstacles = obstacles
        self._way_back = way_back
        self._lock = lock
        self._inspect_store = inspect_store

    def begin_serving(self, serving: Serving) -> None:
        """Serve the cluster that init has just committed."""
        with self._lock:
            self._become_ready(self._executor.find_transition(Event.CLUSTER_FOUNDED), serving)

    def admit(self, serving: Serving, write_entry: WriteEntry | None, asked_in: State) -> bool:
        """Admit as `Warden.admit` does."""
        try:
            self._marks.require_book().wait_answers(len(self._pool.seats), seconds=_MARK_WAIT_S)
        except BaseException:
            serving.release()
            raise
        with self._lock:
            try:
                serving.is_from_people = write_entry is not None
                self._check(serving, asked_in)
                transition = self._judge(serving, by_custodians=write_entry is not None)
                if transition.replaces_set and write_entry is not None:
                    self._replacement.commit(serving, write_entry, self._unsealed)
            except BaseException:
                serving.release()
                raise
            if transition.state is State.READY:
                self._become_ready(transition, serving)
                return True
            self._executor.carry_out_with(transition, serving)
            log.critical("blocked", obstacles=self._obstacles.list_now())
            return False

    def accept_older_store(self, timeline: int, revision: int, write_entry: WriteEntry, *, actor: str) -> int:
        """Accept as `Warden.accept` does."""
        with self._lock:
            held, newer = self._require_older(timeline, revision)
            plan = self._replacement.plan_key(held, lambda meta: self._above(meta, newer))
        key = self._replacement.make_key(plan)
        with self._lock:
            try:
                held, newer = self._require_older(timeline, revision)
                transition = self._executor.find_transition(Event.OLDER_STORE_ACCEPTED)
            except BaseException:
                key.staged.release()
                raise
            renewal = Renewal(actor, f"the store of timeline {timeline}, revision {revision} was accepted", key)
            self._replacement.commit(held, write_entry, lambda meta: self._above(meta, newer), renewal=renewal)
            self._become_ready(transition, held)
            return held.shard_set.record.timeline  # of the set that was just drawn; the store need not be read for it

    def _require_older(self, timeline: int, revision: int) -> tuple[Serving, NewerMark | None]:
        """Return the key that is held, and the mark that says that the store at this position is older.

        A store that was made of a backup is older whether a keeper remembers more or not: then there is no mark.
        """
        meta = self._marks.load_meta()
        held = self._executor.held
        newer = self._marks.find_newer(held)
        if newer is None and not meta.is_restored:
            raise WrongStateError("no newer rollback mark blocks this nexus: there is nothing to accept")
        if held is None:
            raise WrongStateError("there is no root key yet: keepers or custodians have to bring it back first")
        if (timeline, revision) != (meta.timeline, meta.revision):
            raise ConflictError(
                f"store is at timeline {meta.timeline}, revision {meta.revision}; got {timeline}, {revision}"
            )
        return held, newer

    def require_audit_gap(self) -> str:
        """Return the gap as `Warden.require_audit_gap` does."""
        held = self._require_held_for_audit()
        if self._marks.find_newer(held) is not None or self._marks.load_meta().is_restored:
            raise WrongStateError("the store is older than a mark, or restored: accepting that begins a new chain too")
        return self._obstacles.audit_gap

    def accept_new_chain(self, write_entry: WriteEntry) -> None:
        """Accept as `Warden.accept_new_chain` does."""
        with self._lock:
            if self._lifecycle.state is State.READY:
                with self._lifecycle.borrow() as serving:
                    self._audit.commit_row(serving, write_entry)
                return
            self.require_audit_gap()
            held = self._require_held_for_audit()
            transition = self._executor.find_transition(Event.NEW_CHAIN_ACCEPTED)
            self._audit.replace_set(held, write_entry, self._unsealed, self._replacement)
            self._become_ready(transition, held)

    def check_files(self) -> None:
        """See that the files of the store are those that were opened.

        Raises:
            StoreUnavailableError: They are not.
        """
        if fault := self._inspect_store():
            raise StoreUnavailableError(fault)

    def next_epoch(self, meta: Meta) -> int:
        """Return an epoch above that of the store and those that keepers have seen."""
        return next_epoch(meta.epoch, self._pool.find_epoch(meta.timeline))

    def _check(self, serving: Serving, asked_in: State) -> None:
        self.check_files()
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
        gap = self._obstacles.audit_gap = self._audit.find_gap(serving)
        if self._marks.find_newer(serving) is not None or self._marks.load_meta().is_restored:
            return self._executor.find_transition(Event.KEY_BEHIND_MARK)
        if gap:
            return self._executor.find_transition(Event.KEY_WITHOUT_AUDIT)
        event = Event.KEY_FROM_CUSTODIANS if by_custodians else Event.KEY_FROM_KEEPERS
        return self._executor.find_transition(event)

    def _require_held_for_audit(self) -> Serving:
        held = self._executor.held
        if held is None or not self._obstacles.audit_gap:
            raise WrongStateError("the audit does not block this nexus: there is nothing to accept")
        return held

    def _become_ready(self, transition: Transition, serving: Serving) -> None:
        self._obstacles.clear()
        self._way_back.look_now()
        self._executor.carry_out_with(transition, serving)

    def _unsealed(self, meta: Meta) -> Meta:
        return replace(meta, sealed=False, epoch=self.next_epoch(meta))

    def _above(self, meta: Meta, newer: NewerMark | None) -> Meta:
        """Begin a new timeline, with numbers that no store of the earlier timelines has given out, as far as known."""
        begun = replace(meta, sealed=False, timeline=meta.timeline + 1, epoch=self.next_epoch(meta), is_restored=False)
        if newer is None:
            return begun
        return replace(
            begun,
            timeline=max(meta.timeline, newer.mark.timeline) + 1,
            last_generation=max(meta.last_generation, newer.last_generation),
            last_set_number=max(meta.last_set_number, newer.last_set_number),
            last_kek_id=max(meta.last_kek_id, newer.last_kek_id),
        )
