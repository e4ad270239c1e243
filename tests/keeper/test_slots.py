"""`keeper.slots`: what a keeper takes, holds and gives up."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.errors import InvalidArgumentError, NotFoundError, ProtectionError, WrongStateError
from common.forms.delivery import SetLabel
from common.keys import shamir
from common.keys.protected import Level, ProtectedMemory
from keeper.slots import HeldSet, Pin, ShardSlots

CLUSTER, GENESIS = b"c" * 16, b"g" * 32


def make_label(number: int, *, timeline: int = 1, set_id: bytes | None = None, generation: int = 1) -> SetLabel:
    """Label of set *number* of one cluster; the set_id follows from timeline and number unless given."""
    return SetLabel(
        cluster_id=CLUSTER,
        genesis=GENESIS,
        timeline=timeline,
        generation=generation,
        set_id=set_id or hashlib.sha256(f"{timeline}/{number}".encode()).digest()[:16],
        set_number=number,
    )


NOT_A_MEMBER = make_label(0, set_id=bytes(16))  # of the store's current set


def make_shard(label: SetLabel, x: int = 1) -> bytearray:
    return bytearray(hashlib.sha256(label.set_id).digest() + bytes((x,)))


def put(
    slots: ShardSlots,
    label: SetLabel,
    *,
    current: SetLabel | None = None,
    shard: bytearray | None = None,
    x: int = 1,
    commitment: bytes | None = None,
) -> None:
    """Put the shard that belongs to *label*, which is the current set unless another, or `NOT_A_MEMBER`, is named."""
    shard = make_shard(label, x) if shard is None else shard
    true_commitment = shamir.commitment(memoryview(shard), cluster_id=label.cluster_id, set_id=label.set_id)
    slots.put(
        label,
        memoryview(shard),
        x=x,
        commitment=true_commitment if commitment is None else commitment,
        current_set_id=b"" if current is NOT_A_MEMBER else (current or label).set_id,
    )


def list_numbers(slots: ShardSlots) -> list[tuple[int, int]]:
    return [(held.label.timeline, held.label.set_number) for held in slots.list_held()]


@pytest.fixture
def memory() -> Iterator[ProtectedMemory]:
    memory = ProtectedMemory(size=4096, lowest=Level.PLAIN)
    yield memory
    memory.wipe()


@pytest.fixture
def slots(memory: ProtectedMemory) -> ShardSlots:
    return ShardSlots(memory)


def read_shard(slots: ShardSlots, memory: ProtectedMemory, label: SetLabel) -> bytes:
    with memory.allocate(shamir.SHARD_SIZE) as copy:
        assert slots.copy_shard(label.cluster_id, label.set_id, into=copy.view).label == label
        return bytes(copy.view)


def test_empty_keeper_takes_its_first_shard_and_pins(slots: ShardSlots, memory: ProtectedMemory) -> None:
    """The first shard is held as it came, and pins cluster and genesis."""
    assert (slots.pin, slots.list_held()) == (None, ())
    put(slots, make_label(7), x=3)
    assert slots.pin == Pin(CLUSTER, GENESIS)
    assert slots.list_held() == (HeldSet(make_label(7), 3),)
    assert read_shard(slots, memory, make_label(7)) == make_shard(make_label(7), 3)


def test_shard_is_a_copy(slots: ShardSlots, memory: ProtectedMemory) -> None:
    """What happens to the caller's buffer afterwards does not touch what is held."""
    label = make_label(1)
    shard = make_shard(label)
    put(slots, label, shard=shard)
    shard[:] = bytes(len(shard))
    assert read_shard(slots, memory, label) == make_shard(label)


ONE, TWO, THREE = make_label(1), make_label(2), make_label(3)


