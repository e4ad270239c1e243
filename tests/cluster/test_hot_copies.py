"""Files of the store that are copied while a real nexus runs: why docs/backups.md says what it says."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from pilot.dev.directory import DevError, Plan
from shardhold.v1 import secrets_pb2 as pb
from tests.kit.cluster import Cluster, running
from tests.kit.person import TIMEOUT_S

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

PAGE = (Path(__file__).parents[2] / "docs" / "backups.md").read_text()
DATABASE, WAL = "nexus.db", "nexus.db-wal"
LARGE = 60_000  # bytes of a value: 70 of them are more than SQLite leaves in the WAL
SMALL = 40


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two keepers, and a nexus."""
    with running(tmp_path_factory.mktemp("hot") / "dev", Plan(keepers=2, threshold=2)) as cluster:
        cluster.wait_filled()
        yield cluster


def put(cluster: Cluster, folder: str, count: int, size: int) -> list[str]:
    """Put secrets below *folder*; return their paths."""
    paths = [f"{folder}/{number}" for number in range(count)]
    for path in paths:
        request = pb.PutSecretRequest(path=path, fields={"value": os.urandom(size)}, request_id=os.urandom(16))
        cluster.superuser.secrets.PutSecret(request, timeout=TIMEOUT_S)
    return paths


def list_lost(cluster: Cluster, paths: list[str]) -> list[str]:
    """List the secrets that cannot be read."""
    lost = []
    for path in paths:
        try:
            cluster.superuser.secrets.GetSecret(pb.GetSecretRequest(path=path), timeout=TIMEOUT_S)
        except grpc.RpcError:
            lost.append(path)
    return lost


def start_from(cluster: Cluster, copy: Path) -> None:
    """Put a copy in the place of the store, with nothing of the store beside it, and start."""
    cluster.kill("nexus")
    shutil.rmtree(cluster.directory.data)
    shutil.copytree(copy, cluster.directory.data)
    cluster.start_nexus()


def test_files_of_one_moment_are_a_whole_store(cluster: Cluster, tmp_path: Path) -> None:
    """A snapshot of the disk is what a power cut leaves: every change that was acknowledged is in it."""
    paths = put(cluster, "one", 20, SMALL)
    cluster.freeze("nexus")
    shutil.copytree(cluster.directory.data, tmp_path / "copy")
    cluster.thaw("nexus")
    start_from(cluster, tmp_path / "copy")
    assert list_lost(cluster, paths) == []


def test_files_of_two_moments_are_no_store(cluster: Cluster, tmp_path: Path) -> None:
    """Pages went from the WAL into the database between the two: some are in neither file. It may be served anyway."""
    copy = tmp_path / "copy"
    copy.mkdir()
    paths = put(cluster, "early", 20, SMALL)
    shutil.copy(cluster.directory.data / DATABASE, copy)
    paths += put(cluster, "between", 70, LARGE)
    paths += put(cluster, "late", 20, SMALL)
    shutil.copy(cluster.directory.data / WAL, copy)
    checked = tmp_path / "checked"
    shutil.copytree(copy, checked)
    with contextlib.closing(sqlite3.connect(checked / DATABASE)) as connection:
        assert connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
    with contextlib.suppress(DevError):  # SQLite may notice, when it comes by such a page
        start_from(cluster, copy)
    is_refused = not cluster.dev.is_alive("nexus")
    assert is_refused or list_lost(cluster, paths)
    assert "while a nexus has it open is not a backup" in PAGE
