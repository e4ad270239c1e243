"""Operations on the root key under load: no call notices one.

`make soak` rotates ten times.
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from pilot.dev.identities import parse_workload
from shardhold import WorkloadAPI
from tests.cluster.operations import Operations
from tests.cluster.traffic import Traffic
from tests.kit.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP = "/operation-load/app"
STREAMS = 4  # of two readers and two writers each
RESHARES = 5
ROTATIONS = 10 if os.environ.get("TEST_PROFILE") == "soak" else 3
ANSWERS = 3  # that each worker gets between two operations


@pytest.fixture
def operations(cluster: Cluster) -> Operations:
    """The shared cluster, with a workload that may read and write."""
    cluster.allow(APP, ["operation-load/**"], ["read", "write"])
    return Operations(cluster)


@contextlib.contextmanager
def flowing(cluster: Cluster, folder: str) -> Iterator[Callable[[], None]]:
    """Let eight readers and eight writers go on below *folder*; gives what waits for some answers to each.

    Not one try may fail, and no get may give less than what was acknowledged.
    """
    with contextlib.ExitStack() as stack:
        identity = WorkloadAPI(f"unix:{cluster.dev.add_identity(parse_workload(APP))}")
        stack.callback(identity.close)
        streams = [Traffic(cluster.dev.address, identity, f"{folder}/{number}") for number in range(STREAMS)]
        for stream in streams:
            stack.enter_context(stream.flowing())

        def wait_answered() -> None:
            for stream in streams:
                stream.wait_answered(cluster, ANSWERS)

        yield wait_answered
        wait_answered()
    assert [failure for stream in streams for failure in stream.failures] == []


def test_five_reshares_under_load(operations: Operations) -> None:
    """Eight readers and eight writers notice nothing."""
    before = operations.look().set_number
    with flowing(operations.cluster, "operation-load/reshares") as wait_answered:
        for _ in range(RESHARES):
            wait_answered()
            operations.reshare()
    operations.check_world()
    assert operations.stored.find_current().set_number == before + RESHARES


def test_rotations_under_load(operations: Operations) -> None:
    """Eight readers and eight writers notice nothing, and all that older keys wrapped or sealed is gone afterwards."""
    before = operations.look().generation
    with flowing(operations.cluster, "operation-load/rotations") as wait_answered:
        for _ in range(ROTATIONS):
            wait_answered()
            operations.stored.remember()
            operations.rotate()
    operations.check_world()
    assert operations.look().generation == before + ROTATIONS