@pytest.mark.parametrize(
    ("before", "label", "current", "after"),
    [
        pytest.param([ONE], ONE, ONE, [(1, 1)], id="same shard again"),
        pytest.param([ONE], TWO, TWO, [(1, 1), (1, 2)], id="newer current set: the older one stays"),
        pytest.param([ONE], TWO, ONE, [(1, 1), (1, 2)], id="new set beside the current one"),
        pytest.param([ONE, TWO], ONE, ONE, [(1, 1), (1, 2)], id="older one of two again"),
        pytest.param([ONE, TWO], THREE, TWO, [(1, 2), (1, 3)], id="third set: the one that is not current goes"),
        pytest.param([ONE, TWO], THREE, ONE, [(1, 1), (1, 3)], id="third set: the current one stays, though older"),
        pytest.param([ONE, TWO], THREE, THREE, [(1, 2), (1, 3)], id="third set is current: the oldest goes"),
        pytest.param([], TWO, NOT_A_MEMBER, [(1, 2)], id="no member: a pending set is the first that it holds"),
        pytest.param([ONE], TWO, NOT_A_MEMBER, [(1, 1), (1, 2)], id="no member any more: beside an older one"),
        pytest.param([ONE, TWO], THREE, NOT_A_MEMBER, [(1, 2), (1, 3)], id="no member: the older one of two goes"),
        pytest.param([TWO], TWO, NOT_A_MEMBER, [(1, 2)], id="no member: the same shard again"),
        pytest.param(
            [make_label(9)], make_label(2, timeline=2), None, [(1, 9), (2, 2)], id="newer timeline, lower number"
        ),
        pytest.param(
            [make_label(8, generation=3)],
            make_label(9, generation=2),
            None,
            [(1, 8), (1, 9)],
            id="older generation: only timeline and number order",
        ),
    ],
)
def test_put_taken(
    slots: ShardSlots, before: list[SetLabel], label: SetLabel, current: SetLabel | None, after: list[tuple[int, int]]
) -> None:
    """Puts that the rules allow, and what is held then."""
    for one in before:
        put(slots, one, current=before[0])
    put(slots, label, current=current)
    assert list_numbers(slots) == after


@pytest.mark.parametrize(
    ("label", "current", "words"),
    [
        pytest.param(replace(THREE, cluster_id=b"d" * 16), None, "this keeper serves", id="other cluster"),
        pytest.param(replace(THREE, genesis=b"h" * 32), None, "this keeper serves", id="other genesis"),
        pytest.param(ONE, ONE, "not newer", id="older set number"),
        pytest.param(make_label(9, timeline=0), None, "not newer", id="older timeline, higher number"),
        pytest.param(make_label(2, set_id=b"s" * 16), None, "not newer", id="same number, other set"),
        pytest.param(ONE, NOT_A_MEMBER, "not newer", id="no member: older set number"),
        pytest.param(replace(TWO, generation=2), NOT_A_MEMBER, "another shard or label", id="no member: other label"),
        pytest.param(replace(THREE, genesis=b"h" * 32), NOT_A_MEMBER, "this keeper serves", id="no member: other pin"),
        pytest.param(THREE, make_label(4), "put that first", id="current set is not held"),
        pytest.param(replace(TWO, set_number=3), None, "another shard or label", id="held set, other number"),
        pytest.param(replace(TWO, timeline=2), None, "another shard or label", id="held set, other timeline"),
        pytest.param(replace(TWO, generation=2), None, "another shard or label", id="held set, other generation"),
        pytest.param(replace(TWO, genesis=b"h" * 32), None, "this keeper serves", id="held set, other genesis"),
    ],
)
def test_put_refused(
    slots: ShardSlots, memory: ProtectedMemory, label: SetLabel, current: SetLabel | None, words: str
) -> None:
    """Puts that a rule forbids, to a keeper of set 2: the message says why, and nothing changes."""
    put(slots, TWO)
    with pytest.raises(WrongStateError, match=words):
        put(slots, label, current=current, shard=make_shard(TWO))
    assert slots.list_held() == (HeldSet(TWO, 1),)
    assert slots.pin == Pin(CLUSTER, GENESIS)
    assert read_shard(slots, memory, TWO) == make_shard(TWO)


