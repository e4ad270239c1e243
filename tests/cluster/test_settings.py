"""What a cluster may be made of: levels of memory protection, and SVIDs so short-lived that they rotate in a test."""

import time

import grpc
import pytest

from pilot.dev.directory import Plan
from pilot.dev.identities import SUPERUSER_PATH, Identity
from shardhold import WorkloadAPI
from shardhold._channel import PinnedChannel
from shardhold.v1.cluster_pb2 import GetStatusRequest
from shardhold.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import MakeCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROTATIONS = 3


@pytest.mark.parametrize("level", [pytest.param(1, id="plain"), pytest.param(2, id="locked")])
def test_a_lower_level_of_protection_is_shown(make_cluster: MakeCluster, level: int) -> None:
    """A cluster held to a level of memory protection runs on it, and status and keepers say so."""
    cluster = make_cluster(Plan(keepers=2, threshold=2, lowest_level=level, highest_level=level))
    cluster.start()
    assert cluster.status()["memory_protection"] == level
    keepers = cluster.pilot("keeper", "list", "-o", "json").stdout
    assert keepers.count(f'"memory_protection": {level}') == 2


def test_svids_rotate_without_a_dropped_call(make_cluster: MakeCluster) -> None:
    """Three rotations long no call fails, though nobody retries; the links to the keepers follow as well."""
    cluster = make_cluster(Plan(keepers=3, threshold=2, lifetime_s=5.0))
    cluster.start()
    identity = WorkloadAPI(cluster.dev.variables(Identity(path=SUPERUSER_PATH))["SPIFFE_ENDPOINT_SOCKET"])
    channel = PinnedChannel(cluster.dev.address, identity, server_name="nexus.shardhold")
    try:
        calls = count_calls(ClusterServiceStub(channel), identity)
    finally:
        channel.close()
        identity.close()
    assert calls > 100
    check_keepers(cluster)


def count_calls(stub: ClusterServiceStub, identity: WorkloadAPI) -> int:
    """Call again and again until the SVID was replaced three times; the first call that fails raises."""
    seen = {identity.current().leaf().serial_number}
    give_up = time.monotonic() + 60
    calls = 0
    while len(seen) <= ROTATIONS:
        assert time.monotonic() < give_up, f"{len(seen) - 1} rotations in 60 s"
        try:
            stub.GetStatus(GetStatusRequest(), timeout=10)
        except grpc.RpcError as exc:
            raise AssertionError(f"call {calls} failed after {len(seen) - 1} rotations") from exc
        calls += 1
        seen.add(identity.current().leaf().serial_number)
    return calls


def check_keepers(cluster: Cluster) -> None:
    """The links between nexus and keepers have rotated as well: an empty keeper is filled, a killed nexus recovers."""
    cluster.kill("keeper-2")
    cluster.run("keeper-2")
    cluster.wait_filled()
    cluster.restart_nexus()
