"""How nexus, keepers and SDK agree on the keys of their connections, as a relay between the real processes sees it."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pilot.dev.configuration import write_config
from pilot.dev.directory import Plan
from pilot.dev.identities import parse_workload
from shardhold import Client, WorkloadAPI
from tests.kit.cluster import Cluster
from tests.kit.tls_relay import HYBRID, TlsRelay

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without a root key, in which nothing but the identity provider runs."""
    cluster = Cluster(tmp_path_factory.mktemp("key-exchange") / "dev", Plan(keepers=2, threshold=2))
    try:
        cluster.dev.start(("keeper-1", "keeper-2"))
        yield cluster
    finally:
        cluster.close()


def test_every_connection_is_hybrid(cluster: Cluster) -> None:
    """A nexus with its keepers and an SDK with the nexus agree by X25519 with ML-KEM-768, with the locked grpcio."""
    dev, directory = cluster.dev, cluster.directory
    with ExitStack() as stack:
        to_keeper = stack.enter_context(TlsRelay(dev.state.ports["keeper-1"].grpc))
        write_config(directory, dev.state, "nexus")
        text = directory.config("nexus").read_text()
        config = directory.config("nexus").with_name("nexus-by-relay.toml")
        config.write_text(text.replace(f":{dev.state.ports['keeper-1'].grpc}", f":{to_keeper.port}"))
        cluster.processes.start_instead("nexus", [sys.executable, "-P", "-m", "nexus", "--config", str(config)])
        cluster.wait("the nexus reached its keeper", lambda: bool(to_keeper.groups))
        to_nexus = stack.enter_context(TlsRelay(dev.state.ports["nexus"].grpc))
        identity = WorkloadAPI(f"unix:{dev.add_identity(parse_workload('/team/app'))}")
        stack.callback(identity.close)
        client = stack.enter_context(Client(to_nexus.address, identity=identity))
        cluster.wait("the SDK reached the nexus", lambda: client.status().state == "uninitialised")
        assert (set(to_keeper.groups), set(to_nexus.groups)) == ({HYBRID}, {HYBRID})
