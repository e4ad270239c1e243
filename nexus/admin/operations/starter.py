"""How an operation begins: it is measured and checked, a new key is made if it has one, and its first step committed.

1. The new root key is made and sealed to the custodians before anything is locked: that takes a child process.
2. What is staged is drawn, wrapped and committed under the warden's lock, as a compare-and-swap on the current set: the
   members were chosen by it.
3. Until the commit, what was made exists in memory only, and is wiped when anything fails.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from common.clock import Clock, to_micros
from common.errors import OperationRefusedError, RecoveringError, WrongStateError
from common.failpoint import around
from common.forms.audit.entry import Entry
from common.keys.protected import ProtectedMemory
from nexus.admin.operations.driver import OperationDriver
from nexus.admin.operations.preflight import Preflights
from nexus.keepers.plan import list_members
from nexus.keys.opened import Serving
from nexus.keys.operation import transitions
from nexus.keys.operation.change import Change
from nexus.keys.operation.dead_sets import give_up
from nexus.keys.operation.evidence import Order, Preflight, Staged
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.preflight import Check, check_all, find_refusals
from nexus.keys.operation.record import Depth, Driver, OperationRecord
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.operation.staging import next_numbers
from nexus.keys.outbox import WriteEntry, append_entry
from nexus.keys.records import SetState
from nexus.keys.root_key import RootKey
from nexus.keys.ruled_change import commit_rule, load_facts
from nexus.keys.shard_set import Member, ShardSet, draw_set
from nexus.keys.succession import (
    KeyPlan,
    MadeKey,
    describe_key,
    is_escrow_possible,
    make_key,
    plan_key,
    seal_to_custodians,
)
from nexus.keys.successor import Successor
from nexus.keys.verified_backup import find_backup
from nexus.lifecycle.renewal import is_due
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Store, Writer

ID_SIZE = 16  # bytes of the id of an operation


@dataclass(frozen=True, slots=True)
class Beginning:
    """An operation that somebody asks for."""

    operation_id: bytes
    order: Order
    members: Sequence[Member]  # of the new set
    basis: bytes  # id of the set that the members were chosen by
    joining: Sequence[Member] = ()
    lost: Sequence[str] = ()  # names of members that leave, for whom nobody waits


class Starter:
    """Thread-safe."""

    def __init__(
        self,
        *,
        store: Store,
        warden: Warden,
        driver: OperationDriver,
        preflights: Preflights,
        memory: ProtectedMemory,
        clock: Clock,
        make_backup: Callable[[], object] | None = None,
    ) -> None:
        """*make_backup* makes a backup and verifies it, None: none are configured."""
        self._store = store
        self._warden = warden
        self._driver = driver
        self._preflights = preflights
        self._make_backup = make_backup
        self._memory = memory
        self._clock = clock

    def check(self, beginning: Beginning) -> tuple[tuple[Check, ...], Preflight]:
        """Measure, and make every check, those that refuse included. Takes some seconds at most.

        Raises:
            SealedError, RecoveringError, WrongStateError: The nexus is not ready.
        """
        facts, can_seal = self._warden.change(self._load_standing)
        depth, backup = beginning.order.depth, find_backup(facts)
        preflight = self._preflights.measure(beginning.members, depth, is_escrow_proved=can_seal, backup=backup)
        checks = check_all(facts, beginning.order, preflight)
        return (*checks, *_check_joining(beginning.joining, preflight)), preflight

    def begin(self, beginning: Beginning, preflight: Preflight, write_entry: WriteEntry) -> None:
        """Commit the first step; nothing happens if this operation has begun already.

        Raises:
            OperationRefusedError: Something stands against it, or came first.
            WrongStateError: The operation of this id has ended.
            UnavailableError: The new root key could not be sealed to the custodians.
            StoreUnavailableError: Not committed, or nobody knows.
        """
        key: MadeKey | None = None
        if beginning.order.depth.renews_key:
            key = self._make_key()
        try:
            with around("prepare.commit"):
                is_begun = self._warden.change(
                    lambda serving: self._prepare(serving, beginning, preflight, write_entry, key)
                )
        except BaseException:
            _release(key)
            raise
        if not is_begun:
            _release(key)
        self._driver.wake()

    def begin_scheduled(self, depth: Depth, why: str) -> None:
        """Begin what the schedule wants, for the keepers and the threshold of now; raises as `begin`.

        A backup is made first, where one is wanted and can be made.
        """
        facts, _ = self._warden.change(self._load_standing)
        if depth.renews_key and self._make_backup is not None and self._preflights.is_backup_old(facts):
            with around("prepare.backup"):
                self._make_backup()
        current, nexus = facts.current_set, self._driver.driver.nexus
        names = tuple(member.name for member in current.members)
        order = Order(depth, names, current.threshold, actor="", reason=why, is_scheduled=True)
        beginning = Beginning(os.urandom(ID_SIZE), order, list_members(current), current.set_id)
        checks, preflight = self.check(beginning)
        if (refused := next(find_refusals(checks), None)) is not None:
            raise OperationRefusedError(refused.text, reason=refused.reason)

        def write_entry(writer: Writer, key: RootKey) -> None:
            entry = Entry(at=self._now, actor="", action="root.start", detail=f"{depth}: {why}")
            append_entry(writer, key, nexus, entry.encode())

        self.begin(beginning, preflight, write_entry)

    def _make_key(self) -> MadeKey:
        with around("prepare.key"):
            plan = self._warden.change(self._plan_key)
        with around("prepare.escrow"):
            return seal_to_custodians(make_key(plan, self._memory), plan)

    def _load_standing(self, serving: Serving) -> tuple[Facts, bool]:
        if is_due(serving):
            raise RecoveringError("rows of an older program are about to be replaced: try again in a moment")
        return self._load_facts(serving), is_escrow_possible(serving)

    def _plan_key(self, serving: Serving) -> KeyPlan:
        return plan_key(serving, self._load_facts(serving))

    def _load_facts(self, serving: Serving) -> Facts:
        with self._store.read() as reader:
            return load_facts(reader, serving.root_key)

    def _prepare(
        self,
        serving: Serving,
        beginning: Beginning,
        preflight: Preflight,
        write_entry: WriteEntry,
        key: MadeKey | None,
    ) -> bool:
        """Draw the new set and commit it as pending, with *serving* having what follows it; False: it has begun."""
        facts = self._load_facts(serving)
        if find_begun(facts, beginning.operation_id) is not None:
            return False  # the same call, made twice at once
        new_key = None if key is None else describe_key(serving, facts, key)
        successor = Successor(self._draw(serving, facts, beginning, key), None if key is None else key.staged)

        def rule(facts: Facts, _: int) -> Change | Refused:
            kek_id = facts.kek_id if key is None else key.staged.keyring.current_id
            staged = Staged(successor.shard_set.record, kek_id, new_key)
            return _begin(facts, beginning, preflight, staged, self._driver.driver, at=self._now)

        self._driver.expect(beginning.operation_id)
        try:
            commit_rule(self._store, serving, rule, write_entry, on_commit=lambda: serving.stage(successor))
        except BaseException:
            self._driver.expect_no_more(beginning.operation_id)
            successor.shard_set.release()
            raise
        return True

    def _draw(self, serving: Serving, facts: Facts, beginning: Beginning, key: MadeKey | None) -> ShardSet:
        root_key = serving.root_key if key is None else key.staged.root_key
        record, points = draw_set(
            root_key.view,
            beginning.members,
            threshold=beginning.order.threshold,
            generation=root_key.generation,
            set_number=next_numbers(facts, renews_key=False).set_number,
            timeline=facts.meta.timeline,
            cluster_id=serving.cluster_id,
            memory=self._memory,
            state=SetState.PENDING,
            drawn_at=self._now,
        )
        return ShardSet(record, record.label(serving.cluster_id, serving.genesis.fingerprint), points)

    @property
    def _now(self) -> int:
        return to_micros(self._clock.now())


def find_begun(facts: Facts, operation_id: bytes) -> OperationRecord | None:
    """Return the operation that this id began before, None: there is none yet.

    Raises:
        WrongStateError: It has ended.
    """
    if facts.ended is not None and facts.ended.id == operation_id:
        raise WrongStateError(f"the operation has ended: it is {facts.ended.outcome}")
    return facts.operation if facts.operation is not None and facts.operation.id == operation_id else None


def _begin(
    facts: Facts, beginning: Beginning, preflight: Preflight, staged: Staged, driver: Driver, *, at: int
) -> Change | Refused:
    if facts.current_set.set_id != beginning.basis:  # keepers or threshold may have been changed by somebody else
        return Refused(Reason.OPERATION_MOVED, "the current set is another one meanwhile: look at it, and ask again")
    begun = transitions.prepare(
        facts, beginning.order, staged, preflight, operation_id=beginning.operation_id, driver=driver, at=at
    )
    return begun if isinstance(begun, Refused) else begun.join(give_up(facts, beginning.lost))


def _check_joining(joining: Sequence[Member], preflight: Preflight) -> Iterator[Check]:
    """Ask that keepers that join answer: a mistyped address would become a member."""
    if joining:
        silent = [member.name for member in joining if member.name not in preflight.reachable]
        found = f"{', '.join(silent)} does not answer" if silent else "answer"
        yield Check("joining keepers", found, Reason.KEEPERS_SHORT if silent else None)


def _release(key: MadeKey | None) -> None:
    if key is not None:
        key.staged.release()
