"""`keeper.mark_slot`: which rollback mark a keeper takes and remembers."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import MarkError, NotFoundError, ShardholdError, WrongStateError
from common.forms.mark import AuditEnd, SignedMark
from keeper.mark_slot import MarkSlot
from keeper.slots import Pin
from tests.kit.chains import make_chain
from tests.kit.marks import MarkMaker

OURS = MarkMaker()
FOREIGN = MarkMaker(cluster_id=b"d" * 16, seed=b"b" * 32)
CLUSTER = OURS.record.cluster_id
PIN = Pin(CLUSTER, OURS.genesis)


def test_a_mark_is_remembered() -> None:
    """What was put is given back, bit by bit."""
    slot, signed = MarkSlot(), OURS.make()
    assert slot.put(signed, pin=PIN) is None
    assert slot.get(CLUSTER) == signed


def test_without_a_mark_there_is_none() -> None:
    """A keeper that took no mark has none, and none of another cluster than its own."""
    slot = MarkSlot()
    with pytest.raises(NotFoundError):
        slot.get(CLUSTER)
    slot.put(OURS.make(), pin=PIN)
    with pytest.raises(NotFoundError):
        slot.get(FOREIGN.record.cluster_id)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=8))
def test_the_newest_is_kept(orders: list[tuple[int, int, int, int]]) -> None:
    """In whatever order marks come, the newest is remembered, of equals the first; who gives an older one is told."""
    slot, newest = MarkSlot(), ((-1, 0, 0, 0), OURS.make())
    for number, order in enumerate(orders):
        timeline, revision, audit_timeline, seq = order
        audit = AuditEnd("n1", audit_timeline, seq, bytes(32))
        signed = OURS.make(timeline=timeline, revision=revision, audit=audit, made_at=number)
        assert slot.put(signed, pin=PIN) == (newest[1] if order < newest[0] else None)
        if order > newest[0]:
            newest = order, signed
        assert slot.get(CLUSTER) == newest[1]


def test_a_lower_control_revision_is_refused_in_one_timeline() -> None:
    """However far the revision was raised; a new timeline counts anew, and the same control revision is no less."""
    slot = MarkSlot()
    slot.put(OURS.make(revision=10, control_revision=4), pin=PIN)
    with pytest.raises(WrongStateError, match="control revision 3, and one of 4 is held: the store is older"):
        slot.put(OURS.make(revision=999, control_revision=3), pin=PIN)
    assert slot.get(CLUSTER) == OURS.make(revision=10, control_revision=4)
    for newer in (
        OURS.make(revision=11, control_revision=4),
        OURS.make(revision=12, control_revision=5),
        OURS.make(timeline=2, revision=1, control_revision=1),
    ):
        assert slot.put(newer, pin=PIN) is None
        assert slot.get(CLUSTER) == newer


def test_a_mark_of_the_first_format_is_taken() -> None:
    """From a nexus that is not upgraded yet; marks of both formats are in one order."""
    slot = MarkSlot()
    slot.put(OURS.make(format=1), pin=PIN)
    assert slot.get(CLUSTER) == OURS.make(format=1)
    slot.put(OURS.make(revision=11, epoch=3), pin=PIN)
    assert slot.put(OURS.make(format=1), pin=PIN) == OURS.make(revision=11, epoch=3)


NEWER = OURS.make(revision=99)

REFUSED = [
    pytest.param(NEWER, None, WrongStateError, "nothing is pinned", id="before a shard pinned the cluster"),
    pytest.param(FOREIGN.make(revision=99), PIN, WrongStateError, "begins at genesis", id="another cluster"),
    pytest.param(MarkMaker(seed=b"b" * 32).make(), PIN, WrongStateError, "begins at genesis", id="another genesis"),
    pytest.param(OURS.make(cluster_id=b"d" * 16), PIN, MarkError, "another cluster", id="another cluster id"),
    pytest.param(replace(NEWER, signature=bytes(64)), PIN, MarkError, "broken signature", id="broken signature"),
    pytest.param(replace(NEWER, mark=OURS.make().mark), PIN, MarkError, "broken signature", id="another's signature"),
    pytest.param(replace(NEWER, chain=()), PIN, MarkError, "0 records", id="no chain"),
    pytest.param(
        replace(NEWER, chain=(*NEWER.chain, b"x")), PIN, MarkError, "link does not decode", id="more after genesis"
    ),
    pytest.param(OURS.sign(b"soon"), PIN, MarkError, "does not decode", id="signed, but no mark"),
]


@pytest.mark.parametrize(("signed", "pin", "error", "words"), REFUSED)
def test_a_refused_mark_changes_nothing(
    signed: SignedMark, pin: Pin | None, error: type[ShardholdError], words: str
) -> None:
    """What is not to be believed is refused, and what was remembered stays."""
    slot = MarkSlot()
    slot.put(OURS.make(), pin=PIN)
    with pytest.raises(error, match=words):
        slot.put(signed, pin=pin)
    assert slot.get(CLUSTER) == OURS.make()


# The link to generation 2 is of revision 100 and control revision 10, that to generation 3 of 200 and 20, and so on.
ROTATED = [MarkMaker(chains=make_chain(3).cut(seq)) for seq in range(4)]
FORKED = MarkMaker(chains=make_chain(1).cut(1).add(branch="fork"))
NOW = ROTATED[2].make()


@pytest.mark.parametrize(
    ("signed", "is_taken"),
    [
        pytest.param(ROTATED[3].make(), True, id="the next generation"),
        pytest.param(ROTATED[1].make(), False, id="the generation before"),
        pytest.param(ROTATED[1].make(revision=9999, control_revision=99), False, id="a dead key, far ahead"),
        pytest.param(ROTATED[0].make(timeline=2), True, id="an earlier generation in a later timeline: accepted"),
        pytest.param(FORKED.make(revision=9999, control_revision=99), True, id="a fork that is further"),
        pytest.param(FORKED.make(revision=201, control_revision=99), False, id="a fork that is not"),
        pytest.param(FORKED.make(timeline=2), True, id="a fork in a later timeline: accepted"),
    ],
)
def test_the_chain_says_which_mark_is_newer(signed: SignedMark, is_taken: bool) -> None:
    """Within a timeline, whatever the revision; who gives an older one is told."""
    slot = MarkSlot()
    slot.put(NOW, pin=PIN)
    assert slot.put(signed, pin=PIN) == (None if is_taken else NOW)
    assert slot.get(CLUSTER) == (signed if is_taken else NOW)


def test_a_mark_by_a_dead_key_gives_way_to_the_next_generation() -> None:
    """Whoever has the key of before cannot lock the cluster out with a mark of far ahead."""
    slot = MarkSlot()
    slot.put(ROTATED[1].make(revision=2**60, control_revision=2**60), pin=PIN)
    assert slot.put(NOW, pin=PIN) is None
    assert slot.get(CLUSTER) == NOW


def test_a_fork_with_a_lower_control_revision_is_refused() -> None:
    """The rule of one timeline counts between forks too."""
    slot = MarkSlot()
    slot.put(NOW, pin=PIN)
    with pytest.raises(WrongStateError, match="control revision 23, and one of 24 is held"):
        slot.put(FORKED.make(revision=9999, control_revision=23), pin=PIN)


def test_the_rest_of_a_chain_is_completed_from_what_was_verified() -> None:
    """Whatever part of it was left out; a record that is not known asks for all of it."""
    slot, later = MarkSlot(), ROTATED[3].make()
    records = later.chain
    digests = [hashlib.sha256(record).digest() for record in records]
    assert (slot.chain, slot.complete(records[1:], follows=digests[0])) == (None, None)
    assert slot.complete(records, follows=b"") == records
    slot.put(NOW, pin=PIN)
    assert slot.chain is not None
    assert (slot.chain.seq, slot.chain.digest) == (2, digests[2])
    for seq in range(3):
        assert slot.complete(records[seq + 1 :], follows=digests[seq]) == records
    assert slot.complete((), follows=digests[3]) is None
    assert slot.complete((), follows=bytes(32)) is None
