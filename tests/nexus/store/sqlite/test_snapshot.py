"""The copy that a backup is made from: one committed state, of which nothing stays."""

import contextlib
import sqlite3
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from common.errors import StoreFileLostError, StoreUnavailableError
from common.forms.backup.rows import encode_row
from common.forms.backup.tables import TABLES
from nexus.store.protocol import AuditHead, ControlRow, Writer
from nexus.store.sqlite.export import load_rows
from nexus.store.sqlite.snapshot import Copier, open_copy
from nexus.store.sqlite.store import SqliteStore
from tests.kit.patience import join, patiently
from tests.nexus.store.contract import CALLER, make_row, put, request

HELD_AT = 400  # of some 2,000 steps that SQLite takes: its state is fixed, and rows are still to come


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the store's file is to be."""
    return tmp_path / "nexus.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteStore]:
    """A store that holds a row of each table."""
    store = SqliteStore.open(file)
    for path in ("b", "a"):
        put(store, make_row(path), request_id=request(ord(path)))
    put(store, make_row("a", 2))

    def change(writer: Writer) -> None:
        writer.save_meta(replace(writer.load_meta(), control_revision=1))
        writer.save_control(ControlRow("canary", "3", b"{}", b"d" * 32))
        writer.mark_deleted("a", [1], caller=CALLER, updated_at=2_000)
        (row,) = [one for one in writer.scan_versions(limit=10) if one.path == "b"]
        writer.quarantine(row, reason="does not open", found_at=3_000)
        writer.save_audit_head(AuditHead("n1", 1, 7, b"h" * 32, 3, b"m" * 32))

    store.write(change)
    yield store
    store.close()


def list_copies(file: Path) -> list[str]:
    """List what is there beside the store."""
    return sorted(path.name for path in file.parent.iterdir() if ".copy" in path.name)


def test_every_row_is_in_the_copy(store: SqliteStore) -> None:
    """In the order of the stream, as its columns hold them; the outbox is not asked for."""
    with store.copy() as copy, open_copy(copy.path) as reader:
        rows = {table.name: list(load_rows(reader, table)) for table in TABLES}
        assert all(encode_row(table, row) for table in TABLES for row in rows[table.name])
        assert copy.meta == reader.load_meta()
    assert rows["meta"][0][4] == copy.meta.revision == 4
    assert rows["control"] == [("canary", "3", b"{}", b"d" * 32)]
    assert rows["secrets"] == [("a", b"i" * 16, 2, 2_000, 1, 0), ("b", b"i" * 16, 1, 1_000, 1, 0)]
    assert [row[:2] + row[7:] for row in rows["versions"]] == [
        ("a", 1, 1, 2, CALLER, b"value a:1"),
        ("a", 2, 0, 3, CALLER, b"value a:2"),
        ("b", 1, 0, 1, CALLER, b"value b:1"),
    ]
    assert rows["deletions"] == [("a", 1, 4, CALLER)]
    assert [row[0] for row in rows["requests"]] == [request(ord("b")), request(ord("a"))]
    assert rows["quarantine"] == [("b", b"i" * 16, 1, 3, "does not open", 3_000, None)]
    assert rows["audit_head"] == [("n1", 1, 7, b"h" * 32, 3, b"m" * 32)]


def test_only_its_owner_reads_the_copy_and_it_does_not_stay(store: SqliteStore, file: Path) -> None:
    """Mode 0600 from the start; it goes with the block, also when that fails."""
    with contextlib.suppress(KeyError), store.copy() as copy:
        assert stat.S_IMODE(copy.path.stat().st_mode) == 0o600
        assert list_copies(file) == ["nexus.db.copy"]
        raise KeyError
    assert list_copies(file) == []


def test_what_a_killed_process_left_is_removed_at_the_next_start(store: SqliteStore, file: Path) -> None:
    """The copy, and what SQLite had beside it."""
    store.close()
    for suffix in ("", "-journal"):
        file.with_name(f"nexus.db.copy{suffix}").write_bytes(b"left")
    SqliteStore.open(file).close()
    assert list_copies(file) == []


def test_changes_go_on_while_there_is_a_copy(store: SqliteStore) -> None:
    """It shows the state that it was made in, and neither changes nor a scrub wait for it."""
    with store.copy() as copy:
        put(store, make_row("c"))
        assert store.scrub(seconds=0)
        with open_copy(copy.path) as reader:
            assert reader.load_secret("c") is None


