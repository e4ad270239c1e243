"""Versions that were destroyed or pruned, in a SQLite store that somebody damaged."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import CorruptRowError
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.store.contract import CALLER, make_row, put


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param("DELETE FROM destroyed", "lost a version of a secret", id="what was destroyed forgotten"),
        pytest.param("UPDATE destroyed SET version = 7", "lost a version of a secret", id="another one destroyed"),
        pytest.param(
            "UPDATE destroyed SET incarnation = zeroblob(16)", "lost a version of a secret", id="of another incarnation"
        ),
        pytest.param("UPDATE secrets SET first_version = 1", "lost a version of a secret", id="pruned ones missed"),
        pytest.param("UPDATE secrets SET first_version = 4", "lost a version of a secret", id="kept ones pruned"),
        pytest.param("UPDATE secrets SET current_version = 3", "lost a version of a secret", id="newest forgotten"),
        pytest.param("UPDATE secrets SET first_version = -1", "nothing comes to by counting", id="below zero"),
        pytest.param("DELETE FROM versions", "lost a version of a secret", id="all that is kept lost"),
    ],
)
def test_only_what_was_destroyed_passes_as_destroyed(tmp_path: Path, damage: str, says: str) -> None:
    """Of versions 1 to 4, where 1 is pruned and 4, the newest, destroyed; by each way to look."""
    file = tmp_path / "nexus.db"
    with closing(SqliteStore.open(file)) as store:
        for version in range(1, 5):
            put(store, make_row("a", version))
        store.write(lambda writer: writer.prune("a", below=2))
        store.write(lambda writer: writer.destroy("a", [4], caller=CALLER, destroyed_at=9))
        with store.read() as reader:
            assert [row is None for row in map(reader.load_version, "a" * 5, range(5))] == [
                True,
                True,
                False,
                False,
                True,
            ]
    with closing(sqlite3.connect(file)) as database, database:
        assert database.execute(damage).rowcount
    with closing(SqliteStore.open(file)) as store, store.read() as reader:
        with pytest.raises(CorruptRowError, match=says):
            list(map(reader.load_version, "a" * 5, range(5)))
        with pytest.raises(CorruptRowError, match=says):
            reader.load_history("a", limit=9)