@pytest.mark.parametrize("is_held", [pytest.param(False, id="empty keeper"), pytest.param(True, id="set is held")])
@pytest.mark.parametrize(
    ("shard", "x", "commitment", "words"),
    [
        pytest.param(bytearray(32), 1, None, "32 bytes", id="short shard"),
        pytest.param(bytearray(34), 1, None, "34 bytes", id="long shard"),
        pytest.param(make_shard(TWO, 1), 2, None, "x is 2", id="shard at another x"),
        pytest.param(make_shard(TWO, 0), 0, None, "x is 0", id="x of 0, which would be the secret"),
        pytest.param(make_shard(TWO), 1, b"", "commitment", id="no commitment"),
        pytest.param(make_shard(TWO), 1, b"\x00" * 32, "commitment", id="other commitment"),
    ],
)
def test_shard_that_is_none_is_refused(
    slots: ShardSlots, shard: bytearray, x: int, commitment: bytes | None, words: str, is_held: bool
) -> None:
    """A shard of the wrong size, point or commitment is not even compared with what is held."""
    if is_held:
        put(slots, TWO)
    before = slots.list_held()
    with pytest.raises(InvalidArgumentError, match=words):
        put(slots, TWO, shard=shard, x=x, commitment=commitment)
    assert slots.list_held() == before


@pytest.mark.parametrize("byte", range(32))
def test_other_shard_of_a_held_set_is_refused(slots: ShardSlots, memory: ProtectedMemory, byte: int) -> None:
    """Another shard under one set_id is refused, whichever byte differs, even with a commitment of its own."""
    put(slots, TWO)
    other = make_shard(TWO)
    other[byte] ^= 1
    with pytest.raises(WrongStateError, match="another shard"):
        put(slots, TWO, shard=other)
    assert read_shard(slots, memory, TWO) == make_shard(TWO)


def test_other_point_of_a_held_set_is_refused(slots: ShardSlots) -> None:
    """One keeper has one point of a set: x is never reassigned."""
    put(slots, TWO, x=1)
    with pytest.raises(WrongStateError, match="another shard"):
        put(slots, TWO, x=2)


def test_dropped_sets_are_gone(slots: ShardSlots, memory: ProtectedMemory) -> None:
    """Dropping forgets one set and says so; again it changes nothing; the other set and the pin stay."""
    put(slots, ONE)
    put(slots, TWO)
    assert slots.drop(CLUSTER, ONE.set_id)
    assert not slots.drop(CLUSTER, ONE.set_id)
    with memory.allocate(shamir.SHARD_SIZE) as copy, pytest.raises(NotFoundError):
        slots.copy_shard(CLUSTER, ONE.set_id, into=copy.view)
    assert list_numbers(slots) == [(1, 2)]
    assert slots.drop(CLUSTER, TWO.set_id)
    assert slots.pin == Pin(CLUSTER, GENESIS)


def test_order_outlives_drops(slots: ShardSlots) -> None:
    """What is older than a set that was ever held does not come back after drops; that newest set itself may."""
    put(slots, ONE)
    put(slots, TWO)
    for label in (ONE, TWO):
        slots.drop(CLUSTER, label.set_id)
    with pytest.raises(WrongStateError, match="not newer"):
        put(slots, ONE)
    put(slots, TWO)
    assert list_numbers(slots) == [(1, 2)]


def test_drop_frees_a_slot(slots: ShardSlots) -> None:
    """After a drop a further set evicts nothing."""
    put(slots, ONE)
    put(slots, TWO, current=ONE)
    slots.drop(CLUSTER, TWO.set_id)
    put(slots, THREE, current=ONE)
    assert list_numbers(slots) == [(1, 1), (1, 3)]


