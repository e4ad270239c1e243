"""Histories of many processes on few secrets, under kills of the nexus: some order of the calls explains all answers.

`make soak` looks at more of them, each with a seed of its own.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pilot.dev.cluster import clean_environ
from pilot.dev.directory import Plan
from pilot.dev.identities import parse_workload
from pilot.dev.spawn import Child
from tests.cluster.conftest import MakeCluster
from tests.kit.cluster import Cluster
from tests.kit.linearizability import Call, find_violations
from tests.kit.patience import at_most
from tests.kit.seed import SEED
from tests.kit.spawn import choose_spawn

pytestmark = [pytest.mark.cluster, pytest.mark.destructive, pytest.mark.final, pytest.mark.timeout(1200)]

ROUNDS = 20 if os.environ.get("TEST_PROFILE") == "soak" else 1
WORKERS = 16
PATHS = 5
KILLS = 8
CALLS = 75  # of each worker, so 240 on each path
BETWEEN_KILLS = WORKERS * CALLS // (KILLS + 2)  # calls of all workers
APP = "/histories/app"


@pytest.mark.parametrize("number", range(ROUNDS))
def test_all_answers_have_an_order(make_cluster: MakeCluster, number: int) -> None:
    """Puts, check-and-sets, deletes and gets of 16 processes, repeated under their ids when an answer is lost, are
    linearizable for each secret, with eight kills of the nexus among them.
    """
    cluster = make_cluster(Plan(keepers=2, threshold=2))
    cluster.start()
    cluster.allow(APP, ["histories/**"], ["read", "write", "delete"])
    with working(cluster, seed=f"{SEED} {number}") as workers:
        for kills in range(1, KILLS + 1):
            wait_calls(cluster, kills * BETWEEN_KILLS)
            cluster.restart_nexus()
        cluster.wait("all workers end", lambda: all(worker.poll() is not None for worker in workers))
    assert {worker.poll() for worker in workers} == {0}, load_logs(cluster)
    calls = load_calls(cluster)
    assert {(call.kind, call.outcome) for call in calls} == {
        ("put", "ok"),
        ("put", "conflict"),
        ("get", "ok"),
        ("get", "not found"),
        ("delete", "ok"),
        ("delete", "not found"),
    }, Counter((call.kind, call.outcome) for call in calls)
    violations = find_violations(calls)
    assert not violations, "\n".join(violations)


@contextmanager
def working(cluster: Cluster, *, seed: str) -> Iterator[list[Child]]:
    """Have processes call, all of one workload; those that still do after the block are killed."""
    workers: list[Child] = []
    try:
        workers += start_workers(cluster, seed=seed)
        yield workers
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait(at_most(10))


def wait_calls(cluster: Cluster, count: int) -> None:
    """Wait until the workers have made so many calls."""
    cluster.wait(f"{count} calls", lambda: len(load_calls(cluster)) >= count)


def start_workers(cluster: Cluster, *, seed: str) -> Iterator[Child]:
    """Start the processes that call."""
    folder = cluster.directory.root / "histories"
    folder.mkdir()
    socket = cluster.dev.add_identity(parse_workload(APP))
    paths = [f"histories/{index}" for index in range(PATHS)]
    for number in range(WORKERS):
        own = [str(folder / f"{number}.jsonl"), f"w{number}", seed, str(CALLS)]
        command = [sys.executable, "-P", "-m", "tests.kit.historian", cluster.dev.address, str(socket), *own, *paths]
        log = (folder / f"{number}.log").open("wb")
        with log, Path(os.devnull).open("rb") as nothing:
            yield choose_spawn()(
                command,
                environ=clean_environ(),
                directory=cluster.directory.root,
                stdin=nothing.fileno(),
                stdout=log.fileno(),
                stderr=log.fileno(),
            )


def load_logs(cluster: Cluster) -> str:
    """Load what the workers complained of."""
    return "\n".join(file.read_text() for file in (cluster.directory.root / "histories").glob("*.log"))


def load_calls(cluster: Cluster) -> list[Call]:
    """Load what the workers have written down."""
    files = (cluster.directory.root / "histories").glob("*.jsonl")
    lines = (line for file in files for line in file.read_text().splitlines(keepends=True))
    return [Call(**json.loads(line)) for line in lines if line.endswith("\n")]
