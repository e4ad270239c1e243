"""Operations on the root key, as people ask for them: authorised, audited, and begun or ended in one change each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.clock import Clock, to_micros
from common.errors import InvalidArgumentError, OperationRefusedError
from common.failpoint import around
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.access.roles import Role
from nexus.admin.operations.driver import OperationDriver
from nexus.admin.operations.keyring_job import KeyringJob
from nexus.admin.operations.progress import JobView
from nexus.admin.operations.reshare_plan import ResharePlan, check_names, check_plan, choose_members
from nexus.admin.operations.rotate_plan import RotatePlan, check_rotate_plan
from nexus.admin.operations.schedule import Schedule
from nexus.admin.operations.starter import ID_SIZE, Beginning, Starter, find_begun
from nexus.admin.seal import check_reason
from nexus.keepers.plan import list_members
from nexus.keepers.pool import KeeperPool
from nexus.keys.keyed_read import read_with_key
from nexus.keys.opened import Serving
from nexus.keys.operation import transitions
from nexus.keys.operation.change import Change
from nexus.keys.operation.dead_sets import find_droppable, give_up
from nexus.keys.operation.evidence import Order
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.preflight import Check, find_refusals
from nexus.keys.operation.record import Depth, EndedRecord, OperationRecord, Waiver, WaiverKind
from nexus.keys.operation.refusal import Refused
from nexus.keys.operation.schedule import Scheduled
from nexus.keys.operation.settings import find_hold
from nexus.keys.records import GenerationRecord, KeyringRecord, ShardSetRecord
from nexus.keys.ruled_change import Rule, commit_rule, load_facts
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Store


@dataclass(frozen=True, slots=True)
class OperationView:
    """An operation in progress."""

    record: OperationRecord
    threshold: int  # of the new set
    keepers: int
    holders: tuple[str, ...]  # that proved to hold their new shards
    kcv: bytes  # of the new root key, 32 bytes; empty: the root key stays
    waits_for: str  # in words; empty: it goes on


@dataclass(frozen=True, slots=True)
class RootView:
    """How the root key stands."""

    current: ShardSetRecord
    generation: GenerationRecord | None  # None: its row does not verify
    keyring: KeyringRecord
    operation: OperationView | None
    job: JobView | None  # None: every row is under the current KEK, and that is alone
    next: Scheduled | None  # what begins by itself; None: nothing does
    paused: str  # why job and schedule are on hold; empty: they are not
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
        starter: Starter,
        job: KeyringJob,
        schedule: Schedule,
        clock: Clock,
        is_keeper_id: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._gate = gate
        self._warden = warden
        self._pool = pool
        self._driver = driver
        self._starter = starter
        self._job = job
        self._schedule = schedule
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
            record.detail = _describe_call(Depth.RESHARE, reason, dry_run=dry_run)
            facts = self._warden.change(self._load_facts)
            if not dry_run and find_begun(facts, operation_id) is not None:
                return (), self._view(facts)
            members, threshold = choose_members(facts.current_set, plan)
            if plan.add or threshold < facts.current_set.threshold:  # both lead to the root key
                self._gate.require_role(record, frozenset({Role.SUPERUSER}))
            names = tuple(member.name for member in members)
            order = Order(Depth.RESHARE, names, threshold, caller.spiffe_id, reason)
            set_id = facts.current_set.set_id
            beginning = Beginning(operation_id, order, members, set_id, joining=plan.add, lost=plan.lost)
            return self._start(beginning, record, dry_run=dry_run)

    def rotate(
        self, caller: Caller, operation_id: bytes, plan: RotatePlan, reason: str, *, dry_run: bool
    ) -> tuple[Sequence[Check], OperationView | None]:
        """Begin to replace the root key, unless a check refuses; otherwise as `reshare`.

        Raises:
            InvalidArgumentError: An argument breaks a rule.
            DeniedError: Only a superuser forces a rotation, or does without a backup.
            OperationRefusedError: A check refuses; its reason is the rule.
            WrongStateError: The operation of this id has ended.
        """
        _check_id(operation_id)
        check_reason(reason)
        check_rotate_plan(plan, now=self._now)
        depth = Depth.EMERGENCY if plan.is_emergency else Depth.ROTATE
        with self._gate.role_call(calls.START_OPERATION, caller) as record:
            record.detail = _describe_call(depth, reason, dry_run=dry_run)
            if plan.needs_superuser:
                self._gate.require_role(record, frozenset({Role.SUPERUSER}))
            facts = self._warden.change(self._load_facts)
            if not dry_run and find_begun(facts, operation_id) is not None:
                return (), self._view(facts)
            order = _order_rotation(facts.current_set, depth, plan, reason, caller.spiffe_id)
            beginning = Beginning(operation_id, order, list_members(facts.current_set), facts.current_set.set_id)
            return self._start(beginning, record, dry_run=dry_run)

    def describe(self, caller: Caller) -> RootView:
        """Say how the root key stands."""
        with self._gate.keyed_call(calls.GET_OPERATION, caller) as (_, serving):
            facts = read_with_key(self._store, serving, load_facts)
            return RootView(
                facts.current_set,
                facts.generations.get(facts.generation),
                facts.keyring,
                self._view(facts),
                self._job.view(),
                self._schedule.view.next,
                find_hold(facts),
                facts.ended,
                len(find_droppable(facts)),
            )

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

    def _start(
        self, beginning: Beginning, record: CallRecord, *, dry_run: bool
    ) -> tuple[Sequence[Check], OperationView | None]:
        checks, preflight = self._starter.check(beginning)
        if dry_run:
            return checks, None
        if (refused := next(find_refusals(checks), None)) is not None:
            raise OperationRefusedError(refused.text, reason=refused.reason)
        self._starter.begin(beginning, preflight, record.write)
        return checks, self._view(self._warden.change(self._load_facts))

    def _view(self, facts: Facts) -> OperationView | None:
        record = facts.operation
        if record is None:
            return None
        target = facts.sets.get(record.target.set_number)
        names = {member.name for member in target.members} if target else set()
        holders = self._pool.find_holders(target.set_id).keys() & names if target else set()
        threshold = target.threshold if target else 0
        staged = facts.generations.get(record.target.generation) if record.depth.renews_key else None
        kcv = staged.kcv if staged is not None else b""
        return OperationView(record, threshold, len(names), tuple(sorted(holders)), kcv, self._driver.waits_for)

    @property
    def _now(self) -> int:
        return to_micros(self._clock.now())


def _describe_call(depth: Depth, reason: str, *, dry_run: bool) -> str:
    return f"{depth}{', dry run' if dry_run else ''}{f': {reason}' if reason else ''}"


def _order_rotation(current: ShardSetRecord, depth: Depth, plan: RotatePlan, reason: str, actor: str) -> Order:
    """Order a new root key for the keepers and the threshold of now."""
    waivers = (Waiver(WaiverKind.BACKUP, plan.without_backup, actor),) if plan.without_backup else ()
    return Order(
        depth,
        tuple(member.name for member in current.members),
        current.threshold,
        actor,
        reason,
        is_forced=plan.is_forced,
        suspected_at=plan.suspected_at,
        waivers=waivers,
    )


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
