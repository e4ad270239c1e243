"""Keepers asked before an operation, and waited for during one: new ones too, and none longer than was said."""

import time
from collections.abc import Iterator

import pytest

from common.clock import SystemClock
from common.forms.epoch import StoreEpoch
from nexus.keepers.plan import Plan
from nexus.keepers.pool import KeeperPool
from tests.kit.waiting import wait_until
from tests.nexus.cluster import FoundCluster, FoundedCluster, members
from tests.nexus.played_keepers import PlayedKeeper, make_absent


@pytest.fixture
def cluster(found: FoundCluster) -> FoundedCluster:
    """3 of 5."""
    return found()


@pytest.fixture
def keepers(cluster: FoundedCluster) -> dict[str, PlayedKeeper]:
    """Those of the cluster, and a sixth that no set names."""
    return {keeper.name: keeper for keeper in [*cluster.keepers(), PlayedKeeper("keeper-6")]}


@pytest.fixture
def pool(cluster: FoundedCluster, keepers: dict[str, PlayedKeeper]) -> Iterator[KeeperPool]:
    """A pool over the five that watches them."""
    pool = KeeperPool(
        members(5),
        lambda member: keepers.get(member.name) or make_absent(member.name),
        clock=SystemClock(),
        memory=cluster.memory,
    )
    pool.start()
    wait_until(lambda: all(seat.status.reachable for seat in pool.seats))
    yield pool
    pool.stop()


def test_a_probe_asks_new_keepers_and_knows_the_others(pool: KeeperPool, keepers: dict[str, PlayedKeeper]) -> None:
    """One that does not answer is among the results; links that were opened for it are closed, and no seat stays."""
    asked = [members(1)[0], *members(7)[5:]]
    found = pool.probe(asked, seconds=10)
    assert {name: status.reachable for name, status in found.items()} == {
        "keeper-1": True,
        "keeper-6": True,
        "keeper-7": False,
    }
    assert keepers["keeper-6"].is_closed
    assert not keepers["keeper-1"].is_closed
    assert [seat.member.name for seat in pool.seats] == [f"keeper-{i}" for i in range(1, 6)]


def test_a_new_keeper_of_an_older_program_is_seen(pool: KeeperPool, keepers: dict[str, PlayedKeeper]) -> None:
    """It is refused before it is needed."""
    keepers["keeper-6"].put_format = 1
    assert pool.probe(members(6)[5:], seconds=10)["keeper-6"].is_too_old


def test_a_probe_does_not_wait_for_a_keeper_that_hangs(pool: KeeperPool, keepers: dict[str, PlayedKeeper]) -> None:
    """It counts as one that does not answer."""
    keepers["keeper-6"].go.clear()
    begun = time.monotonic()
    assert not pool.probe(members(6)[5:], seconds=0.2)["keeper-6"].reachable
    assert time.monotonic() - begun < 10


def keep(pool: KeeperPool, cluster: FoundedCluster, epoch: int) -> None:
    """Give keepers a mark at *epoch*."""
    mark = cluster.sign_mark(1, epoch, epoch=epoch)
    pool.keep(Plan(cluster.make_set()), cluster.book(), lambda: mark, StoreEpoch(1, epoch))


def test_marks_are_waited_for_from_every_keeper_that_answers(
    pool: KeeperPool, cluster: FoundedCluster, keepers: dict[str, PlayedKeeper]
) -> None:
    """One that does not answer is not waited for."""
    keepers["keeper-5"].is_reachable = False
    wait_until(lambda: not pool.seats[4].status.reachable)
    keep(pool, cluster, 7)
    pool.wait_marked(7, seconds=30)
    assert [bool(keeper.marks) for keeper in keepers.values()] == [True] * 4 + [False] * 2


def test_a_keeper_that_takes_no_mark_is_not_waited_for_longer_than_was_said(
    pool: KeeperPool, cluster: FoundedCluster, keepers: dict[str, PlayedKeeper]
) -> None:
    """The operation goes on: what a mark protects is protected by the others."""
    keepers["keeper-5"].mark_refusal = "no"
    keep(pool, cluster, 7)
    begun = time.monotonic()
    pool.wait_marked(7, seconds=0.3)
    assert time.monotonic() - begun < 10
