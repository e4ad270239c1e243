"""What the driver does next. It asks anew after each action: nothing is planned ahead.

Put and Drop are duties of the keepers' threads: the driver hands them out, and looks again after `POLL`.

1. A process that finds an operation at `prepared` which it did not begin aborts it: the new key and points are lost.
2. At `distributed` or `flipped` it takes over first. It has neither key nor points until it fetched them from keepers.
3. Before the flip, `distributed` waits up to 60 s for all members, and only then is content with what the flip wants.
   On the operator's word it does not wait for more than t.
4. A process that took over at `distributed` aborts if it could not flip within 60 s. The one that began the operation
   has the key and waits on.
5. A mark goes out before the flip and after it; the holders prove themselves last before the commit.
6. After the flip the new set is fetched once more, by the recovery way, before the operation is settled.
7. Once no operation is left, what it deleted is scrubbed, then keepers drop the dead sets, then their rows go.
8. What cannot be read, or was left behind, is ended first; before the flip, so is an operation of which a staged row
   does not verify. While the cluster is sealed, nothing is done.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from nexus.keys.operation.dead_sets import find_droppable, find_forgettable
from nexus.keys.operation.ending import needs_healing
from nexus.keys.operation.evidence import Holding, Proof
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.guards import BEFORE_FLIP, check_proof, check_target, count_wanted
from nexus.keys.operation.record import Driver, OperationRecord, Step, Ticket, WaiverKind
from nexus.keys.operation.transitions import MAX_AGE

PATIENCE = 60.0  # seconds: for all members before the flip, and for a flip after taking over
POLL = 1.0  # seconds


class Transition(enum.StrEnum):
    """A change that the driver commits."""

    DISTRIBUTE = "distribute"
    FLIP = "flip"
    SETTLE = "settle"
    TAKE_OVER = "take over"
    HEAL = "heal"
    FORGET_SETS = "forget sets"


@dataclass(frozen=True, slots=True)
class Put:
    """Give *keepers* their shards of a set."""

    set_number: int
    keepers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch t shards of a set on new connections, by the recovery way."""

    set_number: int


@dataclass(frozen=True, slots=True)
class Prove:
    """Combine what was fetched, and prove the key: before the flip on its result in memory, afterwards on the rows."""

    set_number: int


@dataclass(frozen=True, slots=True)
class ProveHolders:
    """Let every member prove now that it holds its shard of a set."""

    set_number: int


@dataclass(frozen=True, slots=True)
class PutMark:
    """Give every keeper a mark of where the store stands."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit a transition, with what memory and view give as its evidence."""

    transition: Transition


@dataclass(frozen=True, slots=True)
class Abort:
    """Commit an abort."""

    why: str


