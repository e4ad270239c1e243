"""A database in which someone changed a value by SQL: what reads it names the damage, and the rest still works."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ShardholdError
from common.keys.protected import Level, ProtectedMemory
from nexus.store.protocol import Writer
from shardhold.v1 import cluster_pb2, secrets_pb2
from tests.fuzz.budget import budget
from tests.fuzz.mutations import hostile, hostile_text
from tests.nexus.cluster import FoundedCluster, found, open_store
from tests.nexus.core import NexusCore, make_ready
from tests.nexus.keys.damaged import ask, bring_back, started_on

TIME_RANGE = range(253_402_300_800)  # seconds that a datetime can hold
PATHS = ("team/a", "team/b", "team/c")
NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**31, 2**32, 2**63 - 2, 2**63 - 1]) | st.integers(-3, 5)
BLOBS = hostile(bytes(16), bytes(32), bytes(98), b"{}", b'{"kcv":""}')
TEXTS = hostile_text("team/a", "current", "initialised", "policy", "a/../b").map(
    lambda text: text.encode("utf-8", "ignore").decode()
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FoundedCluster]:
    """Return a cluster with a few secrets, and the folder with its store, which no process has open."""
    folder = tmp_path_factory.mktemp("store")
    memory = ProtectedMemory(highest=Level.LOCKED)
    store = open_store(folder)
    cluster = found(store, memory, keepers=3, threshold=2)
    core = NexusCore(folder, store, memory, cluster.keepers())
    make_ready(core, cluster)
    for path in (*PATHS, *PATHS):
        assert send(core, "PutSecret", put(path)) is not None
    destroyed = secrets_pb2.DestroySecretRequest(path=PATHS[-1], versions=[1], request_id=os.urandom(16))
    assert send(core, "DestroySecret", destroyed) is not None
    store.write(put_into_quarantine)
    core.close()
    store.close()
    return folder, cluster


def put(path: str) -> secrets_pb2.PutSecretRequest:
    return secrets_pb2.PutSecretRequest(path=path, fields={"value": b"v"}, request_id=os.urandom(16))


def put_into_quarantine(writer: Writer) -> None:
    """Put the first version into quarantine."""
    first, *_ = writer.scan_versions(limit=1)
    assert writer.quarantine(first, reason="does not open", found_at=1)


def read_for_the_job(core: NexusCore) -> None:
    """Read what the keyring job reads."""
    with contextlib.suppress(ShardholdError), core.store.read() as reader:
        for row in (*reader.list_outdated(9, limit=99), *reader.scan_versions(limit=99)):
            reader.load_value(row)
        for kek_id in reader.count_by_kek():
            assert reader.has_rows_under(kek_id) or reader.count_abandoned(kek_id)
        reader.list_quarantine(limit=99)


def send(core: NexusCore, rpc: str, request: Message) -> Any:
    """Make a call; return its answer, or None if it was refused with an error of ours."""
    try:
        return ask(core, rpc, request)
    except ShardholdError:
        return None


# Of tables without row ids.
KEYS = {
    "secrets": "path",
    "deletions": "path, version",
    "destroyed": "path, version",
    "audit_head": "nexus",
    "quarantine": "path, incarnation, version",
}


def list_columns(file: Path) -> list[tuple[str, str, str]]:
    """Return table, column and type of every value that can be changed."""
    with closing(sqlite3.connect(file)) as database:
        return [
            (table, column, kind)
            for (table,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})")
            if not table.startswith("sqlite_")
        ]


def tamper(file: Path, data: st.DataObject) -> bool:
    """Change one or two values; return whether any was."""
    changed = False
    for _ in range(data.draw(st.integers(1, 2))):
        table, column, kind = data.draw(st.sampled_from(list_columns(file)))
        value = data.draw({"INTEGER": NUMBERS, "BLOB": BLOBS, "TEXT": TEXTS}[kind])
        row = data.draw(st.integers(0, 20))
        key = KEYS.get(table, "rowid")
        count = f"max(1, (SELECT count(*) FROM {table}))"
        where = f"({key}) = (SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 OFFSET {row} % {count})"
        with closing(sqlite3.connect(file)) as database, database:
            try:
                changed |= bool(database.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value,)).rowcount)
            except sqlite3.IntegrityError:  # a constraint of the schema is in the way
                continue
    return changed


def use(folder: Path, cluster: FoundedCluster) -> None:
    """Start a nexus on the changed store, and call it."""
    with started_on(folder, cluster) as core:
        assert send(core, "GetStatus", cluster_pb2.GetStatusRequest())
        bring_back(core, cluster)
        for path in PATHS:
            for version in (0, 1, 2, 3):
                got = send(core, "GetSecret", secrets_pb2.GetSecretRequest(path=path, version=version))
                if got is not None:
                    assert got.fields == {"value": b"v"}, "never another plaintext, never an empty value"
                    assert got.created_at.seconds in TIME_RANGE
            send(core, "ListVersions", secrets_pb2.ListVersionsRequest(path=path))
            fields = {"value": b"v"}
            send(
                core, "PatchSecret", secrets_pb2.PatchSecretRequest(path=path, fields=fields, request_id=os.urandom(16))
            )
            send(core, "PutSecret", put(path))
            limit = secrets_pb2.UpdateSecretMetadataRequest(path=path, max_versions=3, request_id=os.urandom(16))
            send(core, "UpdateSecretMetadata", limit)
            for version in (1, 2):
                back = secrets_pb2.UndeleteSecretRequest(path=path, versions=[version], request_id=os.urandom(16))
                send(core, "UndeleteSecret", back)
            gone = secrets_pb2.DestroySecretRequest(path=path, versions=[2], request_id=os.urandom(16))
            send(core, "DestroySecret", gone)
            send(core, "DeleteSecret", secrets_pb2.DeleteSecretRequest(path=path, request_id=os.urandom(16)))
        listed = send(core, "ListSecrets", secrets_pb2.ListSecretsRequest(include_deleted=True))
        if listed is not None:
            assert all(secret.updated_at.seconds in TIME_RANGE for secret in listed.secrets)
        read_for_the_job(core)
        core.exporter.export()


@budget(2)
@given(data=st.data())
def test_tampered_store(cluster: tuple[Path, FoundedCluster], data: st.DataObject) -> None:
    """Every step on a tampered store ends with an error of ours, or with the true answer."""
    folder, founded = cluster
    with tempfile.TemporaryDirectory() as name:
        copy = Path(shutil.copytree(folder, name, dirs_exist_ok=True))
        if tamper(copy / "nexus.db", data):
            try:
                use(copy, founded)
            except ShardholdError:
                return


def test_the_store_above_is_good(cluster: tuple[Path, FoundedCluster], tmp_path: Path) -> None:
    """Every step goes through on an unchanged store."""
    folder, founded = cluster
    use(Path(shutil.copytree(folder, tmp_path, dirs_exist_ok=True)), founded)
