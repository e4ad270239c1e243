"""What the tests of operations share: a nexus that is ready, with keepers that are full."""

from collections.abc import Iterator

import pytest

from nexus.keys.operation.record import Depth
from nexus.lifecycle.states import State
from tests.nexus.admin.operations.reshared import Resharing
from tests.nexus.cluster import FoundCluster
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.failing_store import FailingStore


@pytest.fixture
def resharing(
    request: pytest.FixtureRequest, found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> Iterator[Resharing]:
    """3 of 5, all full. A test that names a depth (`reshared.DEPTHS`) begins operations of that depth."""
    cluster = found()
    keepers, store = cluster.keepers(), FailingStore(cluster.store)
    core = start_nexus(keepers, store=store)
    wait_until(lambda: core.pool.count_holders() == 5 and core.states == [State.READY])
    yield Resharing(cluster, keepers, store, core, getattr(request, "param", Depth.RESHARE))
    store.cannot_read = store.cannot_commit = store.forgets_outcome = False