@dataclass(frozen=True, slots=True)
class Scrub:
    """Overwrite what the store has deleted."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Let members drop sets."""

    set_numbers: frozenset[int]


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again after *seconds*, or when something happens."""

    why: str
    seconds: float = POLL


Action = Put | Fetch | Prove | ProveHolders | PutMark | Commit | Abort | Scrub | Drop | Wait


@dataclass(frozen=True, slots=True)
class Memory:
    """What the driving process remembers; all of it is gone when it ends. Times are monotonic seconds."""

    driver: Driver
    begun: bytes = b""  # id of the operation that this process prepared
    key_of: bytes = b""  # id of the operation whose new points it has
    fetched: Ticket | None = None  # of the step at which t shards were fetched, which are not proved yet
    proof: Proof | None = None
    marked: tuple[int, bool] = (0, False)  # epoch at which every keeper was given a mark, and whether after the flip
    seen: Ticket | None = None  # the step that it has seen last
    since: float = 0.0  # when it first saw this step
    is_scrub_due: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """What keepers look like now."""

    now: float  # monotonic seconds
    holders: Mapping[str, Holding] = field(default_factory=dict)  # of the operation's new set, by name
    gone: Mapping[int, frozenset[str]] = field(default_factory=dict)  # see `dead_sets.find_forgettable`


def next_action(facts: Facts, memory: Memory, view: View) -> Action:
    """Say what the driver does next."""
    if facts.meta.sealed:
        return Wait("the cluster is sealed")
    if needs_healing(facts):
        return Commit(Transition.HEAL)
    record = facts.operation
    if record is None:
        return _clear_up(facts, memory, view)
    if record.driver != memory.driver:
        return _begin_found(record)
    if record.step is Step.FLIPPED:
        return _finish(facts, record, memory, view)
    if refused := check_target(facts, record):
        return Abort(refused.text)
    if record.step is Step.PREPARED:
        return _distribute(facts, record, memory, view)
    return _flip(facts, record, memory, view)


def _begin_found(record: OperationRecord) -> Action:
    """Rules 1 and 2."""
    if record.step is Step.PREPARED:
        return Abort("its key and points died with the process that began it")
    return Commit(Transition.TAKE_OVER)


def _distribute(facts: Facts, record: OperationRecord, memory: Memory, view: View) -> Action:
    if memory.key_of != record.id:
        return Abort("its key and points are not in memory")
    holders = _find_holders(facts, record, view)
    if len(holders) < count_wanted(facts, record):
        return _deliver(facts, record, view)
    if check_proof(record, memory.proof, BEFORE_FLIP) is not None:
        return _prove(record, memory)
    return Commit(Transition.DISTRIBUTE)


def _flip(facts: Facts, record: OperationRecord, memory: Memory, view: View) -> Action:
    waited = view.now - memory.since >= PATIENCE
    is_ready = _is_ready(facts, record, view, waited=waited)
    is_proved = check_proof(record, memory.proof, BEFORE_FLIP) is None
    if waited and memory.begun != record.id and not (is_ready and is_proved):
        return Abort(f"keepers did not bring set {record.target.set_number} back in {PATIENCE:.0f} s")  # rule 4
    if memory.key_of != record.id or not is_proved:
        return _prove(record, memory)
    if not is_ready:
        return _deliver(facts, record, view)
    if memory.marked != (facts.meta.epoch, False):
        return PutMark()
    fresh = [holding for holding in _find_holders(facts, record, view).values() if holding.age <= MAX_AGE]
    if len(fresh) < count_wanted(facts, record):
        return ProveHolders(record.target.set_number)
    return Commit(Transition.FLIP)


def _finish(facts: Facts, record: OperationRecord, memory: Memory, view: View) -> Action:
    """Rules 5 and 6."""
    if memory.marked != (facts.meta.epoch, True):
        return PutMark()
    if check_proof(record, memory.proof, (Step.FLIPPED,)) is None or record.waives(WaiverKind.PROOF):
        return Commit(Transition.SETTLE)
    if len(_find_holders(facts, record, view)) < facts.current_set.threshold:
        return _deliver(facts, record, view)
    return _prove(record, memory)


def _clear_up(facts: Facts, memory: Memory, view: View) -> Action:
    """Rule 7."""
    if memory.is_scrub_due:
        return Scrub()
    if find_forgettable(facts, view.gone):
        return Commit(Transition.FORGET_SETS)
    droppable = frozenset(find_droppable(facts))
    return Drop(droppable) if droppable else Wait("no operation is in progress")


def _prove(record: OperationRecord, memory: Memory) -> Action:
    if memory.fetched != record.ticket:
        return Fetch(record.target.set_number)
    return Prove(record.target.set_number)


def _deliver(facts: Facts, record: OperationRecord, view: View) -> Action:
    members = {member.name for member in facts.sets[record.target.set_number].members}
    lacking = frozenset(members - view.holders.keys())
    return Put(record.target.set_number, lacking) if lacking else Wait("for keepers")


def _find_holders(facts: Facts, record: OperationRecord, view: View) -> dict[str, Holding]:
    members = {member.name for member in facts.sets[record.target.set_number].members}
    return {name: holding for name, holding in view.holders.items() if name in members}


def _is_ready(facts: Facts, record: OperationRecord, view: View, *, waited: bool) -> bool:
    """Rule 3."""
    count = len(_find_holders(facts, record, view))
    is_content = waited or record.waives(WaiverKind.THRESHOLD)
    wanted = count_wanted(facts, record) if is_content else len(facts.sets[record.target.set_number].members)
    return count >= wanted
