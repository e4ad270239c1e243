"""A cluster that every test of the memory scan looks into; each level has one."""

from collections.abc import Iterator

import pytest

from pilot.dev.directory import Plan
from pilot.dev.spawn import exec_program
from tests.kit.cluster import Cluster, running
from tests.memory.scanning import serve_requests


@pytest.fixture(
    scope="session",
    params=[pytest.param(3, id="level 3", marks=pytest.mark.needs("memfd_secret")), pytest.param(2, id="level 2")],
)
def used_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster after an init, requests, a refill, a recovery and requests again."""
    plan = Plan(highest_level=request.param, lowest_level=request.param)
    with running(tmp_path_factory.mktemp("memory") / "dev", plan, spawn=exec_program) as cluster:
        cluster.wait_filled()
        serve_requests(cluster)
        cluster.kill("keeper-1")
        cluster.run("keeper-1")
        cluster.wait_filled()
        cluster.restart_nexus()
        cluster.wait_filled()
        serve_requests(cluster)
        yield cluster
