"""The copy that a migration leaves, and the way back to the program before."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.errors import StoreUnavailableError
from nexus.store.sqlite.connection import APPLICATION_ID
from nexus.store.sqlite.migrations import MIGRATIONS, NEWEST
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.store.contract import load_meta, make_row, put

SECRET = ("a", bytes(16), 1, 1, 0)
VERSION = (1, "a", 1, bytes(16), 1, bytes(16), b"wrapped", 0, 0, 7, "spiffe://example.org/app", None, b"ciphertext")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store as the first program left it: by the statements of migration 1, with a secret, the newest in its WAL."""
    file = tmp_path / "nexus.db"
    with old_program(file) as old:
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute("PRAGMA journal_mode = WAL")
        for statement in MIGRATIONS[0]:
            old.execute(statement)
        old.execute("PRAGMA user_version = 1")
        old.execute("UPDATE meta SET phase = 'initialised', cluster_id = ?, timeline = 1, revision = 7", (bytes(16),))
        old.execute("INSERT INTO secrets VALUES (?, ?, ?, ?, ?)", SECRET)
        old.execute(f"INSERT INTO versions VALUES ({', '.join('?' * len(VERSION))})", VERSION)
        for suffix in ("", "-wal"):
            shutil.copy(f"{file}{suffix}", f"{file}{suffix}.kept")
    for suffix in ("", "-wal"):
        Path(f"{file}{suffix}.kept").rename(f"{file}{suffix}")
    return file


@contextmanager
def old_program(file: Path) -> Iterator[sqlite3.Connection]:
    """Connect as the program before did."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        yield connection


def list_copies(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir() if ".schema-" in path.name)


def migrate(file: Path) -> None:
    SqliteStore.open(file).close()


def test_a_migration_leaves_a_copy_of_the_store_as_it_was(file: Path) -> None:
    """The copy has all that was committed, the schema before, and mode 0600; the log names it."""
    with capture_logs() as logs:
        migrate(file)
    copy = Path(f"{file}.schema-1")
    assert [(line["event"], line["copy"]) for line in logs] == [("store copied before its schema changes", str(copy))]
    assert list_copies(file) == [copy.name]
    assert copy.stat().st_mode & 0o777 == 0o600
    with old_program(copy) as old, closing(sqlite3.connect(":memory:")) as wanted:
        for statement in MIGRATIONS[0]:
            wanted.execute(statement)
        schema = "SELECT name, type, tbl_name, sql FROM sqlite_schema ORDER BY name"
        assert old.execute(schema).fetchall() == wanted.execute(schema).fetchall()
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
        assert old.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert old.execute("SELECT revision FROM meta").fetchone() == (7,)
        assert old.execute("SELECT * FROM versions").fetchall() == [VERSION]


def test_the_documented_way_back(file: Path) -> None:
    """The copy in the place of the store is what the program before left, and can be upgraded once more."""
    migrate(file)
    with closing(SqliteStore.open(file)) as store:
        assert load_meta(store).revision == 7
        put(store, make_row("b"))
    file.unlink()
    Path(f"{file}.schema-1").rename(file)
    with old_program(file) as old:
        assert old.execute("SELECT count(*) FROM versions").fetchone() == (1,)
        old.execute("UPDATE meta SET revision = 8")
    with closing(SqliteStore.open(file)) as store:
        assert load_meta(store).revision == 8
    assert list_copies(file) == ["nexus.db.schema-1"]


def test_a_copy_is_never_overwritten(file: Path) -> None:
    """A store that was put back, has gone on and is migrated again leaves a second copy."""
    migrate(file)
    first = Path(f"{file}.schema-1").read_bytes()
    shutil.copy(f"{file}.schema-1", file)
    with old_program(file) as old:
        old.execute("UPDATE meta SET revision = 8")
    migrate(file)
    assert list_copies(file) == ["nexus.db.schema-1", "nexus.db.schema-1.2"]
    assert Path(f"{file}.schema-1").read_bytes() == first
    with old_program(Path(f"{file}.schema-1.2")) as second:
        assert second.execute("SELECT revision FROM meta").fetchone() == (8,)


def test_a_store_that_has_not_changed_leaves_one_copy(file: Path) -> None:
    """A migration that fails at each start does not fill the disk."""
    migrate(file)
    shutil.copy(f"{file}.schema-1", file)
    migrate(file)
    assert list_copies(file) == ["nexus.db.schema-1"]


def test_a_store_that_differs_in_one_secret_is_copied_too(file: Path) -> None:
    """A copy holds every row: an equal meta row does not make it the copy of this store."""
    migrate(file)
    shutil.copy(f"{file}.schema-1", file)
    with old_program(file) as old:
        old.execute("UPDATE versions SET value = ?", (b"another",))
    migrate(file)
    with old_program(Path(f"{file}.schema-1.2")) as second:
        assert second.execute("SELECT value FROM versions").fetchone() == (b"another",)


def test_a_migration_that_fails_at_each_start_leaves_one_copy(file: Path) -> None:
    """Also when the newest change is in the WAL."""
    with old_program(file) as old:
        old.execute("CREATE TABLE audit_head (x)")  # in the way of migration 2
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            SqliteStore.open(file)
    assert list_copies(file) == ["nexus.db.schema-1"]


def test_without_a_copy_nothing_is_migrated(file: Path) -> None:
    """A store that cannot be copied is refused, and stays one of the program before."""
    Path(f"{file}.schema-1.new").mkdir()
    with pytest.raises(StoreUnavailableError, match=r"cannot be copied to .*nexus\.db\.schema-1 before its schema"):
        SqliteStore.open(file)
    with old_program(file) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_store_with_nothing_in_it_leaves_no_copy(file: Path) -> None:
    """Neither a new store nor one that nobody has initialised is worth going back to."""
    with old_program(file) as old:
        old.execute("UPDATE meta SET phase = 'empty'")
    migrate(file)
    migrate(file.with_name("new.db"))
    assert list_copies(file) == []
    with old_program(file) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (NEWEST,)
