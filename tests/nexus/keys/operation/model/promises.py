"""What every committed state keeps, and every drop; none of it knows how a rule may be broken."""

from typing import TYPE_CHECKING

from nexus.keys import records
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Step, WaiverKind
from tests.nexus.keys.operation.model.store import State

if TYPE_CHECKING:
    from tests.nexus.keys.operation.model.world import World

MAX_AGE = 5.0  # seconds between a holder's last true answer and the flip that relies on it


def check_commit(world: "World", before: tuple[State, Facts]) -> None:
    """Look at what a commit has left, and at what it changed."""
    check_state(world)
    check_numbers(world)
    check_steps(world, before[1], world.store.facts)


def check_state(world: "World") -> None:
    """The current generation opens everything: KEKs, rows, canary, and its escrow opens for custodians."""
    facts = world.store.facts
    keks = world.open_current()
    named = (facts.meta.generation, facts.meta.kek_id)
    assert named == (facts.generation, facts.kek_id), "the meta row names another generation or KEK"
    assert len(facts.pending_sets) <= 1, "two sets are pending"
    escrow = records.decode(records.EscrowRecord, facts.bodies[records.ESCROW, str(facts.generation)])
    assert escrow.copies[0].sealed == facts.generations[facts.generation].kcv, "custodians cannot open the generation"
    active = [number for number, one in facts.generations.items() if one.state is records.GenerationState.ACTIVE]
    assert active == [facts.generation], f"generations {active} are active"
    for number, row in world.store.state.rows.items():
        if not row.is_rotten:
            assert keks.get(row.kek_id) == row.kek, f"row {number} does not open under KEK {row.kek_id}"


def check_numbers(world: "World") -> None:
    """A number is given out once."""
    facts = world.store.facts
    for number, shard_set in facts.sets.items():
        assert world.given_out.setdefault(("set", number), shard_set.set_id) == shard_set.set_id, f"set {number} twice"
    for number, generation in facts.generations.items():
        known = world.given_out.setdefault(("generation", number), generation.kcv)
        assert known == generation.kcv, f"generation {number} twice"
    for kek_id, kek in world.open_current().items():
        assert world.given_out.setdefault(("KEK", kek_id), kek) == kek, f"KEK {kek_id} twice"


def check_steps(world: "World", before: Facts, after: Facts) -> None:
    """Who goes on from prepared began the operation, and a flip has its holders."""
    old, new = before.operation, after.operation
    if new is not None and new.step is Step.PREPARED and old is None:
        world.makers[new.id] = new.driver
    if old is None or new is None or old.step is new.step:
        return
    if new.step is Step.DISTRIBUTED:
        assert new.driver == world.makers[new.id], "another process went on from prepared"
    if new.step is Step.FLIPPED:
        assert old.step is Step.DISTRIBUTED, "flipped before it was distributed"
        target = after.current_set
        wanted = target.threshold if new.waives(WaiverKind.THRESHOLD) else target.quorum
        holders = [
            keeper.name
            for keeper in world.keepers.values()
            if world.now - keeper.gave.get(target.set_id, -MAX_AGE - 1) <= MAX_AGE
            or world.now - world.died_holding.get((keeper.name, target.set_id), -MAX_AGE - 1) <= MAX_AGE
        ]
        assert len(holders) >= wanted, f"flipped with holders {holders}, want {wanted}"


def check_drops(world: "World") -> None:
    """No honest keeper is made to drop what may still be needed."""
    facts = world.store.facts
    needed = {facts.current_set.set_id}
    if facts.operation is not None and facts.operation.step is Step.FLIPPED:
        source = facts.sets.get(facts.operation.source.set_number)
        needed |= set() if source is None else {source.set_id}
    for keeper in world.keepers.values():
        dropped, keeper.dropped = keeper.dropped, []
        if not world.store.state.meta.sealed and not keeper.is_liar:
            assert not needed.intersection(dropped), f"{keeper.name} dropped a set that is needed"


def find_wanted(facts: Facts, keeper: str) -> set[bytes]:
    """What a keeper holds when everything is at rest."""
    is_member = any(member.name == keeper for member in facts.current_set.members)
    return {facts.current_set.set_id} if is_member else set()


def check_rest(world: "World") -> None:
    """Everything is mended and nothing is left to do."""
    facts = world.store.facts
    current = facts.current_set
    steps = [] if facts.operation is None else [facts.operation.step]
    assert not steps, f"an operation is {steps[0]}"
    assert not facts.pending_sets
    assert not facts.damaged, f"damaged: {sorted(facts.damaged)}"
    assert not facts.older_keyrings
    assert list(facts.sets) == [current.set_number], f"sets {list(facts.sets)} have rows"
    for keeper in world.keepers.values():
        assert set(keeper.held) == find_wanted(facts, keeper.name), f"{keeper.name} holds {len(keeper.held)} sets"
    rows = world.store.state.rows.values()
    assert all(row.is_abandoned or row.kek_id == facts.kek_id for row in rows), "a row is under an older KEK"
    tainted = world.store.state.tainted
    assert not any(row.dek in tainted for row in rows if not row.is_abandoned), (
        "a row has a DEK from before an emergency"
    )
    assert set(facts.keyring.keks) == {str(facts.kek_id)}, "an older KEK is left"
    ends = {records.GenerationState.RETIRED, records.GenerationState.COMPROMISED, records.GenerationState.ABORTED}
    left = [number for number, one in facts.generations.items() if one.state not in ends and number != facts.generation]
    assert not left, f"generations {left} are not retired"
