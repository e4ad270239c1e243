"""When keepers may drop a set, and when its row goes."""

import pytest

from nexus.keys import records
from nexus.keys.operation import transitions
from nexus.keys.operation.dead_sets import find_droppable, find_forgettable, forget_sets, is_droppable
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth, Step
from tests.nexus.keys.operation.made import NAMES, bring_to, damage, do, make_facts, read_operation, settle


def aborted() -> Facts:
    facts = bring_to(Step.DISTRIBUTED)
    return do(facts, transitions.abort(facts, read_operation(facts).ticket))


@pytest.mark.parametrize(
    ("facts", "droppable"),
    [
        pytest.param(make_facts(), [], id="nothing is dead"),
        pytest.param(bring_to(Step.PREPARED), [], id="prepared"),
        pytest.param(bring_to(Step.DISTRIBUTED), [], id="distributed"),
        pytest.param(bring_to(Step.FLIPPED), [], id="flipped: what was replaced is kept"),
        pytest.param(bring_to(Step.FLIPPED, Depth.RESHARE), [], id="so with a reshare"),
        pytest.param(settle(bring_to(Step.FLIPPED)), [1], id="settled"),
        pytest.param(aborted(), [2], id="aborted"),
        pytest.param(damage(aborted(), records.OPERATION), [], id="nobody knows what is in progress"),
    ],
)
def test_keepers_drop_what_is_dead_and_not_needed(facts: Facts, droppable: list[int]) -> None:
    assert list(find_droppable(facts)) == droppable
    for number, one in facts.sets.items():
        assert is_droppable(facts, one.set_id, (one.timeline, one.set_number)) is (number in droppable)


@pytest.mark.parametrize(
    ("order", "is_dead"),
    [
        pytest.param((1, 1), True, id="older than the current one"),
        pytest.param((1, 2), True, id="newer, and was given out: its row was forgotten"),
        pytest.param((1, 3), False, id="never given out: this store may be the one that is behind"),
        pytest.param((0, 9), True, id="of a timeline that was abandoned"),
        pytest.param((2, 1), False, id="of a later timeline"),
    ],
)
def test_a_set_without_a_row_is_dead_if_it_was_given_out(order: tuple[int, int], is_dead: bool) -> None:
    assert is_droppable(settle(bring_to(Step.FLIPPED)), b"unknown", order) is is_dead


def test_a_set_without_a_row_stays_while_rows_are_damaged() -> None:
    """It may be the one whose row does not verify."""
    assert not is_droppable(damage(aborted(), (records.SHARD_SET, "2")), b"unknown", (1, 1))


@pytest.mark.parametrize(
    ("gone", "forgotten"),
    [
        pytest.param({}, [], id="nobody has dropped it"),
        pytest.param({1: frozenset(NAMES[:4])}, [], id="one has not dropped it"),
        pytest.param({2: frozenset(NAMES)}, [], id="they dropped another one"),
        pytest.param({1: frozenset(NAMES)}, [1], id="all have dropped it"),
    ],
)
def test_the_row_of_a_dead_set_goes_with_its_last_shard(gone: dict[int, frozenset[str]], forgotten: list[int]) -> None:
    facts = settle(bring_to(Step.FLIPPED))
    assert find_forgettable(facts, gone) == forgotten
    change = forget_sets(facts, gone)
    assert change.is_empty is not bool(forgotten)
    assert facts.after(change).current == facts.current
    assert facts.after(change).meta.epoch == facts.meta.epoch


def test_no_row_goes_that_an_operation_may_need() -> None:
    facts = bring_to(Step.FLIPPED)
    assert forget_sets(facts, {1: frozenset(NAMES), 2: frozenset(NAMES)}).is_empty
