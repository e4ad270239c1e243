"""A store that is made of the rows of a backup: whole, in its place by one rename, or not there at all."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BackupError, CorruptRowError, StoreUnavailableError, WrongStateError
from common.forms.backup.tables import TABLES, TABLES_BY_VERSION, Row
from nexus.store.protocol import Phase
from nexus.store.sqlite.export import load_rows
from nexus.store.sqlite.restored import RestoredStore, store_place
from nexus.store.sqlite.snapshot import open_copy
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.store.contract import make_row, put

Rows = dict[str, list[Row]]

OLDER_STORE = Path(__file__).parents[3] / "cluster" / "older_stores" / "schema-3" / "nexus.db"


@pytest.fixture
def rows(store: SqliteStore) -> Rows:
    """The rows of a store with two secrets, one of which has a deleted version."""
    for version in (1, 2, 3):
        put(store, make_row("app/db", version))
    put(store, make_row("app/other"))
    store.write(lambda writer: writer.mark_deleted("app/db", [2], caller="spiffe://x/y"))
    with store.copy() as copy, open_copy(copy.path) as reader:
        return {table.name: list(load_rows(reader, table)) for table in TABLES}


@contextmanager
def restoring(path: Path, rows: Rows, *, replaces: bool = False) -> Iterator[RestoredStore]:
    """Restore *rows* to *path*, when the block ends well."""
    with store_place(path, replaces=replaces) as place, place.begin() as store:
        for table in TABLES:
            for row in rows[table.name]:
                store.take(table, row)
        yield store


def read_all(path: Path) -> Rows:
    """Read every table of the store at *path*."""
    store = SqliteStore.open(path)
    try:
        with store.copy() as copy, open_copy(copy.path) as reader:
            return {table.name: list(load_rows(reader, table)) for table in TABLES}
    finally:
        store.close()


def test_what_comes_back_is_what_was_backed_up(tmp_path: Path, rows: Rows) -> None:
    """Every row of every table, what is counted from them, and that it was restored."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    with restoring(path, rows):
        pass
    assert read_all(path) == rows
    assert path.stat().st_mode & 0o777 == 0o600
    store = SqliteStore.open(path)
    with store.read() as reader:
        assert reader.load_meta().is_restored
        assert reader.load_live_versions("app/db") == [1, 3]
        assert [row.path for row in reader.list_secrets("", after="", limit=9)] == ["app/db", "app/other"]
    store.write(lambda writer: writer.mark_deleted("app/db", [1, 3], caller="spiffe://x/y"))
    with store.read() as reader:
        assert [row.path for row in reader.list_secrets("", after="", limit=9)] == ["app/other"]
    store.close()
    assert sorted(one.name for one in path.parent.iterdir()) == ["nexus.db", "nexus.db.lock"]


def test_nothing_is_there_before_the_backup_is_known_to_be_whole(tmp_path: Path, rows: Rows) -> None:
    """What failed in the middle leaves neither a store nor what was begun of it."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    seen = []

    def fail() -> None:
        seen.append(path.exists())
        raise BackupError("backup is cut off")

    with pytest.raises(BackupError, match="cut off"), restoring(path, rows):
        fail()
    assert seen == [False]
    assert [one.name for one in path.parent.iterdir()] == ["nexus.db.lock"]


def test_what_a_killed_restore_left_is_overwritten(tmp_path: Path, rows: Rows) -> None:
    """Half a store beside the place of one is nothing."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    path.with_name("nexus.db.restoring").write_bytes(b"half")
    path.with_name("nexus.db.restoring-journal").write_bytes(b"half")
    with restoring(path, rows):
        pass
    assert read_all(path) == rows


def test_a_store_that_is_there_stays_unless_it_is_to_be_replaced(
    tmp_path: Path, store: SqliteStore, rows: Rows
) -> None:
    """It is kept beside the new one, with what only its WAL had; and no nexus may run on it."""
    path = store._path
    with pytest.raises(StoreUnavailableError, match="another nexus has this store"), restoring(path, rows):
        pass
    put(store, make_row("app/late"))
    initialise(store)
    store.close()
    with pytest.raises(WrongStateError, match="there is a store at .*: --replace keeps"), restoring(path, rows):
        pass
    before = read_all(path)
    with restoring(path, rows, replaces=True):
        pass
    assert read_all(path) == rows
    assert read_all(path.with_name("nexus.db.replaced")) == before
    with restoring(path, rows, replaces=True):
        pass
    assert path.with_name("nexus.db.replaced.2").exists()


