"""The end of an operation, read from the rows, whether or not its own row can be read."""

from dataclasses import replace

import pytest

from nexus.keys import records
from nexus.keys.operation import transitions
from nexus.keys.operation.ending import end_operation, is_flipped, needs_healing
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.record import Depth, EndedRecord, Outcome, Step
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.records import GenerationState, SetState
from tests.nexus.keys.operation.made import bring_to, damage, make_facts, read_operation, settle

DEPTHS = list(Depth)
STAGED = [
    (records.SHARD_SET, "2"),
    (records.GENERATION, "2"),
    (records.KEYRING, "2"),
    (records.ESCROW, "2"),
    (records.CANARY, "3"),
]


def lose_operation(facts: Facts) -> Facts:
    bodies = {key: body for key, body in facts.bodies.items() if key != records.OPERATION}
    return read_facts(facts.meta, bodies, facts.damaged)


READABLE = [
    pytest.param(lambda facts: facts, id="readable"),
    pytest.param(lambda facts: damage(facts, records.OPERATION), id="damaged"),
    pytest.param(lambda facts: replace(facts, bodies={**facts.bodies, records.OPERATION: b"{"}), id="no record"),
    pytest.param(lose_operation, id="lost"),
]


def test_nothing_ends_where_nothing_is_in_progress() -> None:
    assert end_operation(make_facts()).is_empty


def without_ended(facts: Facts) -> dict[records.Key, bytes]:
    """Return the rows but for the one that remembers the operation, which an unreadable one does not leave."""
    return {key: body for key, body in facts.bodies.items() if key != records.ENDED}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("step", list(Step))
def test_what_has_ended_is_remembered(step: Step, depth: Depth) -> None:
    facts = bring_to(step, depth)
    record = read_operation(facts)
    ended = facts.after(end_operation(facts, detail="why", at=7)).ended
    outcome = Outcome.SETTLED if step is Step.FLIPPED else Outcome.ABORTED
    assert ended == EndedRecord(record.id, depth, outcome, "why", 7, record.source, record.target)


@pytest.mark.parametrize("hide", READABLE)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("step", [Step.PREPARED, Step.DISTRIBUTED])
def test_before_the_flip_it_is_taken_back(step: Step, depth: Depth, hide: object) -> None:
    """To exactly what an abort leaves."""
    facts = bring_to(step, depth)
    aborted = transitions.abort(facts, read_operation(facts).ticket)
    hidden = _read(hide(facts))  # type: ignore[operator]
    assert not is_flipped(hidden)
    after = hidden.after(end_operation(hidden))
    assert without_ended(after) == without_ended(facts.after(aborted))  # type: ignore[arg-type]
    assert not after.damaged
    assert after.meta.epoch == facts.meta.epoch


@pytest.mark.parametrize("hide", READABLE)
@pytest.mark.parametrize("depth", DEPTHS)
def test_after_the_flip_it_is_settled(depth: Depth, hide: object) -> None:
    facts = bring_to(Step.FLIPPED, depth)
    hidden = _read(hide(facts))  # type: ignore[operator]
    after = hidden.after(end_operation(hidden))
    assert without_ended(after) == without_ended(settle(facts))
    assert not after.damaged


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("step", list(Step))
def test_a_seal_takes_back_and_keeps_what_is_flipped(step: Step, depth: Depth) -> None:
    facts = bring_to(step, depth)
    change = end_operation(facts, keeps_flipped=True)
    assert change.is_empty is (step is Step.FLIPPED)
    assert (facts.after(change).operation is None) is (step is not Step.FLIPPED)


@pytest.mark.parametrize("key", STAGED, ids="/".join)
@pytest.mark.parametrize("step", [Step.PREPARED, Step.DISTRIBUTED])
def test_what_is_staged_and_damaged_is_deleted(step: Step, key: records.Key) -> None:
    facts = damage(bring_to(step), key)
    after = facts.after(end_operation(facts))
    assert not after.damaged
    assert after.operation is None
    assert after.current == make_facts().current
    assert not after.pending_sets
    assert all(one.state is not SetState.PENDING for one in after.sets.values())
    assert all(one.state is not GenerationState.PENDING for one in after.generations.values())
    assert list(after.keyrings) == [1]


@pytest.mark.parametrize("key", [(records.KEYRING, "1"), (records.ESCROW, "1"), (records.CANARY, "2")], ids="/".join)
def test_what_was_replaced_and_is_damaged_is_deleted(key: records.Key) -> None:
    facts = damage(bring_to(Step.FLIPPED), key)
    after = facts.after(end_operation(facts))
    assert not after.damaged
    assert without_ended(after) == without_ended(settle(bring_to(Step.FLIPPED)))


@pytest.mark.parametrize(
    ("facts", "needs"),
    [
        pytest.param(make_facts(), False, id="nothing is in progress"),
        pytest.param(bring_to(Step.PREPARED), False, id="somebody carries it on"),
        pytest.param(bring_to(Step.FLIPPED), False, id="so after the flip"),
        pytest.param(damage(bring_to(Step.PREPARED), records.OPERATION), True, id="it cannot be read"),
        pytest.param(damage(bring_to(Step.FLIPPED), records.OPERATION), True, id="nor after the flip"),
        pytest.param(lose_operation(bring_to(Step.DISTRIBUTED)), True, id="its row is lost"),
        pytest.param(
            damage(settle(bring_to(Step.FLIPPED)), (records.SHARD_SET, "1")), True, id="a dead set is damaged"
        ),
        pytest.param(damage(make_facts(), (records.POLICY, "p")), False, id="a policy is damaged"),
    ],
)
def test_what_nobody_carries_on_is_ended(facts: Facts, needs: bool) -> None:
    assert needs_healing(facts) is needs
    change = transitions.heal(facts)
    assert isinstance(change, Refused) is not needs
    if not isinstance(change, Refused):
        after = facts.after(change)
        assert not needs_healing(after)
        assert after.current == facts.current
        assert after.meta.epoch == facts.meta.epoch + 1


def test_a_sealed_cluster_is_not_healed() -> None:
    facts = damage(bring_to(Step.PREPARED), records.OPERATION)
    change = transitions.heal(replace(facts, meta=replace(facts.meta, sealed=True)))
    assert isinstance(change, Refused)
    assert change.reason is Reason.SEALED


def test_ending_twice_changes_nothing_more() -> None:
    for step in Step:
        facts = bring_to(step)
        after = facts.after(end_operation(facts))
        assert end_operation(after).is_empty


def _read(facts: Facts) -> Facts:
    return read_facts(facts.meta, facts.bodies, facts.damaged)
