"""The contract of services, kept by a real nexus."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from pilot.dev.identities import parse_workload
from shardhold import AsyncClient, Client, WorkloadAPI
from shardhold.v1 import policies_pb2
from tests.client.bridge import LoopThread
from tests.client.contract import (  # noqa: F401 — collected here
    APP,
    READ_ONLY,
    SPIFFE_ID,
    TOP,
    TestListing,
    TestRefusals,
    TestRemoving,
    TestStatus,
    TestWriting,
    path,
)
from tests.kit.cluster import Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def identity(cluster: Cluster) -> Iterator[WorkloadAPI]:
    """Return the identity of a workload that two policies let do what the contract wants."""
    cluster.allow(APP, [f"{TOP}/**"], ["read", "write", "list", "delete"])
    reader = policies_pb2.Policy(
        name="contract-reader",
        spiffe_ids=[SPIFFE_ID],
        paths=[f"{READ_ONLY}/**"],
        permissions=[policies_pb2.PERMISSION_READ],
    )
    cluster.superuser.apply_policy(reader)
    with closing(WorkloadAPI(f"unix:{cluster.dev.add_identity(parse_workload(APP))}")) as source:
        yield source


@pytest.fixture(params=["Client", "AsyncClient"])
def client(request: pytest.FixtureRequest, cluster: Cluster, identity: WorkloadAPI) -> Iterator[Client]:
    """Return a client of either kind, of the cluster that all share."""
    if request.param == "Client":
        with Client(cluster.dev.address, identity) as client:
            yield client
        return
    with LoopThread() as loop, loop.bridge(AsyncClient(cluster.dev.address, identity)) as client:
        yield client
