"""Migrations of the SQLite store: what an older program wrote is there for the newer one."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nexus.store.protocol import MadeByRequest, RequestRow
from nexus.store.sqlite.connection import connect_writer, prepare_file
from nexus.store.sqlite.migrations import MIGRATIONS
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.store.contract import CALLER, INCARNATION, load_meta, make_row, put, request

# As the program of schema 1 wrote them.
INSERT_VERSION = """
    INSERT INTO versions (path, incarnation, version, kek_id, dek_id, wrapped_dek, value, created_at, deleted,
        revision, caller, request_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
INSERT_DELETION = "INSERT INTO deletions (path, version, revision, caller, request_id) VALUES (?, ?, ?, ?, ?)"


class OldStore:
    """A store of schema 1; each method is a change."""

    def __init__(self, file: Path) -> None:
        prepare_file(file)
        self._connection = connect_writer(file)
        self._execute = self._connection.execute
        self._revision = 0
        for statement in MIGRATIONS[0]:
            self._execute(statement)
        self._execute("PRAGMA user_version = 1")

    def put(self, path: str, version: int, request_id: bytes | None) -> None:
        row = make_row(path, version, created_at=version * 1_000)
        if version == 1:
            self._execute("INSERT INTO secrets VALUES (?, ?, 1, 1, ?)", (path, row.incarnation, row.created_at))
        else:
            self._execute(
                "UPDATE secrets SET current_version = current_version + 1, live_versions = live_versions + 1"
                " WHERE path = ?",
                (path,),
            )
        keys = (row.path, row.incarnation, row.version, row.kek_id, row.dek_id)
        body = (row.wrapped_dek, row.value, row.created_at, 0)
        self._execute(INSERT_VERSION, (*keys, *body, self._count(), CALLER, request_id))

    def delete(self, path: str, versions: list[int], request_id: bytes | None) -> None:
        revision = self._count()
        for version in versions:
            self._execute("UPDATE versions SET deleted = 1 WHERE path = ? AND version = ?", (path, version))
            self._execute(INSERT_DELETION, (path, version, revision, CALLER, request_id))
        self._execute("UPDATE secrets SET live_versions = live_versions - ? WHERE path = ?", (len(versions), path))

    def close(self) -> None:
        self._connection.close()

    def _count(self) -> int:
        self._revision += 1
        self._execute("UPDATE meta SET revision = ?", (self._revision,))
        return self._revision


@pytest.fixture
def old(tmp_path: Path) -> Iterator[OldStore]:
    """An empty store of schema 1."""
    old = OldStore(tmp_path / "nexus.db")
    yield old
    old.close()


def test_requests_of_schema_1_are_found_again(old: OldStore, tmp_path: Path) -> None:
    """What schema 1 kept with versions and deletions has moved over, without an HMAC, in the order of its making."""
    for version in range(1, 13):
        old.put("a", version, request(version))
    old.put("b", 1, None)
    old.delete("a", [3, 12, 1], request(20))
    old.delete("a", [2], None)
    old.put("c", 1, request(21))
    old.close()
    began = int(time.time()) * 1_000_000
    with closing(SqliteStore.open(tmp_path / "nexus.db")) as store:
        assert load_meta(store).revision == 16
        with store.read() as reader:
            assert reader.find_request(CALLER, request(2)) == RequestRow(
                request(2), CALLER, "PutSecret", "a", 0, b"", MadeByRequest(INCARNATION, (2,), 2), 2_000
            )
            deleted = reader.find_request(CALLER, request(20))
            assert deleted is not None
            assert (deleted.rpc, deleted.path, deleted.mac) == ("DeleteSecret", "a", b"")
            assert deleted.made == MadeByRequest(INCARNATION, (1, 3, 12), 14)
            assert began <= deleted.made_at <= time.time() * 1_000_000  # schema 1 does not say when
            assert reader.load_live_versions("a") == [4, 5, 6, 7, 8, 9, 10, 11]
    with closing(sqlite3.connect(tmp_path / "nexus.db")) as database:
        moved = database.execute("SELECT revision FROM requests ORDER BY id").fetchall()
        assert moved == [(revision,) for revision in (*range(1, 13), 14, 16)]


def test_a_store_of_schema_1_takes_new_requests(old: OldStore, tmp_path: Path) -> None:
    """Puts go on under new ids, and an id that schema 1 has seen makes nothing again."""
    old.put("a", 1, request(1))
    old.close()
    with closing(SqliteStore.open(tmp_path / "nexus.db")) as store:
        put(store, make_row("a", 2), request_id=request(2))
        with store.read() as reader:
            assert reader.find_request(CALLER, request(1)) is not None
            assert reader.find_request(CALLER, request(2)) is not None


def test_an_id_that_was_edited_in_twice_does_not_stop_the_upgrade(old: OldStore, tmp_path: Path) -> None:
    """Of two changes under one id, which schema 1 never made, the first is the one that is found."""
    old.put("a", 1, request(1))
    old.delete("a", [1], request(1))
    old.close()
    with closing(SqliteStore.open(tmp_path / "nexus.db")) as store, store.read() as reader:
        found = reader.find_request(CALLER, request(1))
        assert found is not None
        assert found.rpc == "PutSecret"
