"""A nexus on the store of an earlier program: it migrates, leaves a copy, and serves what was written."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import shardhold
from nexus.store.sqlite.migrations import NEWEST
from pilot.dev.directory import Plan
from tests.cluster.older_stores.make import APP, FIELDS
from tests.kit.cluster import Cluster

STORES = Path(__file__).with_name("older_stores")


@pytest.fixture(params=[1, 2, 3], ids=["schema 1", "schema 2", "schema 3"])
def schema(request: pytest.FixtureRequest) -> int:
    """The schema of the store that the nexus finds."""
    return int(request.param)


@pytest.fixture
def cluster(schema: int, tmp_path: Path) -> Iterator[Cluster]:
    """The files of an earlier cluster, and three keepers that never saw it; all run, and nobody has unsealed it."""
    cluster = Cluster(tmp_path / "dev", Plan(keepers=3, threshold=2))
    try:
        put_in_place(STORES / f"schema-{schema}", cluster)
        cluster.start_uninitialised()
        yield cluster
    finally:
        cluster.close()


def put_in_place(folder: Path, cluster: Cluster) -> None:
    """Give *cluster*, which does not run yet, store, audit and recovery shares."""
    directory = cluster.directory
    shutil.copy(folder / "nexus.db", directory.data)
    shutil.copytree(folder / "audit", directory.audit, dirs_exist_ok=True)
    shutil.copytree(folder / "recovery-shares", directory.recovery_shares)


def read_schema(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def dump(file: Path) -> list[str]:
    """Return the statements that make schema and rows of a database that nobody has open."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as database:
        return list(database.iterdump())


def test_it_serves_what_was_written(cluster: Cluster, schema: int) -> None:
    """Custodians bring it back; secrets, deletions and policies are there, new versions are made, and it recovers."""
    file = cluster.directory.data / "nexus.db"
    copy = file.with_name(f"nexus.db.schema-{schema}")
    assert (read_schema(file), read_schema(copy)) == (NEWEST, schema)
    assert dump(copy) == dump(STORES / f"schema-{schema}" / "nexus.db")  # what the program before can go on from
    assert cluster.status()["state"] == "recovering"
    cluster.unseal()
    cluster.wait_ready()
    app = cluster.workload(APP)
    assert app.get("team/db").fields == FIELDS | {"password": b"v2"}
    assert app.get("team/db", version=1).fields == FIELDS
    assert app.get("team/anew").fields == {"value": b"new"}
    assert app.get("team/large").fields == {"value": bytes(range(256)) * 64}
    with pytest.raises(shardhold.NotFoundError):
        app.get("team/gone")
    assert app.put("team/db", {"password": b"v3"}).version == 3
    cluster.wait_filled()
    cluster.restart_nexus()
    assert cluster.workload(APP).get("team/db").fields == {"password": b"v3"}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        generation, kek_id = database.execute("SELECT generation, kek_id FROM meta").fetchone()
        assert generation == 1
        assert kek_id in (0, *(one for (one,) in database.execute("SELECT DISTINCT kek_id FROM versions")))
