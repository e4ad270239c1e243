"""A full message of garbage on each RPC of nexus and keepers, over the wire: refused, and nobody minds."""

import random
from collections.abc import Iterator
from contextlib import closing

import grpc
import pytest

from keeper.v1 import keeper_pb2
from pilot.dev.configuration import socket_path
from shardhold import WorkloadAPI
from shardhold.channel import PinnedChannel
from shardhold.v1 import audit_pb2, cluster_pb2, policies_pb2, recovery_pb2, secrets_pb2
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most
from tests.kit.refusal import read_outcome

pytestmark = pytest.mark.cluster

CONTRACTS = {"nexus": (secrets_pb2, policies_pb2, cluster_pb2, recovery_pb2, audit_pb2), "keeper-1": (keeper_pb2,)}
RPCS = [
    (server, f"/{service.full_name}/{rpc.name}")
    for server, contracts in CONTRACTS.items()
    for contract in contracts
    for service in contract.DESCRIPTOR.services_by_name.values()
    for rpc in service.methods
]
# As much as the transport takes; it begins with a field of wire type 7, which does not exist.
FULL = b"\x7f" + random.Random(5).randbytes(5 * 1024 * 1024 - 1024)


@pytest.fixture(scope="module")
def channels(cluster: Cluster) -> Iterator[dict[str, grpc.Channel]]:
    """To the nexus as a superuser, to a keeper as the nexus: the callers who get furthest."""
    with closing(WorkloadAPI(f"unix:{socket_path(cluster.dev.state, 'nexus')}")) as identity:
        address = f"127.0.0.1:{cluster.dev.state.ports['keeper-1'].grpc}"
        with PinnedChannel(address, identity, server_name="keeper-1.keeper.shardhold") as keeper:
            yield {"nexus": cluster.superuser.channel, "keeper-1": keeper}


@pytest.mark.parametrize(("server", "rpc"), RPCS)
@pytest.mark.parametrize("body", [pytest.param(FULL, id="5 MiB"), pytest.param(b"\x0a\x05abc", id="cut off")])
def test_garbage_is_an_invalid_argument(
    cluster: Cluster, channels: dict[str, grpc.Channel], server: str, rpc: str, body: bytes
) -> None:
    """Garbage is refused before anything else is looked at, and the server goes on."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channels[server].unary_unary(rpc)
    outcome = read_outcome(lambda: call(body, timeout=at_most(20)))
    assert (outcome.code, outcome.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert f"{len(body)} bytes" in outcome.details
    assert cluster.dev.is_ready(server)


def test_nothing_failed_inside(cluster: Cluster) -> None:
    """After all that no server has logged a fault of its own, and the cluster is whole."""
    for name in cluster.dev.names:
        assert "call failed" not in cluster.directory.log(name).read_text()
    assert cluster.status()["state"] == "ready"
