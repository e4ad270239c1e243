"""The warden: how a nexus comes to be ready, what is in its way, and how it ends."""

from pathlib import Path

from common.protected import ProtectedMemory
from nexus.states import State
from nexus.store.protocol import Store
from tests.nexus.cluster import FoundCluster, is_wiped
from tests.nexus.conftest import WaitUntil
from tests.nexus.core import NexusCore


def test_a_recovery_ends_in_ready_and_says_before_what_is_missing(
    found: FoundCluster, store: Store, memory: ProtectedMemory, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """Then empty keepers are filled, and the end wipes every key."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers[2:]:
        keeper.is_reachable = False
    core = NexusCore(tmp_path, store, memory, keepers)
    core.pool.start()
    core.warden.start()
    wait_until(lambda: "2 of 3 shards" in core.warden.list_obstacles()[0])
    assert core.states == []
    keepers[3].restart()
    for keeper in keepers[2:]:
        keeper.is_reachable = True
    wait_until(lambda: core.states == [State.READY])
    assert core.warden.list_obstacles() == []
    assert core.lifecycle.require_serving().root_key.view == cluster.root_key
    wait_until(lambda: core.pool.count_holders() == 5)
    assert keepers[3].sets[cluster.record.set_id][1] == cluster.shards["keeper-4"]
    core.close()
    assert is_wiped(memory)


def test_a_recovery_that_is_stopped_changes_nothing(
    found: FoundCluster, store: Store, memory: ProtectedMemory, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The process ends; it never becomes ready on the way."""
    found()
    core = NexusCore(tmp_path, store, memory, [])
    core.warden.start()
    wait_until(lambda: "0 of 3 shards" in core.warden.list_obstacles()[0])
    core.warden.stop()
    assert core.states == []
    assert core.lifecycle.state is State.RECOVERING
    core.close()
