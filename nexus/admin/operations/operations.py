"""Operations on the root key, as people ask for them: authorised, audited, and begun or ended in one change each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from common.clock import Clock, to_micros
from common.errors import InvalidArgumentError, OperationRefusedError, WrongStateError
from common.failpoint import around
from common.keys.protected import ProtectedMemory
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.access.roles import Role
from nexus.admin.operations.driver import OperationDriver
from nexus.admin.operations.preflight import Preflights
from nexus.admin.operations.reshare_plan import ResharePlan, check_names, check_plan, choose_members
from nexus.admin.seal import check_reason
from nexus.keepers.pool import KeeperPool
from nexus.keys.opened import Serving
from nexus.keys.operation import transitions
from nexus.keys.operation.change import Change
from nexus.keys.operation.dead_sets import find_droppable, give_up
from nexus.keys.operation.evidence import Order, Preflight, Staged
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.preflight import Check, check_all, find_refusals
from nexus.keys.operation.record import Depth, EndedRecord, OperationRecord, Waiver, WaiverKind
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.operation.staging import next_numbers
from nexus.keys.records import SetState, ShardSetRecord
from nexus.keys.ruled_change import Rule, commit_rule, load_facts
from nexus.keys.shard_set import Member, ShardSet, draw_set
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Store

ID_SIZE = 16  # bytes


@dataclass(frozen=True, slots=True)
class OperationView:
    """An operation in progress."""

    record: OperationRecord
    threshold: int  # of the new set
    keepers: int
    holders: tuple[str, ...]  # that proved to hold their new shards
    waits_for: str  # in words; empty: it goes on


@dataclass(frozen=True, slots=True)
class RootView:
    """How the root key stands."""

    current: ShardSetRecord
    operation: OperationView | None
    last: EndedRecord | None  # None: none has ended yet
    dead_sets: int  # of which a keeper may hold a shard yet


class Operations:
    """Thread-safe."""

    def __init__(
        self,
        *,
        store: Store,
        gate: Gate,
        warden: Warden,
        pool: KeeperPool,
        driver: OperationDriver,
        preflights: Preflights,
        memory: ProtectedMemory,
        clock: Clock,
        is_keeper_id: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._gate = gate
        self._warden = warden
        self._pool = pool
        self._driver = driver
        self._preflights = preflights
        self._memory = memory
        self._clock = clock
        self._is_keeper_id = is_keeper_id

    def reshare(
        self, caller: Caller, operation_id: bytes, plan: ResharePlan, reason: str, *, dry_run: bool
    ) -> tuple[Sequence[Check], OperationView | None]:
        """Begin a reshare, unless a check refuses; return the checks, and the operation unless this is a dry run.

        Raises:
            InvalidArgumentError: An argument breaks a rule.
            DeniedError: Only a superuser adds keepers or lowers the threshold.
            OperationRefusedError: A check refuses; its reason is the rule.
            WrongStateError: The operation of this id has ended.
        """
        _check_id(operation_id)
        check_reason(reason)
        check_plan(plan, self._is_keeper_id)
        with self._gate.role_call(calls.START_OPERATION, caller) as record:
            record.detail = f"reshare{', dry run' if dry_run else ''}{f': {reason}' if reason else ''}"
            facts = self._warden.change(self._load_facts)
            if not dry_run and (begun := self._find_begun(facts, operation_id)) is not None:
                return (), begun
            members, threshold = choose_members(facts.current_set, plan)
            if plan.add or threshold < facts.current_set.threshold:  # both lead to the root key
                self._gate.require_role(record, frozenset({Role.SUPERUSER}))
            names = tuple(member.name for member in members)
            order = Order(Depth.RESHARE, names, threshold, caller.spiffe_id, reason)
            preflight = self._preflights.measure(members)
            checks = (*check_all(facts, order, preflight), *_check_joining(plan, preflight))
            if dry_run:
                return checks, None
            if (refused := next(find_refusals(checks), None)) is not None:
                raise OperationRefusedError(refused.text, reason=refused.reason)
            prepare = _Prepare(operation_id, order, preflight, members, plan.lost, facts.current_set.set_id)
            with around("prepare.commit"):
                self._warden.change(lambda serving: self._prepare(serving, prepare, record))
            self._driver.wake()
            return checks, self._view(self._warden.change(self._load_facts))

    def describe(self, caller: Caller) -> RootView:
        """Say how the root key stands."""
        with self._gate.keyed_call(calls.GET_OPERATION, caller) as (_, serving):
            facts = self._load_facts(serving)
            return RootView(facts.current_set, self._view(facts), facts.ended, len(find_droppable(facts)))

    def abort(self, caller: Caller, operation_id: bytes, reason: str) -> None:
        """Take an operation back that is not flipped.

        Raises:
            InvalidArgumentError: An argument breaks a rule.
            OperationRefusedError: There is no such operation, or it is flipped.
        """
        _check_id(operation_id)
        check_reason(reason)
        with self._gate.role_call(calls.ABORT_OPERATION, caller) as record:
            record.detail = f"{operation_id.hex()[:8]}{f': {reason}' if reason else ''}"
            detail = f"{caller.spiffe_id}{f': {reason}' if reason else ''}"

            def rule(facts: Facts, _: int) -> Change | Refused:
                running = _require(facts, operation_id)
                return transitions.abort(facts, running.ticket, detail=detail, at=self._now)

            with around("abort.commit"):
                self._commit(rule, record)
            self._driver.note_end()

    def proceed(
        self,
        caller: Caller,
        operation_id: bytes,
        *,
        with_threshold: bool = False,
        without_proof: bool = False,
        lost: Sequence[str] = (),
    ) -> OperationView | None:
        """Let an operation go on with less than it waits for; return it, None when only keepers were given up.

        Raises:
            InvalidArgumentError: An argument breaks a rule.
            DeniedError: Only a superuser does without a proof.
            OperationRefusedError: There is no such operation, or it does not wait for that.
        """
        kind = _choose_waiver(with_threshold=with_threshold, without_proof=without_proof)
        if kind is None and not lost:
            raise InvalidArgumentError("nothing to go on without: want with_threshold, without_proof or lost")
        check_names("lost", lost)
        if kind is not None or operation_id:
            _check_id(operation_id)
        with self._gate.role_call(calls.CONTINUE_OPERATION, caller) as record:
            if without_proof:
                self._gate.require_role(record, frozenset({Role.SUPERUSER}))
            record.detail = ", ".join([*filter(None, [kind]), *(f"lost {name}" for name in lost)])

            def rule(facts: Facts, _: int) -> Change | Refused:
                return _waive(facts, operation_id, kind, lost, caller.spiffe_id, at=self._now)

            with around("continue.commit"):
                self._commit(rule, record)
            self._driver.wake()
            return self._view(self._warden.change(self._load_facts))

    def _commit(self, rule: Rule, record: CallRecord) -> None:
        self._warden.change(lambda serving: commit_rule(self._store, serving, rule, record.write))

    def _load_facts(self, serving: Serving) -> Facts:
        with self._store.read() as reader:
            return load_facts(reader, serving.root_key)

    def _find_begun(self, facts: Facts, operation_id: bytes) -> OperationView | None:
        """Return the operation that this id began before."""
        if facts.ended is not None and facts.ended.id == operation_id:
            raise WrongStateError(f"the operation has ended: it is {facts.ended.outcome}")
        return self._view(facts) if facts.operation is not None and facts.operation.id == operation_id else None

    def _prepare(self, serving: Serving, prepare: "_Prepare", record: CallRecord) -> None:
        """Draw the new set and commit it as pending, with *serving* having its points."""
        facts = self._load_facts(serving)
        if self._find_begun(facts, prepare.operation_id) is not None:
            return  # the same call, made twice at once
        shard_set = self._draw(serving, facts, prepare)

        def rule(facts: Facts, _: int) -> Change | Refused:
            return _begin(facts, prepare, Staged(shard_set.record, facts.kek_id, None), self._driver, at=self._now)

        def stage() -> None:
            serving.others = replace(serving.others, pending=shard_set)

        self._driver.expect(prepare.operation_id)
        try:
            commit_rule(self._store, serving, rule, record.write, on_commit=stage)
        except BaseException:
            self._driver.expect_no_more(prepare.operation_id)
            shard_set.release()
            raise

    def _draw(self, serving: Serving, facts: Facts, prepare: "_Prepare") -> ShardSet:
        record, points = draw_set(
            serving.root_key.view,
            prepare.members,
            threshold=prepare.order.threshold,
            generation=facts.generation,
            set_number=next_numbers(facts, renews_key=False).set_number,
            timeline=facts.meta.timeline,
            cluster_id=serving.cluster_id,
            memory=self._memory,
            state=SetState.PENDING,
            drawn_at=self._now,
        )
        return ShardSet(record, record.label(serving.cluster_id, serving.genesis.fingerprint), points)

    def _view(self, facts: Facts) -> OperationView | None:
        record = facts.operation
        if record is None:
            return None
        target = facts.sets.get(record.target.set_number)
        names = {member.name for member in target.members} if target else set()
        holders = self._pool.find_holders(target.set_id).keys() & names if target else set()
        threshold = target.threshold if target else 0
        return OperationView(record, threshold, len(names), tuple(sorted(holders)), self._driver.waits_for)

    @property
    def _now(self) -> int:
        return to_micros(self._clock.now())


@dataclass(frozen=True, slots=True)
class _Prepare:
    operation_id: bytes
    order: Order
    preflight: Preflight
    members: Sequence[Member]
    lost: Sequence[str]
    basis: bytes  # id of the set that the members were chosen by


def _begin(facts: Facts, prepare: _Prepare, staged: Staged, driver: OperationDriver, *, at: int) -> Change | Refused:
    if facts.current_set.set_id != prepare.basis:  # keepers or threshold may have been changed by somebody else
        return Refused(Reason.OPERATION_MOVED, "the current set is another one meanwhile: look at it, and ask again")
    begun = transitions.prepare(
        facts,
        prepare.order,
        staged,
        prepare.preflight,
        operation_id=prepare.operation_id,
        driver=driver.driver,
        at=at,
    )
    return begun if isinstance(begun, Refused) else begun.join(give_up(facts, prepare.lost))


def _check_joining(plan: ResharePlan, preflight: Preflight) -> Iterator[Check]:
    """Ask that keepers that join answer: a mistyped address would become a member."""
    if plan.add:
        silent = [member.name for member in plan.add if member.name not in preflight.reachable]
        found = f"{', '.join(silent)} does not answer" if silent else "answer"
        yield Check("joining keepers", found, Reason.KEEPERS_SHORT if silent else None)


def _waive(
    facts: Facts, operation_id: bytes, kind: WaiverKind | None, lost: Sequence[str], actor: str, *, at: int
) -> Change | Refused:
    """Take the word of an operator, and give up the keepers that are *lost*."""
    change = Change(facts.current, raises_epoch=False)
    if kind is not None:
        running = _require(facts, operation_id)
        waived = transitions.waive(facts, running.ticket, Waiver(kind, kind, actor), at=at)
        if isinstance(waived, Refused):
            return waived
        change = waived
    leaving = _find_leaving(facts)
    if strange := [name for name in lost if name not in leaving]:
        raise InvalidArgumentError(f"lost: got {strange[0][:64]!r}, want a keeper that leaves")
    return change.join(give_up(facts, lost))


def _find_leaving(facts: Facts) -> set[str]:
    """Return the names of keepers that are members of an earlier set, and not of the newest one."""
    newest = facts.pending_sets[-1] if facts.pending_sets else facts.current_set
    staying = {(member.name, member.spiffe_id) for member in newest.members}
    members = (member for one in facts.sets.values() for member in one.members)
    return {member.name for member in members if (member.name, member.spiffe_id) not in staying}


def _require(facts: Facts, operation_id: bytes) -> OperationRecord:
    record = facts.operation
    if record is None or record.id != operation_id:
        raise OperationRefusedError("this operation is not in progress", reason="NO_OPERATION")
    return record


def _choose_waiver(*, with_threshold: bool, without_proof: bool) -> WaiverKind | None:
    if with_threshold and without_proof:
        raise InvalidArgumentError("with_threshold and without_proof: one is for before the flip, one for after it")
    if with_threshold:
        return WaiverKind.THRESHOLD
    return WaiverKind.PROOF if without_proof else None


def _check_id(operation_id: bytes) -> None:
    if len(operation_id) != ID_SIZE:
        raise InvalidArgumentError(f"operation_id is {len(operation_id)} bytes, want {ID_SIZE}")
