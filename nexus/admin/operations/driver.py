"""The driver: brings the operation in progress to its end, in a thread of its own.

1. What is next is said by `nexus.keys.operation.next_action`, from rows read anew before each action.
2. Keys are lent for a moment at a time, so a seal waits for no keeper; what was staged in memory is wiped with them.
3. What it commits is `nexus.admin.operations.commits`.
4. After a commit of unknown outcome the process ends: nobody knows what keepers have to hold.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

import structlog

from common.clock import Clock, to_micros
from common.errors import (
    OperationRefusedError,
    OutcomeUnknownError,
    RecoveringError,
    SealedError,
    ShardholdError,
    StoreUnavailableError,
    WrongStateError,
)
from common.failpoint import around
from common.keys.protected import ProtectedMemory
from nexus.admin.operations.commits import Commits, sign_flip
from nexus.admin.operations.rehearsal import Rehearsal
from nexus.admin.operations.surroundings import find_others, list_gone
from nexus.keepers.pool import KeeperPool
from nexus.keys.opened import Serving
from nexus.keys.operation import transitions
from nexus.keys.operation.evidence import Holding, Proof
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.next_action import (
    POLL,
    Abort,
    Action,
    Commit,
    Drop,
    Fetch,
    Memory,
    Prove,
    ProveHolders,
    Put,
    PutMark,
    Scrub,
    Transition,
    View,
    Wait,
    next_action,
)
from nexus.keys.operation.record import Driver, OperationRecord, Outcome, Step
from nexus.keys.operation.refusal import Refused
from nexus.keys.ruled_change import load_facts
from nexus.keys.successor import Successor
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Position, Store

_GATHER_S = 5.0  # for a threshold of shards
_PROVE_S = 2.0  # for every holder to show its shard
_MARK_S = 2.0  # for every keeper that answers to take a mark
_SCRUB_S = 5.0
_RETURN_S = 1.0  # for everybody who borrowed a key before it was replaced
_IDLE_S = 1.0  # between two looks at whether anything is to do

log = structlog.get_logger("operation")


class OperationDriver:
    """Used by its own thread, but for `start`, `stop`, `wake`, `expect…` and `note_end`; all may read attributes."""

    def __init__(
        self,
        *,
        store: Store,
        lifecycle: Lifecycle,
        warden: Warden,
        pool: KeeperPool,
        memory: ProtectedMemory,
        clock: Clock,
        driver: Driver,
        follow_key: Callable[[], None],
        beside: Callable[[Facts | None], None] = lambda facts: None,
    ) -> None:
        """*follow_key* lets the audit be signed with the root key that is current now.

        *beside* is called about once a second while no operation is in progress, with the facts; None: there are none.
        """
        self._store = store
        self._lifecycle = lifecycle
        self._warden = warden
        self._pool = pool
        self._clock = clock
        self._memory = Memory(driver)
        self._commits = Commits(store, warden, clock, driver, follow_key)
        self._rehearsal = Rehearsal(pool, memory)
        self._beside = beside
        self._idle: Facts | None = None  # at which nothing was to do
        self._ending = False
        self._has_ended = False  # somebody took an operation back, or replaced key or set without one
        self._expected: set[bytes] = set()  # ids of operations that are prepared here
        self.waits_for = ""  # in words; empty: it goes on
        # Of the operation in progress, as it was seen last; None: there is none.
        self.seen_step: Step | None = None
        self.seen_started_at: int | None = None  # microseconds since 1970
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operation", daemon=True)

    @property
    def driver(self) -> Driver:
        """Who carries operations out here."""
        return self._memory.driver

    def start(self) -> None:
        """Begin to look for an operation that has to go on."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wipe what it fetched."""
        self._ending = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._rehearsal.release()

    def wake(self) -> None:
        """Look at once whether something is to do."""
        self._wake.set()

    def expect(self, operation_id: bytes) -> None:
        """Hear, before it is committed, that an operation is prepared here: what the nexus serves with has its points.

        Its own thread may see the commit at any moment after that.
        """
        self._expected.add(operation_id)

    def expect_no_more(self, operation_id: bytes) -> None:
        """Hear that it was not committed."""
        self._expected.discard(operation_id)

    def forget_shards(self) -> None:
        """Wipe the shards that were gathered, and gather no more: the nexus is about to have no keys."""
        self._rehearsal.release()

    def note_end(self) -> None:
        """Hear that somebody took the operation back: what it deleted is about to be overwritten."""
        self._has_ended = True
        self._wake.set()

    def _run(self) -> None:
        said = ""
        while not self._ending:
            self._wake.clear()
            try:
                pause, why = self.step(), ""
            except OutcomeUnknownError as exc:
                self._lifecycle.give_up(f"operation: {exc}")
                return
            except (SealedError, RecoveringError, WrongStateError) as exc:
                pause, why = self._rest(exc)
            except ShardholdError as exc:
                pause, why = _IDLE_S, str(exc)
                self.waits_for = why
            if why != said and why:
                log.warning("operation cannot go on yet", why=why)
            said = why
            if pause:
                self._clock.wait(self._wake, pause)

    def _rest(self, why: ShardholdError) -> tuple[float, str]:
        """Forget what only a ready nexus may have."""
        if isinstance(why, OperationRefusedError):  # another transition came first: look again
            return _IDLE_S, str(why)
        self._rehearsal.release()
        was_running = self._memory.seen is not None  # then a seal, or the unseal that follows, may have ended it
        is_scrub_due = was_running or self._memory.is_scrub_due
        self._memory = Memory(self._memory.driver, is_scrub_due=is_scrub_due)
        self._idle = None
        self._beside(None)
        self._show(None)
        return _IDLE_S, ""

    def step(self) -> float:
        """Take one action, as the thread does again and again; return how many seconds to wait before the next."""
        self._wipe_replaced()
        with self._lifecycle.borrow() as serving, self._store.read() as reader:
            position = reader.load_position()
            is_idle = self._is_idle_at(position)
            facts = self._idle if is_idle and self._idle is not None else load_facts(reader, serving.root_key)
        if is_idle:
            self._beside(facts)
            return _IDLE_S
        self._hand_out(serving, facts)
        self._observe(facts)
        action = next_action(facts, self._memory, self._make_view(facts))
        if facts.operation is None:
            self._idle = facts if isinstance(action, Wait) else None
            self._beside(facts)
        self.waits_for = self._describe(facts, action)
        return self._act(action, facts, serving)

    def _is_idle_at(self, position: Position) -> bool:
        """Whether nothing was to do at the control revision of *position*."""
        if self._idle is None or self._is_scrub_wanted:
            return False
        meta = self._idle.meta
        return (meta.timeline, meta.control_revision) == (position.timeline, position.control_revision)

    @property
    def _is_scrub_wanted(self) -> bool:
        """Whether rows were deleted outside this driver, or an earlier scrub did not succeed."""
        return self._has_ended or bool(self._store.unscrubbed)

    def _observe(self, facts: Facts) -> None:
        """Notice when a step was first seen, and when rows were deleted outside this driver."""
        if self._is_scrub_wanted:
            self._has_ended = False
            self._memory = replace(self._memory, is_scrub_due=True)
        if facts.operation is not None and facts.operation.id in self._expected:
            self._expected.discard(facts.operation.id)
            self._memory = replace(self._memory, begun=facts.operation.id, key_of=facts.operation.id)
        self._show(facts.operation)
        seen = None if facts.operation is None else facts.operation.ticket
        if seen != self._memory.seen:
            self._memory = replace(self._memory, seen=seen, since=self._clock.monotonic())

    def _show(self, operation: OperationRecord | None) -> None:
        self.seen_step = None if operation is None else operation.step
        self.seen_started_at = None if operation is None else operation.started_at

    def _make_view(self, facts: Facts) -> View:
        now = self._clock.monotonic()
        holders: dict[str, Holding] = {}
        if facts.operation is not None and (target := facts.sets.get(facts.operation.target.set_number)) is not None:
            found = self._pool.find_holders(target.set_id)
            holders = {name: Holding(one.boot_id, now - one.proved_at) for name, one in found.items()}
        return View(now, holders, list_gone(facts, self._pool))

    def _hand_out(self, serving: Serving, facts: Facts) -> None:
        """Let the keepers know which sets there are, when that has changed."""
        if find_others(facts, serving.others.pending) == serving.others:
            return
        if facts.operation is not None:
            with around("distribute.put"):
                self._warden.change(lambda serving: self._renew_others(serving, None))
        else:
            with around("abort.drop" if _is_aborted(facts) else "settle.drop"):
                self._warden.change(lambda serving: self._renew_others(serving, None))

    def _renew_others(self, serving: Serving, adopted: Successor | None) -> None:
        """Hand out what the rows say now: a set that was prepared since they were read last must not lose its points.

        Takes over *adopted*, which is wiped if no such set is pending any more.
        """
        with self._store.read() as reader:
            facts = load_facts(reader, serving.root_key)
        self._warden.hand_out(serving, find_others(facts, serving.others.pending or adopted))
        if adopted is not None and serving.others.pending is not adopted:
            adopted.release()

    def _act(self, action: Action, facts: Facts, serving: Serving) -> float:
        match action:
            case Wait(seconds=seconds):
                return seconds
            case Put() | Drop():
                return POLL
            case PutMark():
                return self._put_mark(facts)
            case Fetch():
                with around("settle.collect" if _is_flipped(facts) else "distribute.fetch"):
                    self._rehearsal.gather(facts, action.set_number, seconds=_GATHER_S)
                self._memory = replace(self._memory, fetched=_require(facts).ticket)
            case Prove():
                self._prove(facts, serving)
            case ProveHolders():
                with around("flip.holders"):
                    self._pool.prove_again(facts.sets[action.set_number].set_id, seconds=_PROVE_S)
            case Scrub():
                self._scrub(facts)
            case Commit(transition=transition):
                self._commit(transition, facts, serving)
            case Abort(why=why):
                self._commits.abort(_require(facts), why)
                self._memory = replace(self._memory, is_scrub_due=True)
        return 0.0

    def _put_mark(self, facts: Facts) -> float:
        """Give every keeper that answers a mark at the epoch of now (rule 5 of `next_action`)."""
        is_flipped = _is_flipped(facts)
        with around("flip.mark-after" if is_flipped else "flip.mark"):
            self._warden.keep_again()
            self._pool.wait_marked(facts.meta.epoch, seconds=_MARK_S)
        self._memory = replace(self._memory, marked=(facts.meta.epoch, is_flipped))
        return 0.0

    def _prove(self, facts: Facts, serving: Serving) -> None:
        record = _require(facts)
        try:
            with around("settle.prove" if _is_flipped(facts) else "distribute.rehearse"):
                proved = self._rehearse(facts, record)
        except ShardholdError:
            self._memory = replace(self._memory, fetched=None)
            raise
        if record.step is Step.FLIPPED or serving.others.pending is not None:
            proved.release()
        else:
            self._adopt(facts, proved)
        proof = Proof(record.id, record.target.set_number, record.step, self.driver)
        self._memory = replace(self._memory, proof=proof, key_of=record.id)

    def _rehearse(self, facts: Facts, record: OperationRecord) -> Serving:
        """Prove what keepers gave on the rows that a restart would find; before the flip, on its result in memory."""
        if record.step is Step.FLIPPED:
            with self._store.read() as reader:
                return self._rehearsal.prove(reader.load_meta(), reader.load_controls())
        revision = facts.meta.revision + 1
        with self._lifecycle.borrow() as serving:
            link = sign_flip(record, serving, facts, revision)
        flip = transitions.make_flip(facts, record, link=link, revision=revision, at=self._now)
        if isinstance(flip, Refused):
            raise OperationRefusedError(flip.text, reason=flip.reason)
        return self._rehearsal.prove_flip(facts, flip)

    def _adopt(self, facts: Facts, proved: Serving) -> None:
        """Keep what keepers brought back: any keeper can be given its shard of the new set from it, and the flip needs
        the new key.
        """
        record = _require(facts)
        pending = proved.become_successor(renews_key=record.depth.renews_key)
        pending.shard_set.record = facts.sets[record.target.set_number]
        try:
            with around("distribute.put"):
                self._warden.change(lambda serving: self._renew_others(serving, pending))
        except ShardholdError:
            pending.release()
            raise

    def _scrub(self, facts: Facts) -> None:
        with around("abort.scrub" if _is_aborted(facts) else "settle.scrub"):
            done = self._store.scrub(seconds=_SCRUB_S)
        if not done:
            raise StoreUnavailableError("what was deleted cannot be overwritten yet: the store is busy")
        self._memory = replace(self._memory, is_scrub_due=False)

    def _commit(self, transition: Transition, facts: Facts, serving: Serving) -> None:
        match transition:
            case Transition.FORGET_SETS:
                self._commits.forget_sets(list_gone(facts, self._pool))
            case Transition.HEAL:
                self._commits.heal(facts)
            case Transition.TAKE_OVER:
                self._commits.take_over(_require(facts))
            case Transition.DISTRIBUTE:
                self._commits.distribute(_require(facts), self._memory.proof, self._make_view(facts).holders)
            case Transition.FLIP:
                self._commits.flip(
                    _require(facts), serving, self._memory.proof, lambda facts: self._make_view(facts).holders
                )
            case Transition.SETTLE:
                self._commits.settle(_require(facts), self._memory.proof)
        if transition in (Transition.HEAL, Transition.SETTLE):
            self._memory = replace(self._memory, is_scrub_due=True)

    def _wipe_replaced(self) -> None:
        """Wipe what was replaced, once everybody is back who borrowed it.

        An unseal and the acceptance of an older store replace as a flip does, and delete rows in the same change.
        """
        with self._lifecycle.borrow() as serving:
            replaced = serving.replaced  # what comes later is waited for later
        if replaced and self._lifecycle.wait_earlier(seconds=_RETURN_S):
            serving.wipe_replaced(replaced)
            self._has_ended = True

    @property
    def _now(self) -> int:
        return to_micros(self._clock.now())

    def _describe(self, facts: Facts, action: Action) -> str:
        """Say what an operation waits for; empty: it goes on."""
        if facts.operation is None:
            return ""
        match action:
            case Wait(why=why):
                return why
            case Put(set_number=number, keepers=keepers):
                return f"{', '.join(sorted(keepers))} to hold set {number}"
            case _:
                return ""


def _require(facts: Facts) -> OperationRecord:
    if facts.operation is None:
        raise WrongStateError("the operation has ended meanwhile")
    return facts.operation


def _is_flipped(facts: Facts) -> bool:
    return facts.operation is not None and facts.operation.step is Step.FLIPPED


def _is_aborted(facts: Facts) -> bool:
    """Whether the last operation was taken back."""
    return facts.ended is not None and facts.ended.outcome is Outcome.ABORTED
