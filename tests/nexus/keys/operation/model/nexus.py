"""A nexus of the model: it carries out what the core says, with messages that may be late, doubled or lost."""

import enum
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from common.errors import WrongStateError
from common.forms.delivery import SetLabel
from common.forms.epoch import StoreEpoch
from nexus.keys import records
from nexus.keys.operation import next_action as actions
from nexus.keys.operation.change import Change
from nexus.keys.operation.evidence import Holding, Proof
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.next_action import Action, Memory, Transition, View
from nexus.keys.operation.record import Driver, OperationRecord, Step, Ticket
from nexus.keys.operation.refusal import Refused
from nexus.keys.operation.transitions import make_flip
from tests.nexus.keys.operation.made import CLUSTER, GENESIS, make_shard, open_wrap
from tests.nexus.keys.operation.model.keeper import ModelKeeper, ModelMark

if TYPE_CHECKING:
    from tests.nexus.keys.operation.model.world import World


class Mode(enum.Enum):
    RECOVERING = enum.auto()
    BLOCKED = enum.auto()  # it has the key, and a mark is newer than the store
    READY = enum.auto()
    SEALED = enum.auto()
    GONE = enum.auto()


def open_root(facts: Facts, root: bytes) -> dict[int, bytes]:
    """Open everything that a recovery opens with a root key, and return the tokens of all KEKs."""
    assert facts.generations[facts.generation].kcv == root, "the key is not of the current generation"
    keks = {}
    for name, kek in facts.keyring.keks.items():
        opened = open_wrap(kek.wrap, root)
        assert opened is not None, f"KEK {name} does not open"
        keks[int(name)] = opened
    canary = records.decode(records.CanaryRecord, facts.bodies[records.CANARY, str(facts.kek_id)])
    assert canary.wrapped_dek == keks[facts.kek_id], "the canary does not open"
    return keks


def is_member(shard_set: records.ShardSetRecord, name: str) -> bool:
    return any(member.name == name for member in shard_set.members)