def initialise(store: SqliteStore) -> None:
    """Make it one that has a cluster."""
    store.write(
        lambda writer: writer.save_meta(replace(writer.load_meta(), phase=Phase.INITIALISED, cluster_id=b"c" * 16))
    )


def test_rows_that_fit_no_store_are_refused(tmp_path: Path, rows: Rows) -> None:
    """A version that is there twice."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    twice = rows | {"versions": rows["versions"][:1] * 2}
    with pytest.raises(BackupError, match="a row of versions fits no store"), restoring(path, twice):
        pass
    assert not path.exists()


def test_damage_of_the_store_that_was_backed_up_stops_no_restore(tmp_path: Path, rows: Rows) -> None:
    """A version whose secret was lost is what the backup has, and everything else comes back."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    left = rows | {"secrets": [row for row in rows["secrets"] if row[0] != "app/other"]}
    with restoring(path, left):
        pass
    assert read_all(path) == left


def garble(database: Path) -> None:
    """Make it nothing that SQLite reads, with a WAL."""
    database.write_bytes(b"x" * 8192)
    database.with_name("nexus.db-wal").write_bytes(b"w" * 5000)


def cut(database: Path) -> None:
    """Leave its first two pages."""
    os.truncate(database, 8192)


def empty_pages(database: Path) -> None:
    """Leave its first page."""
    size = database.stat().st_size
    os.truncate(database, 4096)
    os.truncate(database, size)


def lose_database(database: Path) -> None:
    """Leave its WAL alone."""
    database.rename(database.with_name("nexus.db-wal"))


def make_foreign(database: Path) -> None:
    """Put a database of another program there."""
    database.unlink()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE other (id)")


@pytest.mark.parametrize("damage", [garble, cut, empty_pages, lose_database, make_foreign])
def test_a_damaged_store_is_replaced_and_kept_as_it_is(
    tmp_path: Path, store: SqliteStore, rows: Rows, damage: Callable[[Path], None]
) -> None:
    """It is the reason to restore; only on somebody's word, and with its WAL."""
    initialise(store)
    store.close()
    path = store._path
    damage(path)
    wal = path.with_name("nexus.db-wal")
    before = {file.suffix: file.read_bytes() for file in (path, wal) if file.exists()}
    with pytest.raises(CorruptRowError), restoring(path, rows):
        pass
    assert {file.suffix: file.read_bytes() for file in (path, wal) if file.exists()} == before
    with restoring(path, rows, replaces=True):
        pass
    assert read_all(path) == rows
    kept = [path.with_name(f"nexus.db.replaced{suffix}") for suffix in ("", "-wal")]
    assert [file.read_bytes() for file in kept if file.exists()] == list(before.values())


def test_a_store_of_an_older_program_is_replaced(tmp_path: Path, rows: Rows) -> None:
    """Whoever goes back to a backup need not upgrade first what they replace."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    shutil.copy(OLDER_STORE, path)
    before = path.read_bytes()
    with pytest.raises(WrongStateError, match="there is a store at"), restoring(path, rows):
        pass
    with restoring(path, rows, replaces=True):
        pass
    assert read_all(path) == rows
    assert path.with_name("nexus.db.replaced").stat().st_size == len(before)


def test_a_backup_of_an_older_program_is_restored(tmp_path: Path, rows: Rows) -> None:
    """By the tables of its version; what later columns hold is what a migration puts there."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    with store_place(path, replaces=False) as place, place.begin() as store:
        for table in TABLES_BY_VERSION[1]:
            for row in rows[table.name]:
                store.take(table, row[: len(table.columns)])
    assert read_all(path) == rows


def test_a_full_disk_leaves_the_old_store(tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the driver says of it."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    with pytest.raises(StoreUnavailableError, match="cannot be replaced"), restoring(path, rows):
        monkeypatch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert [one.name for one in path.parent.iterdir()] == ["nexus.db.lock"]
