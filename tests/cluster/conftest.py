"""Clusters of real processes, one for a module of tests that break nothing, or one for a single test."""

import functools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from pilot.dev.directory import Plan
from tests.cluster.sweep import Sweep
from tests.cluster.sweep_steps import STEPS, Calls
from tests.kit.cluster import Cluster, running

MakeCluster = Callable[[Plan], Cluster]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A ready cluster of five keepers, threshold three, that the tests of a module share and leave as it was."""
    with running(tmp_path_factory.mktemp("cluster") / "dev") as shared:
        yield shared


@pytest.fixture
def fresh_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A ready cluster of five keepers, threshold three, that one test may break."""
    with running(tmp_path / "dev") as own:
        yield own


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Makes clusters that are not started yet, and ends them after the test."""
    made: list[Cluster] = []

    def make(plan: Plan) -> Cluster:
        made.append(Cluster(tmp_path / f"dev-{len(made)}", plan))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    """Two keepers, threshold two. A step leaves the cluster ready."""
    cluster = Cluster(tmp_path_factory.mktemp("sweep") / "dev", Plan(keepers=2, threshold=2))
    try:
        cluster.start()
        cluster.kill("nexus")
        yield Sweep(cluster)
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def calls(sweep: Sweep) -> Calls:
    """Of each step: the calls that it makes."""
    return functools.cache(lambda name: list(sweep.record(STEPS[name])))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of every process's log with a test that failed."""
    report = yield
    if report.when == "call" and report.failed and isinstance(item, pytest.Function):
        for used in item.funcargs.values():
            if isinstance(used, Cluster):
                report.sections.append(("logs of the cluster", used.logs()))
    return report
