"""What the rules look at, decoded from rows; and changes of them."""

import pytest

from common.errors import CorruptRowError
from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import read_facts
from nexus.keys.operation.record import Numbers, OperationRecord, Step
from nexus.keys.records import SetState
from tests.nexus.keys.operation.made import bring_to, first_bodies, make_facts, make_meta, make_set, token

ROWS = first_bodies(token("root", 1), token("kek", 2))


def test_facts_are_those_of_the_rows() -> None:
    facts = make_facts()
    assert facts.current == Numbers(1, 1, 2)
    assert (facts.operation, facts.pending_sets, facts.older_keyrings, facts.chain_length) == (None, [], [], 0)


@pytest.mark.parametrize("key", [(records.SHARD_SET, "1"), (records.KEYRING, "1")], ids="/".join)
@pytest.mark.parametrize("body", [None, b"{"], ids=["missing", "no record"])
def test_no_nexus_is_ready_without_current_set_and_keyring(key: records.Key, body: bytes | None) -> None:
    rows = {**ROWS} if body is None else {**ROWS, key: body}
    if body is None:
        del rows[key]
    with pytest.raises(CorruptRowError, match="0 shard sets are current|does not verify"):
        read_facts(make_meta(), rows)


def test_two_current_sets_are_no_state() -> None:
    second = records.encode(make_set(Numbers(1, 2, 2), state=SetState.CURRENT))
    with pytest.raises(CorruptRowError, match="2 shard sets are current, want 1"):
        read_facts(make_meta(), {**ROWS, (records.SHARD_SET, "2"): second})


def test_what_does_not_decode_is_damaged() -> None:
    rows = {**ROWS, records.OPERATION: b"[]", (records.SHARD_SET, "2"): b"", (records.GENERATION, "2"): b"{}"}
    facts = read_facts(make_meta(), rows)
    assert facts.damaged == {records.OPERATION, (records.SHARD_SET, "2"), (records.GENERATION, "2")}
    assert facts.damaged_sets == {(records.SHARD_SET, "2")}
    assert facts.operation is None
    assert records.OPERATION not in facts.bodies


@pytest.mark.parametrize(
    ("key", "is_needed"),
    [
        (records.GENESIS, True),
        (records.RECOVERY_KEY, True),
        (records.OPERATION, True),
        ((records.GENERATION, "1"), True),
        ((records.ESCROW, "1"), True),
        ((records.CANARY, "2"), True),
        ((records.LINK, "1"), True),
        ((records.GENERATION, "0"), False),
        ((records.CANARY, "1"), False),
        ((records.SHARD_SET, "0"), False),
        ((records.POLICY, "p"), False),
    ],
    ids=str,
)
def test_an_operation_needs_what_is_current_and_the_way_back(key: records.Key, is_needed: bool) -> None:
    """A row of the past that does not verify stops nobody from rotating."""
    bodies = {row: body for row, body in ROWS.items() if row != key}
    facts = read_facts(make_meta(), bodies, frozenset({key}))
    assert facts.needed_damaged == (["/".join(key)] if is_needed else [])


def test_numbers_name_damaged_rows_as_well() -> None:
    facts = read_facts(make_meta(), ROWS, frozenset({(records.KEYRING, "0"), (records.KEYRING, "current")}))
    assert facts.numbers(records.KEYRING) == [0, 1]
    assert facts.older_keyrings == [0]


@pytest.mark.parametrize("step", list(Step))
def test_an_operation_is_the_same_after_it_was_stored(step: Step) -> None:
    operation = bring_to(step).operation
    assert operation is not None
    assert records.decode(OperationRecord, records.encode(operation)) == operation


A, B, C = ("kind", "a"), ("kind", "b"), ("kind", "c")


def test_a_change_puts_and_deletes_rows_and_raises_numbers() -> None:
    change = Change(Numbers(1, 2, 3), {A: b"new", B: b"b"}, frozenset({C}), Numbers(0, 9, 0))
    assert change.apply({A: b"old", C: b"c"}) == {A: b"new", B: b"b"}
    meta = change.edit(make_meta(last_kek_id=5))
    assert (meta.last_generation, meta.last_set_number, meta.last_kek_id, meta.epoch) == (1, 9, 5, 6)
    assert (meta.generation, meta.kek_id) == (1, 3)


def test_a_part_of_another_change_raises_no_epoch() -> None:
    assert Change(Numbers(1, 2, 3), raises_epoch=False).edit(make_meta()).epoch == make_meta().epoch


def test_joined_changes_do_the_one_and_then_the_other() -> None:
    rows = {A: b"a", B: b"b", C: b"c"}
    first = Change(Numbers(1, 1, 1), {A: b"1", B: b"1"}, frozenset({C}), Numbers(4, 1, 0), raises_epoch=False)
    later = Change(Numbers(2, 2, 2), {C: b"2", B: b"2"}, frozenset({A}), Numbers(3, 2, 0))
    joined = first.join(later)
    assert joined.apply(rows) == later.apply(first.apply(rows)) == {B: b"2", C: b"2"}
    assert joined.edit(make_meta()) == later.edit(first.edit(make_meta()))
    assert joined.current == Numbers(2, 2, 2)
