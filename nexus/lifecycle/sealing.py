"""Seal the nexus: commit the seal, wipe the keys, and empty the keepers.

1. A seal with a root key is a change, which carries the caller's audit entry. A seal without one takes no revision: it
   could otherwise move a store that was put back past the mark that says so; the entry is then written like that of a
   read. Both raise the epoch, above what keepers have seen: they drop their sets for no lower one.
2. Whatever becomes of the commit, the keys are wiped and the keepers emptied. Unless the seal is known to be committed,
   the process then ends.
3. When the disk hangs, nothing waits for the store, nor for another call that waits for it and holds the lock.
4. A store that was put back is sealed as without a key, whoever noticed first that it was. The floor stays where it
   was, so that no mark is made of that store.
5. An operation on the root key that is before its flip is taken back with the seal. One after it goes on after the
   unseal, or is ended by it. A seal is not refused because that cannot be read.
"""

import threading
from dataclasses import dataclass, replace

import structlog

from common.clock import Clock, to_micros
from common.errors import CorruptRowError, OutcomeUnknownError, ShardholdError, StoreLostError, StoreUnavailableError
from common.failpoint import around
from common.forms.epoch import next_epoch
from common.time_limit import finish_within
from nexus.keepers.pool import KeeperPool
from nexus.keys import manifest
from nexus.keys.floor import Standing
from nexus.keys.opened import Serving
from nexus.keys.operation.change import Change
from nexus.keys.operation.ending import end_operation
from nexus.keys.operation.record import Numbers
from nexus.keys.outbox import WriteEntry
from nexus.keys.ruled_change import load_facts
from nexus.lifecycle.executor import Executor
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.lifecycle.transitions import Event
from nexus.store.protocol import Meta, Store, Writer

# For the commit of a seal: more than the store itself waits for a foreign lock, and little enough that a caller who
# waits for 10 s still hears how it ended.
SEAL_COMMIT_S = 6.0

log = structlog.get_logger("warden")


@dataclass(frozen=True, slots=True)
class Emptied:
    """How far a seal has come with the keepers."""

    keepers_emptied: int
    keepers: int


class Sealing:
    """Thread-safe: *lock* is the warden's, held during a transition."""

    def __init__(
        self,
        *,
        store: Store,
        lifecycle: Lifecycle,
        pool: KeeperPool,
        executor: Executor,
        lock: threading.RLock,
        clock: Clock,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._pool = pool
        self._executor = executor
        self._lock = lock
        self._clock = clock

    def seal(self, write_entry: WriteEntry, *, seconds: float) -> Emptied:
        """Seal as `Warden.seal` does."""
        deadline = self._clock.monotonic() + seconds
        failure = self._commit_and_shut(write_entry)
        emptied = Emptied(self._pool.wait_emptied(seconds=deadline - self._clock.monotonic()), len(self._pool.seats))
        if failure is not None:
            self._lifecycle.give_up(f"the seal could not be committed: {failure}")
            raise _explain(failure, emptied) from failure
        return emptied

    def _commit_and_shut(self, write_entry: WriteEntry) -> ShardholdError | None:
        """Return what went wrong, None when the nexus is sealed."""
        if not self._lock.acquire(timeout=SEAL_COMMIT_S):
            self._shut(Event.STORE_HANGS)  # rule 3
            return StoreUnavailableError("another call waits for the store, and goes on waiting")
        try:
            failure = self._commit(write_entry)
            return self._shut(_name_event(failure)) or failure
        finally:
            self._lock.release()

    def _commit(self, write_entry: WriteEntry) -> ShardholdError | None:
        """Return why the seal is not committed, None when it is."""

        def commit() -> None:
            if self._lifecycle.state is State.READY:
                try:
                    self._store.write(
                        lambda writer: self._write(writer, write_entry), alone=True, on_commit=self._follow
                    )
                    return
                except StoreLostError as exc:
                    log.critical("store is lost", why=str(exc))
            self._store.write(self._set_sealed, counts=False, alone=True)

        try:
            with around("seal.end"):
                finish_within(self._clock, SEAL_COMMIT_S, commit, name="commit of the seal")
        except ShardholdError as exc:
            return exc
        return None

    def _write(self, writer: Writer, write_entry: WriteEntry) -> Standing:
        """Return where the seal leaves the store.

        Raises:
            StoreLostError: It was not where this nexus left it (rule 4).
        """
        serving = self._lifecycle.find_serving() or self._lifecycle.require_serving()
        serving.floor.check_basis(writer.basis)
        ended = self._find_end(writer, serving)
        if ended.is_empty:
            self._set_sealed(writer)
            left = writer.load_position()._replace(revision=writer.revision)
            standing = replace(serving.floor.standing, position=left)
        else:
            standing = manifest.change(
                writer, serving.root_key, serving.floor, put=ended.put, delete=ended.delete, edit=self._make_sealed
            )
        write_entry(writer, serving.root_key)
        return standing

    def _find_end(self, writer: Writer, serving: Serving) -> Change:
        """Return what ends the operation in progress, if it is before its flip (rule 5)."""
        try:
            facts = load_facts(writer, serving.root_key)
        except CorruptRowError as exc:
            log.warning("operation cannot be looked at", why=str(exc))
            return Change(Numbers())
        now = to_micros(self._clock.now())
        return end_operation(facts, detail="the cluster was sealed", at=now, keeps_flipped=True)

    def _set_sealed(self, writer: Writer) -> None:
        writer.save_meta(self._make_sealed(writer.load_meta()))

    def _make_sealed(self, meta: Meta) -> Meta:
        serving = self._lifecycle.find_serving()
        left = serving.floor.position if serving is not None else meta.position
        # A store that was put back must not come to stand where this nexus left it: no mark would be due (rule 4).
        known = max(meta.epoch, left.epoch) if left.timeline == meta.timeline else meta.epoch
        return replace(meta, sealed=True, epoch=next_epoch(known, self._pool.find_epoch(meta.timeline)))

    def _follow(self, left: Standing) -> None:
        """Raise the floor: until the keys are withdrawn, calls go on."""
        serving = self._lifecycle.find_serving()
        if serving is not None:
            serving.floor.raise_to(left)

    def _shut(self, event: Event) -> ShardholdError | None:
        """Return why the keepers cannot be emptied, None when they are about to be."""
        try:
            self._executor.carry_out(self._executor.find_transition(event))
        except ShardholdError as exc:
            return exc
        return None


def _name_event(failure: ShardholdError | None) -> Event:
    if failure is None:
        return Event.SEAL_COMMITTED
    return Event.STORE_HANGS if isinstance(failure, OutcomeUnknownError) else Event.SEAL_REFUSED


def _explain(failure: ShardholdError, emptied: Emptied) -> ShardholdError:
    known = "may be committed or not" if failure.reason == OutcomeUnknownError.reason else "is not committed"
    return type(failure)(
        f"the seal {known}: {failure}; keys are wiped, {emptied.keepers_emptied} of {emptied.keepers} keepers hold no "
        "shard any more, and the nexus ends"
    )
