"""What the tests of the nexus core share: protected memory, a real store, clusters in it, waiting for a condition."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from common.keys.protected import Level, ProtectedMemory
from nexus.policy.rules import Policy
from nexus.store.protocol import Store
from tests.kit import waiting
from tests.nexus import cluster
from tests.nexus.cluster import FoundCluster
from tests.nexus.core import NexusCore, make_ready
from tests.nexus.custodians import KEY, Lost
from tests.nexus.failing_store import FailingStore
from tests.nexus.played_keepers import PlayedKeeper

WaitUntil = Callable[..., None]
MakeNexus = Callable[..., NexusCore]
StartNexus = Callable[..., NexusCore]


@pytest.fixture
def memory() -> ProtectedMemory:
    """An arena of its own for each test, so that a test can see what was given back."""
    return ProtectedMemory(highest=Level.LOCKED)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A real store, empty."""
    store = cluster.open_store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def found(store: Store, memory: ProtectedMemory) -> FoundCluster:
    """Found a cluster in the store: t of n keepers, policies."""
    return partial(cluster.found, store, memory)


@pytest.fixture
def wait_until() -> WaitUntil:
    """Wait for a condition, and fail when it does not hold in time."""
    return waiting.wait_until


@pytest.fixture
def failing(store: Store) -> FailingStore:
    """The store of `core`, to fail when a test says so."""
    return FailingStore(store)


@pytest.fixture
def core(tmp_path: Path, failing: FailingStore, memory: ProtectedMemory) -> Iterator[NexusCore]:
    """A nexus on an empty store, with three keepers that it watches."""
    core = NexusCore(tmp_path, failing, memory, [PlayedKeeper(f"keeper-{i}") for i in (1, 2, 3)])
    core.pool.start()
    yield core
    core.close()


@pytest.fixture
def lost(tmp_path: Path, memory: ProtectedMemory, found: FoundCluster) -> Iterator[Lost]:
    """A cluster that only custodians can bring back, 2 of 3."""
    lost = Lost(tmp_path, found(recovery=KEY.record, seal_escrow=KEY.seal_escrow), memory)
    yield lost
    lost.core.close()


@pytest.fixture
def start_nexus(tmp_path: Path, store: Store, memory: ProtectedMemory) -> Iterator[StartNexus]:
    """Start a nexus as a process does, with keepers as they are; the one before has ended by then."""
    running: list[NexusCore] = []

    def start(keepers: Sequence[PlayedKeeper], *, store: Store = store, name: str = cluster.NEXUS_NAME) -> NexusCore:
        while running:
            running.pop().close()
        core = NexusCore(tmp_path, store, memory, keepers, name=name)
        running.append(core)
        core.pool.start()
        core.warden.start()
        return core

    yield start
    for core in running:
        core.close()


@pytest.fixture
def make_nexus(tmp_path: Path, store: Store, memory: ProtectedMemory, found: FoundCluster) -> Iterator[MakeNexus]:
    """Make a nexus that serves a new cluster, with these policies beside the first one."""
    made: list[NexusCore] = []

    def make(*policies: Policy, store: Store = store) -> NexusCore:
        founded = found(keepers=3, threshold=2, policies=[cluster.SUPERUSERS, *policies])
        core = NexusCore(tmp_path, store, memory, founded.keepers())
        made.append(core)
        make_ready(core, founded)
        return core

    yield make
    for core in made:
        core.close()