@pytest.mark.parametrize("is_pinned", [pytest.param(False, id="unpinned"), pytest.param(True, id="pinned")])
def test_other_clusters_get_and_drop_nothing(slots: ShardSlots, memory: ProtectedMemory, is_pinned: bool) -> None:
    """A nexus of another cluster neither fetches nor drops; an unpinned keeper has nothing to fetch or drop."""
    if is_pinned:
        put(slots, ONE)
        with memory.allocate(shamir.SHARD_SIZE) as copy, pytest.raises(WrongStateError, match="this keeper serves"):
            slots.copy_shard(b"d" * 16, ONE.set_id, into=copy.view)
        with pytest.raises(WrongStateError, match="this keeper serves"):
            slots.drop(b"d" * 16, ONE.set_id)
        assert list_numbers(slots) == [(1, 1)]
    else:
        assert not slots.drop(b"d" * 16, ONE.set_id)
        with memory.allocate(shamir.SHARD_SIZE) as copy, pytest.raises(NotFoundError):
            slots.copy_shard(b"d" * 16, ONE.set_id, into=copy.view)


def test_wipe_forgets_the_shards(slots: ShardSlots, memory: ProtectedMemory) -> None:
    """At the end no shard is held and their memory is free again."""
    put(slots, ONE)
    put(slots, TWO)
    slots.wipe()
    assert slots.list_held() == ()
    memory.allocate(4096)


def test_full_memory_changes_nothing(memory: ProtectedMemory) -> None:
    """When protected memory is full a put fails whole: nothing is pinned, held or evicted."""
    slots = ShardSlots(memory)
    with memory.allocate(4096), pytest.raises(ProtectionError):
        put(slots, ONE)
    assert (slots.pin, slots.list_held()) == (None, ())
    put(slots, ONE)


class Model:
    """The rules 2 to 6 in their plainest form: what is held, and the newest that was."""

    def __init__(self) -> None:
        self.held: list[SetLabel] = []
        self.newest: SetLabel | None = None

    def put(self, label: SetLabel, current: SetLabel) -> bool:
        """Return whether it is taken."""
        if label in self.held:
            return True
        newest = self.newest
        if newest is not None and label.order <= newest.order and label != newest:
            return False
        if current not in (NOT_A_MEMBER, label) and current not in self.held:
            return False
        if len(self.held) == 2:
            self.held.remove(min((one for one in self.held if one != current), key=lambda one: one.order))
        self.held.append(label)
        self.newest = label
        return True


class Keeper(RuleBasedStateMachine):
    """Any order of puts and drops, with any claim of what is current, held against the model."""

    labels = st.builds(make_label, st.integers(1, 5), timeline=st.integers(1, 2))
    claims = labels | st.just(NOT_A_MEMBER)

    def __init__(self) -> None:
        super().__init__()
        self.memory = ProtectedMemory(size=4096, lowest=Level.PLAIN)
        self.slots = ShardSlots(self.memory)
        self.model = Model()

    @rule(label=labels, current=claims)
    def put(self, label: SetLabel, current: SetLabel) -> None:
        try:
            put(self.slots, label, current=current)
        except WrongStateError:
            assert not self.model.put(label, current)
        else:
            assert self.model.put(label, current)

    @rule(labels=st.lists(labels, min_size=2, max_size=2), is_member=st.booleans())
    def put_two(self, labels: list[SetLabel], is_member: bool) -> None:
        """The current set and then a pending one, as a nexus fills a keeper: else few runs would hold two."""
        current, pending = sorted(labels, key=lambda label: label.order)
        if is_member:
            self.put(current, current)
        self.put(pending, current if is_member else NOT_A_MEMBER)

    @rule(label=labels)
    def drop(self, label: SetLabel) -> None:
        was_held = label in self.model.held
        assert self.slots.drop(CLUSTER, label.set_id) == was_held
        if was_held:
            self.model.held.remove(label)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        held = [one.label for one in self.slots.list_held()]
        assert held == sorted(self.model.held, key=lambda label: label.order)
        for label in held:
            assert read_shard(self.slots, self.memory, label) == make_shard(label)

    def teardown(self) -> None:
        self.memory.wipe()


TestKeeper = Keeper.TestCase
TestKeeper.settings = settings(deadline=None, max_examples=60, stateful_step_count=20)
