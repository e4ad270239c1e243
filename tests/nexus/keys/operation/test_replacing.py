"""What is current, replaced at once: after an unseal, and when an older store is accepted."""

from dataclasses import replace

import pytest

from common.forms.chain import MAX_LINKS
from nexus.keys import records
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth, Numbers, Step
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.operation.replacing import replace_at_once
from nexus.keys.operation.staging import next_numbers
from nexus.keys.records import GenerationState, KekState, SetState
from tests.nexus.keys.operation.made import NOW, bring_to, damage, do, make_facts, make_staged

STEPS: list[Step | None] = [None, *Step]


def replace_now(facts: Facts, *, renews_key: bool, seen: Numbers = Numbers(), timeline: int = 1) -> Facts:  # noqa: B008
    numbers = next_numbers(facts, renews_key=renews_key, seen=seen)
    staged = make_staged(facts, numbers, renews_key=renews_key, timeline=timeline, nonce="now")
    return do(facts, replace_at_once(facts, staged, actor="alice", reason="accepted", revision=8, at=NOW))


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("step", STEPS)
def test_an_unseal_ends_the_operation_and_has_a_new_set(step: Step | None, depth: Depth) -> None:
    facts = bring_to(step, depth)
    after = replace_now(facts, renews_key=False)
    assert after.operation is None
    assert not after.pending_sets
    assert not after.older_keyrings
    assert after.current == replace_numbers(facts.current, set_number=facts.meta.last_set_number + 1)
    assert [one.state for one in after.sets.values()].count(SetState.CURRENT) == 1
    assert after.meta.epoch == facts.meta.epoch  # the unseal raises it


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("step", STEPS)
def test_accepting_ends_the_operation_and_has_a_new_generation(step: Step | None, depth: Depth) -> None:
    facts = bring_to(step, depth)
    after = replace_now(facts, renews_key=True, timeline=2)
    last = facts.meta
    assert after.current == Numbers(last.last_generation + 1, last.last_set_number + 1, last.last_kek_id + 1)
    assert after.operation is None
    assert list(after.keyrings) == [after.generation]
    states = {number: kek.state for number, kek in after.keyring.keks.items()}
    assert states.pop(str(after.kek_id)) is KekState.CURRENT
    assert states.keys() == facts.keyring.keks.keys()
    old = after.generations[facts.generation].state
    assert old is GenerationState.DECRYPT_ONLY
    assert after.generations[after.generation].without_backup == "accepted"
    assert after.chain_length == facts.chain_length + 1
    names = {name for kind, name in after.bodies if kind == records.CANARY}
    assert names == {str(after.kek_id)}
    assert {name for kind, name in after.bodies if kind == records.ESCROW} == {str(after.generation)}


def test_accepting_uses_no_number_that_a_mark_has_seen() -> None:
    after = replace_now(make_facts(), renews_key=True, seen=Numbers(7, 20, 9))
    assert after.current == Numbers(8, 21, 10)
    assert (after.meta.last_generation, after.meta.last_set_number, after.meta.last_kek_id) == (8, 21, 10)


def test_a_full_chain_cannot_be_continued() -> None:
    facts = make_facts()
    facts = replace(
        facts, bodies={**facts.bodies, **{(records.LINK, str(seq)): b"l" for seq in range(1, MAX_LINKS + 1)}}
    )
    staged = make_staged(facts, next_numbers(facts, renews_key=True))
    change = replace_at_once(facts, staged, actor="a", reason="r", revision=1, at=NOW)
    assert isinstance(change, Refused)
    assert change.reason is Reason.CHAIN_FULL


@pytest.mark.parametrize("name", ["1", "7"])
def test_a_link_that_somebody_added_is_not_counted(name: str) -> None:
    """The new link would stand where nobody looks for it, and the chain would lead nowhere."""
    facts = damage(make_facts(), (records.LINK, name))
    staged = make_staged(facts, next_numbers(facts, renews_key=True))
    change = replace_at_once(facts, staged, actor="a", reason="r", revision=1, at=NOW)
    assert isinstance(change, Refused)
    assert (change.reason, change.text) == (Reason.CONTROL_ROW_DAMAGED, f"control row link/{name} does not verify")
    same = make_staged(facts, next_numbers(facts, renews_key=False), renews_key=False)
    unsealed = replace_at_once(facts, same, actor="", reason="", revision=1, at=NOW)
    assert not isinstance(unsealed, Refused)


def test_what_does_not_fit_is_refused() -> None:
    facts = bring_to(Step.PREPARED)
    staged = make_staged(facts, Numbers(2, 2, 3))  # the numbers of the operation
    change = replace_at_once(facts, staged, actor="a", reason="r", revision=1, at=NOW)
    assert isinstance(change, Refused)
    assert change.reason is Reason.STAGED_INVALID


def replace_numbers(numbers: Numbers, *, set_number: int) -> Numbers:
    return Numbers(numbers.generation, set_number, numbers.kek_id)
