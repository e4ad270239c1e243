"""What a plan says of keepers and sets."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.forms.delivery import SetLabel
from nexus.keepers.plan import Plan, find_record
from nexus.keys.records import MemberRecord, SetState, ShardSetRecord
from nexus.keys.shard_set import Member, ShardSet

CLUSTER = b"c" * 16


def make_set(number: int, *names: str, timeline: int = 2) -> ShardSet:
    """A set of keepers, each at NAME:1, of which only the record is known."""
    members = tuple(
        MemberRecord(name, f"spiffe://example.org/{name}", f"{name}:1", x, bytes(32)) for x, name in enumerate(names, 1)
    )
    record = ShardSetRecord(SetState.CURRENT, 1, make_id(number, timeline), number, timeline, 2, members)
    return ShardSet(record, record.label(CLUSTER, bytes(32)), [])


def make_id(number: int, timeline: int = 2) -> bytes:
    return timeline.to_bytes(8) + number.to_bytes(8)


def make_label(number: int, *, timeline: int = 2, cluster_id: bytes = CLUSTER) -> SetLabel:
    return SetLabel(cluster_id, bytes(32), timeline, 1, make_id(number, timeline), number)


@pytest.mark.parametrize(
    ("label", "is_dropped"),
    [
        pytest.param(make_label(5), False, id="current"),
        pytest.param(make_label(7), False, id="pending"),
        pytest.param(make_label(4), False, id="replaced by a flip, and not settled yet"),
        pytest.param(make_label(3), True, id="older, and unknown"),
        pytest.param(make_label(9, timeline=1), True, id="of an earlier timeline"),
        pytest.param(make_label(6), True, id="newer, and dead: its operation was aborted"),
        pytest.param(make_label(8), False, id="newer, and unknown"),
        pytest.param(make_label(1, timeline=3), False, id="of a later timeline"),
        pytest.param(make_label(3, cluster_id=bytes(16)), False, id="of another cluster"),
        pytest.param(make_label(6, cluster_id=bytes(16)), False, id="of another cluster, with the id of a dead one"),
    ],
)
def test_what_is_dropped(label: SetLabel, is_dropped: bool) -> None:
    """Set 5 is current and 7 pending, 6 was aborted, and a flip has replaced 4."""
    dead = frozenset({make_id(6), make_id(4)})
    plan = Plan(make_set(5, "a"), make_set(7, "a"), dead, kept=frozenset({make_id(4)}))
    assert plan.is_to_drop(label) == is_dropped


@given(
    droppable=st.frozensets(st.builds(make_id, st.integers(1, 9))),
    replaced=st.builds(make_id, st.integers(1, 9)),
    pending=st.none() | st.integers(6, 9),
)
def test_what_recovery_or_a_flip_needs_is_never_dropped(
    droppable: frozenset[bytes], replaced: bytes, pending: int | None
) -> None:
    """Whatever the rest of the plan says, by mistake."""
    plan = Plan(make_set(5, "a"), make_set(pending, "a") if pending else None, droppable, kept=frozenset({replaced}))
    for number in range(1, 10):
        label = make_label(number)
        if plan.is_to_drop(label):
            assert number not in (5, pending)
            assert label.set_id != replaced
            assert number < 5 or label.set_id in droppable


@pytest.mark.parametrize(
    ("label", "is_dropped"),
    [
        pytest.param(make_label(8), True, id="given out, and without a row"),
        pytest.param(make_label(9), False, id="never given out by this store"),
        pytest.param(make_label(8, timeline=3), False, id="of a later timeline"),
        pytest.param(make_label(6), False, id="pending, and not brought back yet"),
    ],
)
def test_a_late_delivery_of_a_forgotten_set_is_dropped(label: SetLabel, is_dropped: bool) -> None:
    """Set 5 is current, and 8 the newest that was given out."""
    plan = Plan(make_set(5, "a"), kept=frozenset({make_id(6)}), newest=(make_label(8).timeline, 8))
    assert plan.is_to_drop(label) == is_dropped


def test_members_are_those_of_both_sets_and_those_that_leave() -> None:
    """Each is named once: a keeper that moves is where the newer set has it."""
    current, pending = make_set(1, "a", "b"), make_set(2, "b", "c")
    moved = tuple(msgspec.structs.replace(one, address=f"{one.name}:2") for one in pending.record.members)
    pending.record = msgspec.structs.replace(pending.record, members=moved)
    old = [Member(name, f"spiffe://example.org/{name}", f"{name}:0") for name in ("c", "d")]
    plan = Plan(current, pending, leaving=tuple(old))
    assert sorted(one.address for one in plan.list_members()) == ["a:1", "b:2", "c:2", "d:0"]
    assert [plan.is_member(one) for one in old] == [True, False]


def test_a_keeper_with_the_name_of_another_is_no_member() -> None:
    """A host was lost, and a keeper of the same name takes its place: they have different SPIFFE IDs."""
    record = make_set(1, "a").record
    one = Member("a", "spiffe://example.org/a", "elsewhere:1")
    assert find_record(record.members, one) == record.members[0]
    assert find_record(record.members, replace(one, spiffe_id="spiffe://example.org/b")) is None
