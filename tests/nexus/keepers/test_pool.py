"""All keepers at once: a slow one slows nobody, and a new duty begins at once."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from common.clock import Clock, SystemClock
from common.forms.epoch import StoreEpoch
from nexus.keepers.collection import Collection
from nexus.keepers.plan import Plan
from nexus.keepers.pool import KeeperPool
from tests.kit.manual_clock import ManualClock
from tests.nexus.cluster import FoundCluster, FoundedCluster, members
from tests.nexus.conftest import WaitUntil
from tests.nexus.played_keepers import PlayedKeeper, make_absent


@contextmanager
def running(
    cluster: FoundedCluster, keepers: Sequence[PlayedKeeper], clock: Clock | None = None
) -> Iterator[KeeperPool]:
    """Run a pool over *keepers*; its threads have ended and its links are closed when this returns."""
    links = {keeper.name: keeper for keeper in keepers}
    pool = KeeperPool(
        members(len(keepers)),
        lambda member: links.get(member.name) or make_absent(member.name),
        clock=clock or SystemClock(),
        memory=cluster.memory,
    )
    pool.start()
    try:
        yield pool
    finally:
        for keeper in keepers:
            keeper.go.set()
        pool.stop()
        assert all(keeper.is_closed for keeper in keepers)


def keep(pool: KeeperPool, cluster: FoundedCluster) -> None:
    pool.keep(Plan(cluster.make_set()), cluster.book(), lambda: None, StoreEpoch(1, 1))


@pytest.fixture
def cluster(found: FoundCluster) -> FoundedCluster:
    """3 of 5."""
    return found()


def test_keepers_are_watched_from_the_start(cluster: FoundedCluster, wait_until: WaitUntil) -> None:
    """Each by its own thread; nobody holds anything yet."""
    keepers = [PlayedKeeper(f"keeper-{i}") for i in range(1, 6)]
    with running(cluster, keepers) as pool:
        wait_until(lambda: all(seat.status.reachable for seat in pool.seats))
        assert pool.count_holders() == 0


def test_empty_keepers_are_filled_at_once(cluster: FoundedCluster, wait_until: WaitUntil) -> None:
    """A new duty does not wait for the poll of the old one: this clock stands still."""
    keepers = [PlayedKeeper(f"keeper-{i}") for i in range(1, 6)]
    clock = ManualClock()
    with running(cluster, keepers, clock) as pool:
        assert clock.wait_for_waiters(5)
        keep(pool, cluster)
        wait_until(lambda: pool.count_holders() == 5)
        assert clock.monotonic() == 0
    assert {keeper.name: keeper.sets[cluster.record.set_id][1] for keeper in keepers} == cluster.shards


def test_a_slow_keeper_delays_no_other(cluster: FoundedCluster, wait_until: WaitUntil) -> None:
    """Four are filled while one has not answered; it is filled when it does."""
    keepers = [PlayedKeeper(f"keeper-{i}") for i in range(1, 6)]
    keepers[0].go.clear()
    with running(cluster, keepers) as pool:
        keep(pool, cluster)
        assert pool.wait_holders(4, seconds=10) == 4
        assert not pool.seats[0].status.holds_current_set
        keepers[0].go.set()
        wait_until(lambda: pool.count_holders() == 5)


def test_waiting_for_holders_ends_in_time(cluster: FoundedCluster) -> None:
    """The wait ends with the holders that there are: the cluster exists all the same."""
    keepers = [PlayedKeeper(f"keeper-{i}") for i in range(1, 6)]
    for keeper in keepers[:3]:
        keeper.is_reachable = False
    with running(cluster, keepers) as pool:
        keep(pool, cluster)
        assert pool.wait_holders(2, seconds=10) == 2
        assert pool.wait_holders(4, seconds=0.05) == 2


def test_a_restarted_keeper_is_full_again_within_two_polls(cluster: FoundedCluster, wait_until: WaitUntil) -> None:
    """Nobody has to ask for it."""
    keepers = cluster.keepers()
    with running(cluster, keepers) as pool:
        keep(pool, cluster)
        wait_until(lambda: pool.count_holders() == 5)
        keepers[2].restart()
        wait_until(lambda: cluster.record.set_id in keepers[2].sets, seconds=2.5)


def test_collecting_asks_all_keepers_until_there_are_enough(cluster: FoundedCluster, wait_until: WaitUntil) -> None:
    """A late one completes it; then no shard is fetched any more."""
    keepers = cluster.keepers()
    for keeper in keepers[2:]:
        keeper.is_reachable = False
    collection = Collection(cluster.record, cluster.cluster_id)
    with running(cluster, keepers) as pool:
        pool.collect(collection, cluster.book(), threading.Event())
        wait_until(lambda: collection.gathered == 2)
        assert not collection.wait(SystemClock(), 0)
        keepers[4].is_reachable = True
        assert collection.wait(SystemClock(), 10)
        assert [keeper.count("put_shard") for keeper in keepers] == [0] * 5
    for point in collection.take():
        point.release()


def test_a_pool_that_never_started_stops(cluster: FoundedCluster) -> None:
    """When the start of a nexus fails half way."""
    keeper = PlayedKeeper("keeper-1")
    pool = KeeperPool(members(1), lambda member: keeper, clock=SystemClock(), memory=cluster.memory)
    pool.stop()
    assert keeper.is_closed


def test_keepers_are_emptied_all_at_once_and_for_as_long_as_it_takes(
    cluster: FoundedCluster, wait_until: WaitUntil
) -> None:
    """Those that answer are counted; one that comes later is emptied then, and one that holds a shard again too."""
    keepers = cluster.keepers()
    keepers[0].is_reachable = False
    mark = cluster.sign_mark(1, 7)
    held = dict(keepers[1].sets)
    with running(cluster, keepers) as pool:
        pool.empty(cluster.book(), mark, StoreEpoch(1, 2))
        assert pool.wait_emptied(seconds=0.3) == 4
        assert [bool(keeper.sets) for keeper in keepers] == [True, False, False, False, False]
        keepers[0].is_reachable = True
        keepers[1].sets.update(held)
        assert pool.wait_emptied(seconds=10) == 5
        wait_until(lambda: not keepers[1].sets)
        assert keepers[0].marks == keepers[1].marks == [mark]


def test_a_keeper_that_restarts_while_it_is_to_be_emptied_counts(cluster: FoundedCluster) -> None:
    """It has another boot id, and nothing in memory."""
    keepers = cluster.keepers()
    for keeper in keepers:
        keeper.is_reachable = False
    with running(cluster, keepers) as pool:
        pool.empty(cluster.book(), None, StoreEpoch(1, 2))
        assert pool.wait_emptied(seconds=0.05) == 0
        for keeper in keepers:
            keeper.restart()
            keeper.is_reachable = True
        assert pool.wait_emptied(seconds=10) == 5
        assert [keeper.count("drop_set") for keeper in keepers] == [0] * 5


def test_a_recovery_that_is_over_gives_no_duty_any_more(cluster: FoundedCluster, wait_until: WaitUntil) -> None:
    """A recovery that was ended does not replace the duty that its end has given."""
    keepers = cluster.keepers()
    stopping = threading.Event()
    collection = Collection(cluster.record, cluster.cluster_id)
    with running(cluster, keepers) as pool:
        stopping.set()
        keep(pool, cluster)
        pool.collect(collection, cluster.book(), stopping)
        assert pool.wait_holders(5, seconds=10) == 5
        keepers[0].restart()
        wait_until(lambda: cluster.record.set_id in keepers[0].sets)
    assert collection.gathered == 0


def test_the_highest_epoch_of_a_timeline_is_found(cluster: FoundedCluster, wait_until: WaitUntil) -> None:
    """Whatever keepers have seen in other timelines."""
    keepers = cluster.keepers()
    for keeper, epoch in zip(keepers, [(1, 3), (1, 7), (2, 4), (0, 0), (1, 5)], strict=True):
        keeper.epoch = StoreEpoch(*epoch)
    with running(cluster, keepers) as pool:
        pool.wait_heard(seconds=10)
        wait_until(lambda: [pool.find_epoch(timeline) for timeline in (1, 2, 3)] == [7, 4, 0])
