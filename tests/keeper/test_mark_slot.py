"""`keeper.mark_slot`: which rollback mark a keeper takes and remembers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import MarkError, NotFoundError, ShardholdError, WrongStateError
from common.forms.mark import SignedMark
from keeper.mark_slot import MarkSlot
from keeper.slots import Pin
from tests.kit.marks import MarkMaker

OURS = MarkMaker()
FOREIGN = MarkMaker(cluster_id=b"d" * 16, seed=b"b" * 32)
CLUSTER = OURS.record.cluster_id
PIN = Pin(CLUSTER, OURS.genesis)


def test_a_mark_is_remembered() -> None:
    """What was put is given back, bit by bit."""
    slot, signed = MarkSlot(), OURS.make()
    assert slot.put(signed, pin=PIN)
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
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_the_newest_is_kept(orders: list[tuple[int, int]]) -> None:
    """In whatever order marks come, the newest by (timeline, revision) is remembered; of equals the first."""
    slot, newest = MarkSlot(), None
    for number, (timeline, revision) in enumerate(orders):
        signed = OURS.make(timeline=timeline, revision=revision, made_at=number)
        is_newer = newest is None or (timeline, revision) > newest[0]
        assert slot.put(signed, pin=PIN) is is_newer
        if is_newer:
            newest = (timeline, revision), signed
        assert newest is not None
        assert slot.get(CLUSTER) == newest[1]


NEWER = OURS.make(revision=99)

REFUSED = [
    pytest.param(NEWER, None, WrongStateError, "nothing is pinned", id="before a shard pinned the cluster"),
    pytest.param(FOREIGN.make(revision=99), PIN, WrongStateError, "begins at genesis", id="another cluster"),
    pytest.param(MarkMaker(seed=b"b" * 32).make(), PIN, WrongStateError, "begins at genesis", id="another genesis"),
    pytest.param(OURS.make(cluster_id=b"d" * 16), PIN, MarkError, "another cluster", id="another cluster id"),
    pytest.param(replace(NEWER, signature=bytes(64)), PIN, MarkError, "broken signature", id="broken signature"),
    pytest.param(replace(NEWER, mark=OURS.make().mark), PIN, MarkError, "broken signature", id="another's signature"),
    pytest.param(replace(NEWER, chain=()), PIN, MarkError, "0 records", id="no chain"),
    pytest.param(replace(NEWER, chain=(*NEWER.chain, b"x")), PIN, MarkError, "2 records", id="more after genesis"),
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
