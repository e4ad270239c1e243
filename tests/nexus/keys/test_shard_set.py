"""A shard set: who holds which point, and that any keeper's point follows from t of them."""

import itertools
import os

import pytest

from common.errors import BadShardError, SealedError
from common.keys import shamir
from common.keys.protected import ProtectedMemory
from nexus.keys.records import SetState, ShardSetRecord
from nexus.keys.shard_set import ShardSet, check_shard, draw_set
from tests.nexus.cluster import is_wiped, members

CLUSTER = os.urandom(16)


def draw(memory: ProtectedMemory, secret: bytes, *, n: int = 5, t: int = 3) -> tuple[ShardSetRecord, ShardSet]:
    record, points = draw_set(
        memoryview(secret),
        members(n),
        threshold=t,
        generation=4,
        set_number=9,
        timeline=2,
        cluster_id=CLUSTER,
        memory=memory,
    )
    return record, ShardSet(record, record.label(CLUSTER, b"g" * 32), points)


def derive(shard_set: ShardSet, memory: ProtectedMemory, x: int) -> bytes:
    with memory.allocate(shamir.SHARD_SIZE) as shard:
        shard_set.derive_shard(x, shard)
        return bytes(shard.view)


@pytest.mark.parametrize(("t", "n"), [(2, 2), (2, 3), (3, 5), (5, 5), (4, 7)])
def test_any_keeper_gets_its_shard_and_any_t_of_them_give_the_key(memory: ProtectedMemory, t: int, n: int) -> None:
    """Derived from t points, every shard matches its commitment, and each t of all n open."""
    secret = os.urandom(32)
    record, shard_set = draw(memory, secret, n=n, t=t)
    shards = [derive(shard_set, memory, member.x) for member in record.members]
    for member, shard in zip(record.members, shards, strict=True):
        assert shard[-1] == member.x
        assert shamir.commitment(memoryview(shard), cluster_id=CLUSTER, set_id=record.set_id) == member.commitment
    for chosen in itertools.combinations(shards, t):
        with memory.allocate(32) as key:
            shamir.combine([memoryview(shard) for shard in chosen], threshold=t, into=key.view)
            assert key.view == secret


def test_the_record_says_who_holds_what(memory: ProtectedMemory) -> None:
    """Members in order, x from 1, and the numbers that the set was drawn with."""
    record, shard_set = draw(memory, os.urandom(32))
    assert [member.x for member in record.members] == [1, 2, 3, 4, 5]
    assert [member.name for member in record.members] == [member.name for member in members(5)]
    assert (record.generation, record.set_number, record.timeline, record.threshold) == (4, 9, 2, 3)
    assert record.state is SetState.CURRENT
    label = shard_set.label
    assert (label.cluster_id, label.genesis, label.timeline) == (CLUSTER, b"g" * 32, 2)
    assert (label.generation, label.set_id, label.set_number) == (4, record.set_id, 9)


def test_no_two_drawings_share_a_set_id_or_a_shard(memory: ProtectedMemory) -> None:
    """Each drawing has a set_id of its own, so that no set_id has two polynomials."""
    secret = os.urandom(32)
    (one, first), (two, second) = draw(memory, secret), draw(memory, secret)
    assert one.set_id != two.set_id
    assert derive(first, memory, 1) != derive(second, memory, 1)


@pytest.mark.parametrize(("t", "n", "quorum"), [(2, 2, 2), (2, 3, 3), (3, 5, 4), (2, 5, 4), (5, 5, 5), (4, 7, 6)])
def test_the_quorum_survives_the_loss_of_a_keeper(t: int, n: int, quorum: int, memory: ProtectedMemory) -> None:
    """min(n, max(t+1, n−1)) keepers, as design §5 says."""
    record, _ = draw(memory, os.urandom(32), n=n, t=t)
    assert record.quorum == quorum


def test_a_shard_with_any_flipped_bit_is_a_lie(memory: ProtectedMemory) -> None:
    """Every bit of y and x is under the commitment."""
    record, shard_set = draw(memory, os.urandom(32))
    member = record.members[1]
    with memory.allocate(shamir.SHARD_SIZE) as shard:
        shard_set.derive_shard(member.x, shard)
        check_shard(shard, member, CLUSTER, record.set_id)
        for bit in range(8 * shamir.SHARD_SIZE):
            shard.view[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BadShardError, match="lies"):
                check_shard(shard, member, CLUSTER, record.set_id)
            shard.view[bit // 8] ^= 1 << bit % 8


def test_a_true_shard_of_another_keeper_set_or_cluster_is_a_lie(memory: ProtectedMemory) -> None:
    """The commitment binds cluster, set and point."""
    record, shard_set = draw(memory, os.urandom(32))
    one, two = record.members[:2]
    with memory.allocate(shamir.SHARD_SIZE) as shard:
        shard_set.derive_shard(one.x, shard)
        for member, cluster_id, set_id in (
            (two, CLUSTER, record.set_id),
            (one, os.urandom(16), record.set_id),
            (one, CLUSTER, os.urandom(16)),
        ):
            with pytest.raises(BadShardError):
                check_shard(shard, member, cluster_id, set_id)


def test_release_wipes_the_points(memory: ProtectedMemory) -> None:
    """A released set gives no shard any more."""
    _, shard_set = draw(memory, os.urandom(32))
    shard_set.release()
    with memory.allocate(shamir.SHARD_SIZE) as shard, pytest.raises(SealedError):
        shard_set.derive_shard(1, shard)
    assert is_wiped(memory)
