"""What the keyring job meets in a SQLite database that is damaged, or that somebody else wrote."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nexus.store.rewrapping import VersionKey
from nexus.store.sqlite.reader import SqliteReader
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.store.keyring_contract import CURRENT, fill, list_outdated, make_under

INCARNATION = b"i" * 16


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store with three versions of the secret a under KEK 2, closed."""
    file = tmp_path / "nexus.db"
    with closing(SqliteStore.open(file)) as store:
        fill(store, *(make_under(2, "a", version) for version in (1, 2, 3)))
    return file


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(("b", INCARNATION, 1), id="another path"),
        pytest.param(("a", b"j" * 16, 1), id="another incarnation"),
        pytest.param(("a", INCARNATION, 4), id="another version"),
    ],
)
def test_only_the_version_itself_is_left_out(file: Path, key: tuple[str, bytes, int]) -> None:
    """Else a version that nobody abandoned would lose its KEK."""
    insert = "INSERT INTO quarantine VALUES (?, ?, ?, 2, 'does not open', 1, 'spiffe://example.org/ann')"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(insert, key)
        database.executemany(insert, [("a", INCARNATION, version) for version in (2, 3)])
    with closing(SqliteStore.open(file)) as store, store.read() as reader:
        assert [row.version for row in reader.list_outdated(CURRENT, limit=9)] == [1]
        assert reader.has_rows_under(2)


def test_a_damaged_index_hides_no_row_from_the_scan(file: Path) -> None:
    """The index of KEKs is made to look empty: the work list is, and the scan finds every row."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute(
            "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'quarantine')"
            " WHERE name = 'versions_by_kek'"
        )
    with closing(SqliteStore.open(file)) as store:
        assert list_outdated(store) == []
        with store.read() as reader:
            assert [(row.kek_id, row.version) for row in reader.scan_versions(limit=9)] == [(2, 1), (2, 2), (2, 3)]


def test_the_work_list_reads_nothing_twice(tmp_path: Path) -> None:
    """Each page begins at its first row in the index: a list of many rows takes no longer at its end."""
    with closing(SqliteStore.open(tmp_path / "many.db")) as store:
        fill(store, *(make_under(2, f"p{number:04}") for number in range(2_000)))
        with store.read() as reader:
            assert isinstance(reader, SqliteReader)
            connection = reader.connection
            steps: list[int] = []
            connection.set_progress_handler(lambda: steps.append(1), 10)  # each ten steps of SQLite's machine
            after, costs = None, []
            while page := reader.list_outdated(CURRENT, after=after, limit=100):
                after = (page[-1].kek_id, page[-1].row_id)
                costs.append(len(steps))
                steps.clear()
            connection.set_progress_handler(None, 0)
    assert len(costs) == 20
    assert max(costs) <= 2 * costs[0]


def test_text_that_does_not_decode_hides_no_other_row(file: Path) -> None:
    """In neither list, on no page; it has a place of its own in the order."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE versions SET path = CAST(x'61ff' AS TEXT) WHERE version = 2")
        database.execute(
            "INSERT INTO quarantine SELECT path, incarnation, version, 2, CAST(x'ff' AS TEXT), 1, NULL FROM versions"
        )
    with closing(SqliteStore.open(file)) as store, store.read() as reader:
        assert [row.path for row in reader.scan_versions(limit=9)] == ["a", "a\udcff", "a"]
        found: list[VersionKey] = []
        while page := reader.list_quarantine(after=found[-1] if found else None, limit=1):
            found += [row.key for row in page]
        assert [(key.path, key.version) for key in found] == [("a", 1), ("a", 3), ("a\udcff", 2)]
