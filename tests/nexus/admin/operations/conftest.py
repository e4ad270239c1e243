"""What the tests of operations share: a nexus that is ready, with keepers that are full."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.keys.protected import ProtectedMemory
from nexus.keys.operation.record import Depth
from nexus.lifecycle.states import State
from tests.nexus.admin.operations.rekeyed import Rekeyed, make_rekeyed
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


MakeRekeyed = Callable[..., Rekeyed]


@pytest.fixture
def make(tmp_path: Path, failing: FailingStore, memory: ProtectedMemory, found: FoundCluster) -> Iterator[MakeRekeyed]:
    """Make a nexus whose keys were just replaced."""
    made: list[Rekeyed] = []

    def make(**options: Any) -> Rekeyed:
        made.append(make_rekeyed(found, tmp_path, failing, memory, **options))
        return made[-1]

    yield make
    failing.cannot_read = failing.cannot_commit = failing.forgets_outcome = False
    for one in made:
        one.job.stop()
        one.core.close()


@pytest.fixture
def rekeyed(make: MakeRekeyed) -> Rekeyed:
    """Twelve rows are under the KEK of before."""
    return make()
