"""A store that is made of the rows of a backup: whole, in its place by one rename, or not there at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BackupError, StoreUnavailableError, WrongStateError
from common.forms.backup.tables import TABLES, Row
from nexus.store.protocol import Phase
from nexus.store.sqlite.export import load_rows
from nexus.store.sqlite.restored import RestoredStore, store_place
from nexus.store.sqlite.snapshot import open_copy
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.store.contract import make_row, put

Rows = dict[str, list[Row]]


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
    with store_place(path, replaces=replaces) as (place, _), place.begin() as store:
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
    with pytest.raises(WrongStateError, match="there is a store at"), restoring(path, rows):
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
    """A version without its secret; one that is there twice."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    with (
        pytest.raises(BackupError, match="belongs to a secret that is not in it"),
        restoring(path, rows | {"secrets": []}),
    ):
        pass
    twice = rows | {"versions": rows["versions"][:1] * 2}
    with pytest.raises(BackupError, match="a row of versions fits no store"), restoring(path, twice):
        pass
    assert not path.exists()


def test_a_full_disk_leaves_the_old_store(tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the driver says of it."""
    path = tmp_path / "new" / "nexus.db"
    path.parent.mkdir()
    with pytest.raises(StoreUnavailableError, match="cannot be replaced"), restoring(path, rows):
        monkeypatch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert [one.name for one in path.parent.iterdir()] == ["nexus.db.lock"]
