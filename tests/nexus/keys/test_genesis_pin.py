"""A nexus that is told which cluster it may serve: it serves no other one, and makes none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import CorruptRowError, WrongStateError
from common.keys.protected import ProtectedMemory
from nexus.admin.initialise import InitPlan
from nexus.keys.genesis_pin import GenesisPin
from nexus.lifecycle.states import State
from nexus.store.protocol import Store
from tests.nexus.cluster import FoundCluster, FoundedCluster
from tests.nexus.conftest import WaitUntil
from tests.nexus.core import SUPERUSER, NexusCore
from tests.nexus.custodians import Lost, custodian
from tests.nexus.founder import RECOVERY

ANN = custodian("ann")
OTHER = GenesisPin(bytes(range(32)))


@pytest.fixture
def founded(found: FoundCluster) -> FoundedCluster:
    return found(keepers=3, threshold=2)


@pytest.fixture
def restarted(tmp_path: Path, store: Store, memory: ProtectedMemory, founded: FoundedCluster) -> Iterator[NexusCore]:
    """A nexus whose keepers hold their shards; nothing of it runs yet."""
    core = NexusCore(tmp_path, store, memory, founded.keepers())
    yield core
    core.close()


def run(core: NexusCore, pin: GenesisPin) -> None:
    core.bind(State.RECOVERING, pin)
    core.pool.start()
    core.warden.start()


def test_another_cluster_is_not_recovered(restarted: NexusCore, founded: FoundedCluster, wait_until: WaitUntil) -> None:
    """Status names both fingerprints, and not one shard is asked for."""
    run(restarted, OTHER)
    wait_until(lambda: f"genesis {founded.genesis.hex()}" in " ".join(restarted.warden.list_obstacles()))
    assert f"genesis = {OTHER.fingerprint.hex()}" in " ".join(restarted.warden.list_obstacles())
    with pytest.raises(CorruptRowError, match="put the store of that cluster back"):
        restarted.warden.admit(founded.prove())
    assert restarted.lifecycle.state is State.RECOVERING


def test_the_configured_cluster_is_recovered(
    restarted: NexusCore, founded: FoundedCluster, wait_until: WaitUntil
) -> None:
    """With its own fingerprint a nexus comes back as without any."""
    run(restarted, GenesisPin(founded.genesis))
    wait_until(lambda: restarted.states == [State.READY])


def test_another_cluster_is_not_unsealed(lost: Lost) -> None:
    """Custodians are told before they enter a word, and no session is opened."""
    lost.core.bind(State.RECOVERING, OTHER)
    for call in (lost.core.unseal.describe, lost.core.unseal.start):
        with pytest.raises(CorruptRowError, match=r"the store is of a cluster with genesis [0-9a-f]{64}"):
            call(ANN)
    assert lost.core.unseal.count() is None


def test_no_new_cluster_is_made(core: NexusCore) -> None:
    """An empty store where the configured cluster should be is not the place for another one."""
    core.bind(State.UNINITIALISED, OTHER)
    with pytest.raises(WrongStateError, match="no new cluster is made"):
        core.initialisation.begin(SUPERUSER, InitPlan(2, RECOVERY))
    assert core.lifecycle.state is State.UNINITIALISED