class ModelNexus:
    """One process, until it ends."""

    def __init__(self, world: "World", boot: bytes) -> None:
        self.world = world
        self.mode = Mode.SEALED if world.store.state.meta.sealed else Mode.RECOVERING
        self.driver = Driver("nexus", boot)
        self.forget()

    def forget(self) -> None:
        """Lose all keys, and all that hangs on them."""
        self.memory = Memory(self.driver)
        self.root = b""
        self.new_root = b""
        self.keks: dict[int, bytes] = {}
        self.points: set[bytes] = set()
        self.proved: dict[tuple[bytes, str], tuple[bytes, float]] = {}  # by set and keeper: boot, and when asked
        self.gone: dict[int, set[str]] = {}
        self.gathered: dict[Ticket, set[int]] = {}
        self.floor = (0, 0)

    @property
    def facts(self) -> Facts:
        return self.world.store.facts

    @property
    def epoch(self) -> StoreEpoch:
        return StoreEpoch(*self.floor)

    def install(self, root: bytes) -> None:
        """Serve with a proved key."""
        self.keks = open_root(self.facts, root)
        self.root, self.mode = root, Mode.READY
        self.points.add(self.facts.current_set.set_id)
        self.look()

    def look(self) -> None:
        """Take the store of now as the one that this nexus left."""
        meta = self.world.store.state.meta
        self.floor = (meta.timeline, meta.epoch)

    def check_floor(self) -> bool:
        """Whether the store is as this nexus left it; else it stops serving."""
        meta = self.world.store.state.meta
        if self.mode is Mode.READY and self.floor != (meta.timeline, meta.epoch):
            self.forget()
            self.mode = Mode.SEALED if meta.sealed else Mode.RECOVERING
        return self.mode is Mode.READY

    # What the core says.

    def decide(self) -> tuple[Action, Facts]:
        """Ask the core what to do."""
        facts = self.facts
        ticket = None if facts.operation is None else facts.operation.ticket
        if ticket != self.memory.seen:
            self.memory = replace(self.memory, seen=ticket, since=self.world.now)
        return self.world.core.next_action(facts, self.memory, self._view(facts)), facts

    def drive(self) -> Action | None:
        """Take the next action."""
        if not self.check_floor():
            return None
        action, facts = self.decide()
        self.perform(action, facts)
        return action

    def perform(self, action: Action, facts: Facts) -> None:
        """Do what was decided on *facts*, which may be old by now."""
        match action:
            case actions.Put(set_number, keepers):
                for name in sorted(keepers):
                    self._fill(facts.current_set, name, facts.current_set)
                    self._fill(facts.sets[set_number], name, facts.current_set)
            case actions.Fetch(set_number):
                self._gather(facts, facts.sets[set_number])
            case actions.Prove(set_number):
                self._prove(facts, facts.sets[set_number])
            case actions.ProveHolders(set_number):
                for member in facts.sets[set_number].members:
                    self.ask_holder(facts.sets[set_number], member.name)
            case actions.PutMark():
                self.put_marks()
                is_flipped = facts.operation is not None and facts.operation.step is Step.FLIPPED
                self.memory = replace(self.memory, marked=(facts.meta.epoch, is_flipped))
            case actions.Commit(transition):
                self._commit(transition, facts)
            case actions.Abort():
                self.abort(facts)
            case actions.Scrub():
                self.memory = replace(self.memory, is_scrub_due=False)
            case actions.Drop():
                self.poll()

    def abort(self, facts: Facts) -> None:
        assert facts.operation is not None
        change = self.world.core.abort(self.facts, facts.operation.ticket)
        if self.save(change):
            self.memory = replace(self.memory, is_scrub_due=True)

    def save(self, change: Change | Refused) -> bool:
        """Commit a change; whoever is refused because another was first is gone if it is not the one that lives."""
        if isinstance(change, Refused):
            self.world.count("refused", change.reason)
            if self is not self.world.nexus:
                self.mode = Mode.GONE
            return False
        self.world.commit(change)
        self.look()
        return True

    def _view(self, facts: Facts) -> View:
        holders = {}
        if facts.operation is not None and (target := facts.sets.get(facts.operation.target.set_number)) is not None:
            holders = self._find_holders(target)
        return View(self.world.now, holders, {number: frozenset(names) for number, names in self.gone.items()})

    def _find_holders(self, target: records.ShardSetRecord) -> dict[str, Holding]:
        return {
            name: Holding(boot, self.world.now - asked)
            for (set_id, name), (boot, asked) in self.proved.items()
            if set_id == target.set_id
        }

    def _commit(self, transition: Transition, facts: Facts) -> None:
        core, now, at = self.world.core, self.facts, self.world.at
        if transition is Transition.FORGET_SETS:
            self.save(core.forget_sets(now, self._view(now).gone))
            return
        if transition is Transition.HEAL:
            if self.save(core.heal(now)):
                self.memory = replace(self.memory, is_scrub_due=True)
                self.world.count("heal")
            return
        record = facts.operation
        assert record is not None
        evidence = {"driver": self.driver, "at": at}
        if transition is Transition.TAKE_OVER:
            self.save(core.take_over(now, record.ticket, **evidence))
            return
        if transition is Transition.SETTLE:
            if self.save(core.settle(now, record.ticket, proof=self.memory.proof, **evidence)):
                self.memory = replace(self.memory, is_scrub_due=True)
            return
        evidence |= {"proof": self.memory.proof, "holders": self._find_holders(facts.sets[record.target.set_number])}
        if transition is Transition.DISTRIBUTE:
            if self.save(core.distribute(now, record.ticket, **evidence)):
                self.world.count("distribute", record.depth)
            return
        link = self.new_root if record.depth.renews_key else b""
        if self.save(core.flip(now, record.ticket, link=link, revision=now.meta.revision + 1, **evidence)):
            self._swap(record)

    def _swap(self, record: OperationRecord) -> None:
        self.world.count("flip", record.depth)
        self.world.store.note_flip(record.depth)
        self.root = self.new_root
        self.keks = open_root(self.facts, self.root)

    def _prove(self, facts: Facts, target: records.ShardSetRecord) -> None:
        record = facts.operation
        assert record is not None
        root = self.world.set_keys[target.set_id]
        proved = facts
        if record.step is not Step.FLIPPED:
            flip = make_flip(facts, record, link=root if record.depth.renews_key else b"", revision=1, at=self.world.at)
            if isinstance(flip, Refused):
                return
            proved = facts.after(flip)
        open_root(proved, root)
        self.new_root = root
        self.points.add(target.set_id)
        proof = Proof(record.id, target.set_number, record.step, self.driver)
        self.memory = replace(self.memory, proof=proof, key_of=record.id, fetched=None)

    # Messages.

    def put_marks(self) -> None:
        mark = self.world.make_mark()
        for name in self.world.keepers:
            self._send(name, lambda keeper: keeper.put_mark(mark, self.epoch), lambda _: None)

    def poll(self) -> None:
        """Ask every keeper what it holds; fill it, and let it drop what is dead."""
        for name in self.world.keepers:
            self._send(
                name, lambda keeper: (keeper.report(), keeper.mark), lambda found, name=name: self._hear(name, *found)
            )

    def empty(self) -> None:
        """Let every keeper drop all that it holds."""
        for name in self.world.keepers:
            self._send(name, lambda keeper: keeper.report(), lambda held, name=name: self._empty(name, held))

    def ask_holder(self, target: records.ShardSetRecord, name: str) -> None:
        asked = self.world.now

        def hear(found: tuple[bytes | None, bytes]) -> None:
            shard, boot = found
            if shard == self._make_shard(target, name):
                self.proved[target.set_id, name] = boot, asked
            else:
                self.proved.pop((target.set_id, name), None)

        self._send(name, lambda keeper: (keeper.fetch(target.set_id, self.world.now), keeper.boot_id), hear)

    def _hear(self, name: str, held: dict[bytes, SetLabel], mark: ModelMark) -> None:
        if not self.check_floor():
            return
        if self.world.is_newer(mark):
            root = self.root
            self.forget()
            self.root, self.mode = root, Mode.BLOCKED
            return
        facts = self.facts
        current = facts.current_set
        if current.set_id not in held:
            self._fill(current, name, current)
        for number, shard_set in facts.sets.items():
            if shard_set.set_id not in held:
                self.gone.setdefault(number, set()).add(name)
                self.proved.pop((shard_set.set_id, name), None)
            else:
                self.gone.setdefault(number, set()).discard(name)
        for set_id, label in held.items():
            if self.world.core.is_droppable(facts, set_id, label.order):
                self._drop(name, set_id)

    def _empty(self, name: str, held: dict[bytes, SetLabel]) -> None:
        if self.mode is Mode.SEALED:
            self.look()
            for set_id in held:
                self._drop(name, set_id)

    def _drop(self, name: str, set_id: bytes) -> None:
        epoch = self.epoch
        self._send(name, lambda keeper: keeper.drop(set_id, epoch), lambda _: None)

    def _fill(self, target: records.ShardSetRecord, name: str, current: records.ShardSetRecord) -> None:
        if target.set_id not in self.points or not is_member(target, name):
            return
        current_set_id = current.set_id if is_member(current, name) else b""
        shard, member = self._make_shard(target, name), self._find_member(target, name)
        label, epoch = target.label(CLUSTER, GENESIS), self.epoch

        def put(keeper: ModelKeeper) -> str:
            try:
                keeper.put(label, shard, member.commitment, current_set_id, epoch)
            except WrongStateError as exc:
                return str(exc)
            return ""

        def hear(refusal: str) -> None:
            if "not newer" in refusal and target.state is records.SetState.CURRENT:
                self.world.refused_as_not_newer.setdefault(target.set_id, set()).add(name)
            if not refusal:
                self.ask_holder(target, name)

        self._send(name, put, hear)

    def _gather(self, facts: Facts, target: records.ShardSetRecord) -> None:
        assert facts.operation is not None
        ticket = facts.operation.ticket

        def hear(x: int, shard: bytes | None) -> None:
            if shard == make_shard(target.set_id, x):
                self.gathered.setdefault(ticket, set()).add(x)
                if len(self.gathered[ticket]) >= target.threshold:
                    self.memory = replace(self.memory, fetched=ticket)

        for member in target.members:
            fetch: Callable[[ModelKeeper], bytes | None] = lambda keeper: keeper.fetch(target.set_id, self.world.now)  # noqa: E731
            self._send(member.name, fetch, lambda shard, x=member.x: hear(x, shard))

    def _send(self, name: str, call: Callable[[ModelKeeper], object], hear: Callable[..., None]) -> None:
        self.world.send(self, name, call, hear)

    def _find_member(self, target: records.ShardSetRecord, name: str) -> records.MemberRecord:
        return next(member for member in target.members if member.name == name)

    def _make_shard(self, target: records.ShardSetRecord, name: str) -> bytes:
        return make_shard(target.set_id, self._find_member(target, name).x)
