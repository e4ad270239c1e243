"""A scrub: what was deleted or replaced is in no file of the store afterwards."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.errors import StoreFileLostError, StoreUnavailableError
from nexus.store.protocol import Meta, Writer
from nexus.store.rewrapping import Reseal, Rewrap
from nexus.store.sqlite.connection import connect_reader
from nexus.store.sqlite.store import SqliteStore
from tests.kit.patience import at_most, join
from tests.nexus.store.contract import make_row, put

LARGE = 20_000  # bytes, so that a value has overflow pages
EPOCH = 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the store's file is to be."""
    return tmp_path / "nexus.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteStore]:
    """An empty store."""
    store = SqliteStore.open(file)
    yield store
    store.close()


def mark(name: str, size: int = 98) -> bytes:
    """Make content that is found wherever it is left, also in part."""
    return (f"<remnant of {name}>".encode() * size)[:size]


def find_remnants(file: Path, *names: str) -> list[str]:
    """Search every file of the store for what `mark` made: whole pages, free ones too, and the WAL."""
    found = []
    for path in sorted(file.parent.iterdir()):
        content = path.read_bytes()
        found += [f"{name} in {path.name}" for name in names if f"remnant of {name}>".encode() in content]
    return found


def fill(store: SqliteStore) -> None:
    """Write what is deleted and replaced later, between what stays."""
    for name in ("deleted", "rewrapped", "resealed", "kept"):
        for number in range(20):
            row = make_row(f"{name}-{number}")
            size = LARGE if number % 5 == 0 else 200
            wrap, value = mark(f"wrap {name}"), mark(f"value {name}", size)
            put(store, replace(row, kek_id=2, wrapped_dek=wrap + b"%d" % number, value=value))
    store.write(lambda writer: writer.save_meta(edit(writer.load_meta())), counts=False)


def edit(meta: Meta) -> Meta:
    return replace(meta, epoch=EPOCH, kek_id=3)


def replace_and_delete(store: SqliteStore) -> None:
    """Delete a third of the secrets, re-wrap a third, and seal a third anew."""
    with store.read() as reader:
        rows = reader.list_outdated(3, limit=100)

    def change(writer: Writer) -> None:
        for number in range(20):
            writer.delete_secret(f"deleted-{number}")
        rewraps = [Rewrap(row, 3, b"n" * len(row.wrapped_dek)) for row in rows if row.path.startswith("rewrapped")]
        reseals = [Reseal(row, 3, b"e" * 16, b"n" * 98, b"v" * 50) for row in rows if row.path.startswith("resealed")]
        assert writer.rewrap(rewraps, epoch=EPOCH) == writer.reseal(reseals, epoch=EPOCH) == 20

    store.write(change)


GONE = ("wrap deleted", "value deleted", "wrap rewrapped", "wrap resealed", "value resealed")
KEPT = ("value rewrapped", "wrap kept", "value kept")


def test_nothing_is_left_of_what_was_deleted_or_replaced(store: SqliteStore, file: Path) -> None:
    """Neither in the database, its free pages included, nor in the WAL; all that stays is there."""
    fill(store)
    replace_and_delete(store)
    assert len(find_remnants(file, *GONE)) >= len(GONE)  # else the search proves nothing
    assert store.scrub(seconds=at_most(10)) is True
    assert find_remnants(file, *GONE) == []
    assert {line.split(" in ")[0] for line in find_remnants(file, *KEPT)} == set(KEPT)
    assert file.with_name("nexus.db-wal").stat().st_size == 0
    with store.read() as reader:
        assert reader.count_by_kek() == {2: 20, 3: 40}


def test_a_read_that_stays_holds_the_scrub_up_and_no_change(store: SqliteStore, file: Path) -> None:
    """It says that it did not succeed; changes go on, and it succeeds once the read is over."""
    fill(store)
    with store.read() as reader:
        reader.load_meta()
        replace_and_delete(store)
        assert store.scrub(seconds=0) is False
        assert find_remnants(file, *GONE) != []
        put(store, replace(make_row("meanwhile"), kek_id=3))
        assert reader.load_secret("deleted-1") is not None
    assert store.scrub(seconds=at_most(10)) is True
    assert find_remnants(file, *GONE) == []


def test_a_scrub_waits_for_reads_that_end(store: SqliteStore, file: Path) -> None:
    """While others read and write it is tried again until it succeeds."""
    fill(store)
    is_reading, may_end, done = threading.Event(), threading.Event(), threading.Event()
    results: list[bool] = []

    def read() -> None:
        with store.read() as reader:
            reader.load_meta()
            is_reading.set()
            may_end.wait()

    def scrub() -> None:
        results.append(store.scrub(seconds=at_most(60)))
        done.set()

    def work() -> None:
        while not done.is_set():
            with store.read() as reader:
                number = reader.load_meta().revision
            put(store, replace(make_row(f"busy-{number}"), kek_id=3))

    running = [threading.Thread(target=target) for target in (read, work, scrub)]
    running[0].start()
    is_reading.wait()
    try:
        replace_and_delete(store)
        for thread in running[1:]:
            thread.start()
        for number in range(30):  # the scrub is tried meanwhile, and does not succeed
            put(store, replace(make_row(f"other-{number}"), kek_id=3))
        assert not done.is_set()
    finally:
        may_end.set()
    for thread in running:
        join(thread, 60)
    assert results == [True]
    assert find_remnants(file, *GONE) == []


def test_an_open_scrubs_what_a_process_did_not_come_to(file: Path, tmp_path: Path) -> None:
    """As after a kill between a change and its scrub: the next start leaves nothing of it."""
    killed = tmp_path / "killed"
    killed.mkdir()
    with closing(SqliteStore.open(file)) as store:
        fill(store)
        replace_and_delete(store)
        for name in ("nexus.db", "nexus.db-wal"):
            (killed / name).write_bytes(file.with_name(name).read_bytes())
    assert find_remnants(killed / "nexus.db", *GONE) != []
    with capture_logs() as logs, closing(SqliteStore.open(killed / "nexus.db")):
        assert find_remnants(killed / "nexus.db", *GONE) == []
    assert [entry["event"] for entry in logs] == ["store is in another file than before, and read through"]


def test_an_open_that_cannot_scrub_says_so_and_serves(file: Path) -> None:
    """Another program reads the database."""
    with closing(SqliteStore.open(file)) as store:
        put(store, make_row("a"))
        with closing(connect_reader(file)) as foreign:
            foreign.execute("BEGIN")
            foreign.execute("SELECT count(*) FROM versions").fetchone()
            put(store, make_row("b"))
            store.close()
            with capture_logs() as logs, closing(SqliteStore.open(file)) as again, again.read() as reader:
                assert reader.load_version("b", 0) is not None
    assert [(line["event"], line["why"]) for line in logs] == [
        ("store not scrubbed: what was deleted may be in its files", "somebody reads the database")
    ]


def test_a_scrub_of_a_lost_or_closed_store_is_refused(store: SqliteStore, file: Path) -> None:
    """It never says that it succeeded on another file than the store at its place."""
    put(store, make_row("a"))
    file.rename(file.with_name("moved.db"))
    for _ in range(2):
        with pytest.raises(StoreFileLostError, match=r"nexus\.db is gone"):
            store.scrub(seconds=0)
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.scrub(seconds=0)
