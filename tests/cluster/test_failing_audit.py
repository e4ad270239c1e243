"""A real nexus whose files cannot grow: it refuses what it cannot audit, says so, and comes back by itself."""

import contextlib
import resource
from collections.abc import Iterator

import pytest

import shardhold
from pilot.dev.directory import Plan
from tests.kit.cluster import Cluster, running

pytestmark = [pytest.mark.cluster, pytest.mark.needs("memory")]  # root may set the limits of a process

APP, PATH = "/failing/app", "failing/secret"
OBSTACLE = "audit entries cannot be written"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two keepers, and a secret."""
    with running(tmp_path_factory.mktemp("failing") / "dev", Plan(keepers=2, threshold=2)) as cluster:
        cluster.allow(APP, ["failing/**"], ["read", "write"])
        cluster.workload(APP).put(PATH, {"value": b"v"})
        yield cluster


@contextlib.contextmanager
def no_file_grows(pid: int) -> Iterator[None]:
    """Let every write of a process behind the first byte of a file fail."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def is_audit_failing(cluster: Cluster) -> bool:
    return OBSTACLE in cluster.fetch("nexus", "/readyz")


def test_without_an_audit_nothing_is_served_until_it_works_again(cluster: Cluster) -> None:
    """Reads are refused as unavailable, readiness goes down with the reason, and nobody has to start anything."""
    client = cluster.workload(APP)
    assert client.get(PATH).fields == {"value": b"v"}
    with no_file_grows(cluster.dev.state.processes["nexus"].pid):
        for call in (lambda: client.get(PATH), lambda: client.put(PATH, {"value": b"w"})):
            with pytest.raises(shardhold.UnavailableError):
                call()
        cluster.wait("readiness goes down", lambda: is_audit_failing(cluster))
        assert not cluster.dev.is_ready()
        assert "shardhold_audit_failing 1.0" in cluster.fetch("nexus", "/metrics")
    cluster.wait_ready()
    assert client.get(PATH).fields == {"value": b"v"}, "what was refused was not made"
    assert client.put(PATH, {"value": b"w"}).version == 2
