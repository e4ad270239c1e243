"""Shards that are gathered to rehearse a recovery."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from common.clock import SystemClock
from common.errors import TooFewShardsError
from common.keys.protected import ProtectedMemory
from nexus.admin.operations.rehearsal import Rehearsal
from nexus.keepers.pool import KeeperPool
from nexus.keys.operation.facts import Facts
from nexus.keys.ruled_change import load_facts
from tests.nexus.cluster import FoundCluster, FoundedCluster, is_wiped, members
from tests.nexus.conftest import WaitUntil


def load(cluster: FoundedCluster) -> Facts:
    serving = cluster.prove_without_points()
    try:
        with cluster.store.read() as reader:
            return load_facts(reader, serving.root_key)
    finally:
        serving.release()


def test_a_release_ends_a_gathering_and_wipes_it(
    found: FoundCluster, memory: ProtectedMemory, wait_until: WaitUntil
) -> None:
    """A seal waits for no keeper, and leaves no shard behind until one answers."""
    cluster = found()
    facts, keepers = load(cluster), {keeper.name: keeper for keeper in cluster.keepers()}
    for name in list(keepers)[2:]:
        keepers[name].is_reachable = False
    pool = KeeperPool(members(5), lambda member: keepers[member.name], clock=SystemClock(), memory=memory)
    rehearsal = Rehearsal(pool, memory)
    with ThreadPoolExecutor(1) as executor:
        gathering = executor.submit(rehearsal.gather, facts, 1, seconds=120.0)
        wait_until(lambda: all(keeper.count("fetch_shard") for keeper in keepers.values()))
        rehearsal.release()
        wait_until(gathering.done)
        with pytest.raises(TooFewShardsError):
            gathering.result()
    assert is_wiped(memory)


def test_what_was_released_proves_nothing(found: FoundCluster, memory: ProtectedMemory) -> None:
    """Nor does what nobody gathered."""
    cluster = found()
    facts, keepers = load(cluster), {keeper.name: keeper for keeper in cluster.keepers()}
    pool = KeeperPool(members(5), lambda member: keepers[member.name], clock=SystemClock(), memory=memory)
    rehearsal = Rehearsal(pool, memory)
    meta, rows = cluster.load()
    rehearsal.gather(facts, 1, seconds=20.0)
    rehearsal.release()
    with pytest.raises(TooFewShardsError, match="no shards are gathered"):
        rehearsal.prove(meta, rows)
    assert is_wiped(memory)
