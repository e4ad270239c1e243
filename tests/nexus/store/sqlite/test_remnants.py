"""Remnants: what SQLite leaves in pages of rows that it moved is wiped, and the database stays what it was."""

import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from common.errors import StoreUnavailableError
from nexus.store.sqlite.remnants import Remnants
from nexus.store.sqlite.store import SqliteStore
from tests.kit.patience import at_most
from tests.nexus.store.contract import CALLER, make_row, put

PIECE = 12  # bytes; what is shorter is not found, and of no use
SIZES = (20, 100, 300, 1_500, 5_000)  # of values, in pages of 4096 bytes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the store's file is."""
    return tmp_path / "nexus.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteStore]:
    """An empty store."""
    store = SqliteStore.open(file)
    yield store
    store.close()


@dataclass
class History:
    """Random puts, destroys and prunes, and what they destroyed: wrapped DEKs and values, each unlike any other."""

    chance: random.Random
    versions: dict[str, int] = field(default_factory=dict)  # the newest, by path
    kept: dict[tuple[str, int], bytes] = field(default_factory=dict)
    destroyed: list[bytes] = field(default_factory=list)

    def go_on(self, store: SqliteStore, changes: int) -> None:
        """Make *changes*."""
        for _ in range(changes):
            if self.kept and self.chance.random() < 0.4:
                self._destroy(store, *self.chance.choice(sorted(self.kept)))
            else:
                self._put(store, f"p{self.chance.randrange(20)}")

    def _put(self, store: SqliteStore, path: str) -> None:
        version = self.versions[path] = self.versions.get(path, 0) + 1
        wrap, value = self.chance.randbytes(98), self.chance.randbytes(self.chance.choice(SIZES))
        put(store, replace(make_row(path, version), wrapped_dek=wrap, value=value))
        self.kept[path, version] = wrap + value

    def _destroy(self, store: SqliteStore, path: str, version: int) -> None:
        if version < self.versions[path] and self.chance.random() < 0.3:
            store.write(lambda writer: writer.prune(path, below=version + 1))
            gone = [key for key in self.kept if key[0] == path and key[1] <= version]
        else:
            store.write(lambda writer: writer.destroy(path, [version], caller=CALLER, destroyed_at=1))
            gone = [(path, version)]
        self.destroyed += map(self.kept.pop, gone)


def count_found(file: Path, contents: list[bytes]) -> int:
    """Count pieces of *contents* that are in the database or its WAL."""
    stored = b"".join(path.read_bytes() for path in (file, file.with_name("nexus.db-wal")))
    pieces = {stored[at : at + PIECE] for at in range(len(stored) - PIECE)}
    return sum(
        content[at : at + PIECE] in pieces for content in contents for at in range(0, len(content) - PIECE, PIECE)
    )


SEED = 1  # of a history that leaves something if nothing is wiped
ROUND = 120  # changes


def test_nothing_is_left_of_what_was_destroyed_in_pages_that_were_balanced(store: SqliteStore, file: Path) -> None:
    """After each scrub no piece of a destroyed wrap or value is found, nor after later changes; the rest is whole."""
    history = History(random.Random(SEED))
    for _ in range(4):
        history.go_on(store, ROUND)
        assert store.scrub(seconds=at_most(10))
        before = list(history.destroyed)
        assert count_found(file, before) == 0
        history.go_on(store, ROUND)
        assert store._try_scrub(wipes=False)
        assert count_found(file, before) == 0  # no change brought it back
    with store.read() as reader:
        for path, version in history.kept:
            row = reader.load_version(path, version)
            assert row is not None
            assert row.wrapped_dek + row.value == history.kept[path, version]
    store.close()
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_sqlite_alone_leaves_something(store: SqliteStore, file: Path) -> None:
    """Else the test above proves nothing: the same history, of which the WAL alone is emptied."""
    history = History(random.Random(SEED))
    history.go_on(store, 2 * ROUND)
    assert store._try_scrub(wipes=False)
    assert count_found(file, history.destroyed) > 0


def test_a_scrub_that_fails_to_wipe_says_so_and_stays_due(store: SqliteStore) -> None:
    """As where the disk refuses: nobody is told that all is gone."""
    History(random.Random(SEED)).go_on(store, ROUND)
    unreadable = os.open(os.devnull, os.O_WRONLY)
    os.dup2(unreadable, store._remnants._fd)
    os.close(unreadable)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="store failed to scrub: Bad file descriptor"):
            store.scrub(seconds=0)
        assert store.unscrubbed == "store failed to scrub: Bad file descriptor"
        assert store.is_scrub_due


def test_what_is_pruned_while_a_scrub_looks_for_remnants_stays_due(store: SqliteStore) -> None:
    """It may be in pages that the scrub has looked at before, and nobody waits for a scrub of its own."""
    History(random.Random(SEED)).go_on(store, ROUND)
    for version in (1, 2):
        put(store, make_row("late", version))
    assert store._try_empty_wal()
    pages = store._find_remnants()
    assert pages
    store.write(lambda writer: writer.prune("late", below=2))
    assert store._try_empty_wal(pages)
    assert store.is_scrub_due
    assert store.scrub(seconds=0)
    assert not store.is_scrub_due


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_database_is_what_it_was(tmp_path: Path, page_size: int) -> None:
    """Whatever the size of its pages: SQLite finds nothing wrong, and every row."""
    path, chance = tmp_path / "any.db", random.Random(page_size)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA page_size = {page_size}")
        database.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, name BLOB UNIQUE, body BLOB) STRICT")
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("BEGIN")
        for number in range(400):
            row = (chance.randbytes(20), chance.randbytes(chance.choice(SIZES)))
            database.execute("INSERT INTO rows (name, body) VALUES (?, ?)", row)
            if number % 3 == 0:
                database.execute("DELETE FROM rows WHERE id = ?", (chance.randrange(number + 1),))
        database.execute("COMMIT")
        before = database.execute("SELECT * FROM rows ORDER BY id").fetchall()
        with closing(Remnants(path)) as remnants:
            pages = remnants.find()
            assert pages
            remnants.wipe(pages)
            assert remnants.find() == []
        with closing(sqlite3.connect(path)) as again:
            assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert again.execute("SELECT * FROM rows ORDER BY id").fetchall() == before


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(b"\x0d\0\0\x00\x01\x20\x00\0", id="rows that begin beyond the page"),
        pytest.param(b"\x0d\0\0\xff\xff\x0f\x00\0", id="more rows than fit"),
        pytest.param(b"\0\0\0\x0d\x00\x01\x0f\0", id="overflow"),
    ],
)
def test_a_page_that_is_damaged_or_of_another_kind_is_left_as_it_is(tmp_path: Path, page: bytes) -> None:
    """Nothing that SQLite may read is ever written."""
    path = tmp_path / "any.db"
    head = (b"SQLite format 3\0" + (4096).to_bytes(2, "big")).ljust(4096, b"\0")
    content = head + page.ljust(4096, b"x")
    path.write_bytes(content)
    with closing(Remnants(path)) as remnants:
        assert remnants.find() == []
        remnants.wipe([0, 4096])
    assert path.read_bytes() == content


def test_a_file_in_which_page_numbers_look_like_kinds_is_refused(tmp_path: Path) -> None:
    """A page that is none of a tree begins with the number of another one."""
    path = tmp_path / "any.db"
    path.write_bytes(b"SQLite format 3\0" + (512).to_bytes(2, "big"))
    os.truncate(path, 512 * (2 << 24))
    with closing(Remnants(path)) as remnants, pytest.raises(StoreUnavailableError, match="are too many"):
        remnants.find()