def test_what_was_deleted_before_is_not_in_the_copy(store: SqliteStore) -> None:
    """Not even in free pages."""
    store.write(lambda writer: writer.delete_secret("b"))
    with store.copy() as copy:
        content = copy.path.read_bytes()
        assert b"value a:2" in content
        assert b"value b:1" not in content


def test_there_is_one_copy_at_a_time(store: SqliteStore) -> None:
    """The second one is refused, and the first stays."""
    with store.copy() as copy:
        with pytest.raises(StoreUnavailableError, match="copied already"), store.copy():
            pass
        assert copy.path.exists()
    with store.copy():
        pass


class HeldCopier(Copier):
    """Its first copying goes on only once it was interrupted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.has_begun = threading.Event()
        self._steps = 0
        self.is_interrupted = threading.Event()

    def interrupt(self) -> None:
        """Interrupt the copying as it should be, and let it go on."""
        if self._held is not None:
            self._held.interrupt()
        self.is_interrupted.set()

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        if not self.has_begun.is_set():
            self._held = connection
            self._connection = cast(sqlite3.Connection, self)
            connection.set_progress_handler(self._hold, 1)
        return connection

    def _hold(self) -> int:
        self._steps += 1
        if self._steps < HELD_AT:
            return 0
        self.has_begun.set()
        patiently(self.is_interrupted.wait, 5)
        return 0


def test_opening_the_store_again_lets_the_copying_begin_anew(store: SqliteStore, file: Path) -> None:
    """It is interrupted, waits, and then copies the state of then."""
    copier, found = HeldCopier(file), []

    def copy() -> None:
        with copier.copy() as made, open_copy(made.path) as reader:
            found.append(reader.load_secret("after"))

    thread = threading.Thread(target=copy)
    thread.start()
    assert patiently(copier.has_begun.wait, 5)
    assert copier.pause(5)
    assert copier.is_interrupted.is_set()
    put(store, make_row("after"))
    copier.resume()
    join(thread, 5)
    assert found[0] is not None


def test_a_scrub_waits_for_the_copying(store: SqliteStore, file: Path) -> None:
    """What was deleted after it began is in the copy, and so not yet gone; changes go on."""
    copier, found = HeldCopier(file), []

    def copy() -> None:
        with copier.copy() as made, open_copy(made.path) as reader:
            found.append(reader.load_secret("b"))

    thread = threading.Thread(target=copy)
    thread.start()
    assert patiently(copier.has_begun.wait, 5)
    store.write(lambda writer: writer.delete_secret("b"))
    assert not store.scrub(seconds=0)
    copier.is_interrupted.set()
    join(thread, 5)
    assert found[0] is not None
    assert store.scrub(seconds=0)


def test_a_store_that_is_opened_again_can_be_copied(store: SqliteStore) -> None:
    """As after a commit that failed."""
    with store._writing:
        store._reopen()
    with store.copy() as copy:
        assert copy.path.exists()


def test_a_store_whose_files_are_gone_is_not_copied(store: SqliteStore, file: Path) -> None:
    """What is at its place may be another store."""
    file.with_name("nexus.db.lock").unlink()
    with pytest.raises(StoreFileLostError), store.copy():
        pass
    assert list_copies(file) == []


def test_a_closed_store_is_not_copied(store: SqliteStore, file: Path) -> None:
    """Nor is anything left beside it."""
    store.close()
    with pytest.raises(StoreUnavailableError, match="store is closed"), store.copy():
        pass
    assert list_copies(file) == []


def test_a_copy_leaves_room_on_the_disk(store: SqliteStore, file: Path) -> None:
    """Else changes of others would be refused while there is a copy."""
    copier = Copier(file, find_free=lambda folder: 1_000)
    with pytest.raises(StoreUnavailableError, match="has 1000 bytes left, want"), copier.copy():
        pass
    assert list_copies(file) == []


def test_a_full_disk_leaves_no_copy(store: SqliteStore, file: Path) -> None:
    """The message names what SQLite found, and the store goes on."""
    store._copier._copy = Path("/dev/full/copy")
    with pytest.raises(StoreUnavailableError, match="cannot be copied"), store.copy():
        pass
    put(store, make_row("c"))


def test_a_row_that_does_not_decode_is_not_copied_in_silence(store: SqliteStore, file: Path) -> None:
    """A text that is not UTF-8 is named as damage."""
    store.close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE secrets SET path = CAST(x'ff' AS TEXT) WHERE path = 'b'")
    connection.close()
    store = SqliteStore.open(file)
    with pytest.raises(Exception, match="does not decode"), store.copy() as copy, open_copy(copy.path) as reader:
        list(load_rows(reader, TABLES[2]))
    store.close()
