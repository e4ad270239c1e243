"""The shards that a recovery gathers: as many as it needs, each once, each with one owner."""

import threading

import pytest

from common.clock import SystemClock
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from nexus.keepers.collection import Collection
from nexus.keys.records import MemberRecord, SetState, ShardSetRecord
from tests.kit.manual_clock import ManualClock
from tests.kit.patience import join
from tests.nexus.cluster import is_wiped

MEMBERS = tuple(MemberRecord(f"keeper-{x}", "spiffe://example.org/k", "k:1", x, bytes(32)) for x in range(1, 6))
RECORD = ShardSetRecord(SetState.CURRENT, 1, bytes(16), 1, 1, 3, MEMBERS)


@pytest.fixture
def collection() -> Collection:
    """One that wants 3 of 5."""
    return Collection(RECORD, b"c" * 16)


def shard(memory: ProtectedMemory, x: int) -> ProtectedBuffer:
    buffer = memory.allocate(33)
    buffer.view[:] = bytes([x]) * 33
    return buffer


def test_it_has_enough_at_the_threshold(collection: Collection, memory: ProtectedMemory) -> None:
    """At the threshold nobody is asked any more, not even for a shard that is missing."""
    clock = SystemClock()
    for x in (4, 1):
        collection.offer(x, shard(memory, x))
    assert collection.gathered == 2
    assert not collection.wait(clock, 0)
    assert collection.has(4)
    assert not collection.has(2)
    collection.offer(2, shard(memory, 2))
    assert collection.wait(clock, 0)
    assert collection.has(5)


def test_taken_shards_belong_to_the_taker(collection: Collection, memory: ProtectedMemory) -> None:
    """They come once, and whole."""
    for x in (1, 2, 3):
        collection.offer(x, shard(memory, x))
    taken = collection.take()
    assert sorted(buffer.view[0] for buffer in taken) == [1, 2, 3]
    assert collection.take() == []
    for buffer in taken:
        buffer.release()
    assert is_wiped(memory)


@pytest.mark.parametrize("case", ["twice", "one too many", "after the end"])
def test_a_shard_that_is_not_wanted_is_wiped(collection: Collection, memory: ProtectedMemory, case: str) -> None:
    """It is released at once and never kept."""
    kept = [shard(memory, x) for x in (1, 2, 3)]
    if case == "twice":
        collection.offer(1, kept[0])
        collection.offer(1, extra := shard(memory, 1))
        assert collection.gathered == 1
    elif case == "one too many":
        for x, buffer in enumerate(kept, start=1):
            collection.offer(x, buffer)
        collection.offer(4, extra := shard(memory, 4))
        assert collection.gathered == 3
    else:
        collection.take()
        collection.offer(4, extra := shard(memory, 4))
        assert collection.gathered == 0
    with pytest.raises(ValueError, match="released"):
        bytes(extra.view)
    for buffer in kept:
        buffer.release()
    assert is_wiped(memory)


def test_a_waiter_wakes_at_the_last_shard(collection: Collection, memory: ProtectedMemory) -> None:
    """A waiter wakes at the last shard although the clock stands still."""
    clock, results = ManualClock(), list[bool]()
    waiter = threading.Thread(target=lambda: results.append(collection.wait(clock, 60)))
    waiter.start()
    assert clock.wait_for_waiters()
    for x in (1, 2, 3):
        collection.offer(x, shard(memory, x))
    join(waiter, 10)
    assert results == [True]
