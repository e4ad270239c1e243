"""The exporter: each change's entry is in the files once, whatever dies in between, and no other is."""

import hashlib
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import AuditUnavailableError, StoreUnavailableError
from common.forms.audit.entry import Entry, decode_entry
from common.forms.audit.line import ChangeLine, EntryLine
from common.forms.audit.verify import verify
from nexus.access.audit.alarm import SAY_EVERY_S
from nexus.access.audit.exporter import HEAD_EVERY_S, Exporter
from nexus.access.audit.log import AuditLog
from nexus.keys.outbox import is_authentic_head
from nexus.store.protocol import AuditHead, Store
from nexus.store.sqlite.store import SqliteStore
from tests.kit.manual_clock import ManualClock
from tests.kit.seed import make_random
from tests.nexus.access.audit.keyed import (
    NEXUS,
    FixedKey,
    append,
    change,
    forge,
    load_outbox,
    make_entry,
    write_rows,
)
from tests.nexus.access.audit.test_log import ROOT, WRITING, load_lines
from tests.nexus.failing_store import FailingStore

WaitUntil = Callable[..., None]

FLOOD = """
    INSERT INTO audit_outbox (nexus, revision, position, entry, mac)
    WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 699)
    SELECT ?, ?, n, ?, ? FROM numbers"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """A store of its own."""
    store = SqliteStore.open(tmp_path / "nexus.db")
    yield store
    store.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    """An audit of its own."""
    log = AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)
    yield log
    log.close()


@pytest.fixture
def key() -> FixedKey:
    """The key of the outbox, which is there until a test takes it away."""
    return FixedKey()


MakeExporter = Callable[..., Exporter]


@pytest.fixture
def make_exporter(store: SqliteStore, log: AuditLog, key: FixedKey) -> MakeExporter:
    """Make an exporter of the store and the audit."""

    def make(*, store: Store = store, **options: object) -> Exporter:
        return Exporter(store, log, borrow_key=key.borrow, **options)  # type: ignore[arg-type]

    return make


def list_alarms(directory: Path) -> list[Entry]:
    """List what the audit says of the outbox."""
    lines = [line.entry for line in load_lines(directory) if isinstance(line, EntryLine)]
    return [entry for entry in lines if entry.action.startswith("audit.")]


def make_digest(path: str) -> str:
    """Return what an alarm calls the entry with this path."""
    return hashlib.sha256(make_entry(path).encode()).hexdigest()


def load_head(store: SqliteStore) -> AuditHead | None:
    """Load the head of the files."""
    with store.read() as reader:
        return reader.load_audit_head(NEXUS)


def list_exported(directory: Path) -> list[tuple[int, str]]:
    """List revision and path of all exported entries."""
    changes = [line for line in load_lines(directory) if isinstance(line, ChangeLine)]
    return [(line.revision, decode_entry(bytes(line.entry)).path) for line in changes]


def test_entries_are_exported_in_order_and_discarded(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """All entries of all changes, in order; discarded only by `discard`."""
    change(store, "a")
    change(store)
    change(store, "b", "c", "b")
    exporter = make_exporter()
    exporter.export()
    exporter.export()
    assert list_exported(tmp_path) == [(1, "a"), (3, "b"), (3, "c")]  # the very same entry twice is one
    assert len(load_outbox(store)) == 4
    exporter.discard()
    assert load_outbox(store) == []


@pytest.mark.parametrize("appended", [0, 1, 2, 3])
def test_what_was_appended_before_a_crash_is_not_appended_again(
    store: SqliteStore, log: AuditLog, make_exporter: MakeExporter, tmp_path: Path, appended: int
) -> None:
    """A new exporter finds in the segments what the one before it appended and did not discard."""
    change(store, "a")
    change(store, "b", "c")
    for row in load_outbox(store)[:appended]:
        log.append_change(row.revision, row.entry)
    make_exporter().export()
    assert list_exported(tmp_path) == [(1, "a"), (2, "b"), (2, "c")]


def test_another_store_s_revisions_are_not_mistaken(
    store: SqliteStore, log: AuditLog, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """Entries of a store that wrote here before, under the same revisions, do not hide those of this one."""
    for revision in (1, 2, 3):
        log.append_change(revision, make_entry("older store").encode())
    change(store, "a")
    make_exporter().export()
    assert list_exported(tmp_path)[3:] == [(1, "a")]


def test_a_row_that_is_no_entry_is_named(store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path) -> None:
    """An outbox row that does not decode is exported as an entry that says so, once, and holds nothing up."""
    store.write(lambda writer: append(writer, b"garbage"))
    change(store, "b")
    for _ in range(2):
        make_exporter().export()
    changes = [line for line in load_lines(tmp_path) if isinstance(line, ChangeLine)]
    first, second = (decode_entry(bytes(line.entry)) for line in changes)
    assert (first.action, first.outcome) == ("audit.corrupt-row", "CORRUPT_ROW")
    assert second.path == "b"


def test_a_committed_row_is_exported(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The thread exports when it hears of a row, without one within a second, and what is left at the stop."""
    exporter = make_exporter()
    exporter.start()
    exporter.take(change(store, "a")[0])
    wait_until(lambda: list_exported(tmp_path) == [(1, "a")])
    change(store, "b")
    wait_until(lambda: list_exported(tmp_path)[1:] == [(2, "b")])
    change(store, "c")
    exporter.stop()
    exporter.stop()
    assert list_exported(tmp_path)[2:] == [(3, "c")]
    assert load_outbox(store) == []


def test_an_exporter_that_cannot_export_says_so(
    store: SqliteStore, log: AuditLog, make_exporter: MakeExporter, wait_until: WaitUntil
) -> None:
    """When the store refuses, audit is failing, while entries of reads are still written."""
    clock = ManualClock()
    exporter = make_exporter(clock=clock)
    exporter.start()
    assert clock.wait_for_waiters()
    store.close()

    def turn(condition: Callable[[], object]) -> object:
        clock.advance(1)
        return condition()

    wait_until(lambda: turn(lambda: log.failing))
    assert "closed" in exporter.failing
    log.append(make_entry("a"))
    stopping = threading.Thread(target=exporter.stop)
    stopping.start()
    wait_until(lambda: turn(lambda: not stopping.is_alive()))


def test_an_exporter_that_does_not_know_an_outcome_ends_the_process(
    store: SqliteStore, make_exporter: MakeExporter, wait_until: WaitUntil
) -> None:
    """At once, and not only when the next caller meets the same."""
    failing, reasons = FailingStore(store), list[str]()
    failing.forgets_outcome = True
    exporter = make_exporter(store=failing, give_up=reasons.append)
    exporter.start()
    change(store, "a")
    wait_until(lambda: reasons)
    exporter.stop()
    assert "cannot be opened again" in reasons[0]


def test_entries_stay_in_the_store_while_the_files_refuse(
    store: SqliteStore, log: AuditLog, make_exporter: MakeExporter
) -> None:
    """Nothing is discarded that is not in the files."""
    change(store, "a")
    log.close()
    exporter = make_exporter()
    for step in (exporter.export, exporter.discard):
        with pytest.raises(AuditUnavailableError):
            step()
    assert len(load_outbox(store)) == 1


def test_what_else_is_old_is_discarded_beside(
    log: AuditLog, make_exporter: MakeExporter, wait_until: WaitUntil
) -> None:
    """The thread discards other things too, again and again, and the audit goes on when that is refused."""
    looks = list[str]()

    def look() -> None:
        looks.append(exporter.failing + log.failing)
        if len(looks) == 1:
            raise StoreUnavailableError("store failed to write: SQLITE_FULL")

    clock = ManualClock()
    exporter = make_exporter(clock=clock, beside=look)
    exporter.start()

    def turn(condition: Callable[[], object]) -> object:
        clock.advance(1)
        return condition()

    wait_until(lambda: turn(lambda: len(looks) > 2))
    assert not any(looks)
    stopping = threading.Thread(target=exporter.stop)
    stopping.start()
    wait_until(lambda: turn(lambda: not stopping.is_alive()))


@pytest.mark.final
def test_kill_exports_each_change_once(tmp_path: Path) -> None:
    """After `kill -9` at any moment, and a start, each committed change's entry is in the files exactly once."""
    moments = make_random("kills")
    file = tmp_path / "nexus.db"
    acknowledged: list[int] = []
    for _ in range(8):
        with subprocess.Popen(
            [*WRITING, "export", str(tmp_path), str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as writing:
            assert writing.stdout is not None
            lines = [writing.stdout.readline() for _ in range(moments.randrange(1, 8))]
            killer = threading.Timer(moments.uniform(0, 0.02), writing.send_signal, [signal.SIGKILL])
            killer.start()
            lines += writing.stdout.readlines()
            killer.join()
        assert writing.returncode == -signal.SIGKILL
        acknowledged += [int(line) for line in lines if line.endswith("\n")]
    with (
        closing(SqliteStore.open(file)) as store,
        closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)) as log,
    ):
        exporter = Exporter(store, log, borrow_key=FixedKey().borrow)
        exporter.export()
        exporter.discard()
        assert (exporter.alarms[0].count, exporter.alarms[1].count) == (0, 0)
        with store.read() as reader:
            revision = reader.load_meta().revision
    changes = [line.revision for line in load_lines(tmp_path) if isinstance(line, ChangeLine)]
    assert sorted(changes) == list(range(1, revision + 1))
    assert acknowledged
    assert set(acknowledged) <= set(changes)
    assert verify(tmp_path).faults == []


# What somebody without the key writes


@pytest.mark.parametrize(
    ("revision", "position", "mac"),
    [
        pytest.param(1, 1, b"m" * 32, id="another entry of a true change"),
        pytest.param(1, 1, None, id="an entry without a MAC"),
        pytest.param(0, 0, b"m" * 32, id="before every change"),
        pytest.param(-(1 << 62), -5, b"m" * 32, id="numbers below zero"),
        pytest.param(3, 0, b"m" * 32, id="the place of the next change"),
        pytest.param(1 << 61, 0, b"m" * 32, id="a revision that the store never reaches"),
    ],
)
def test_a_forged_row_is_refused_and_holds_up_nothing(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path, revision: int, position: int, mac: bytes | None
) -> None:
    """A forged row is named by its digest and removed; true entries before and after it are exported."""
    exporter = make_exporter()
    change(store, "a")
    change(store, "b")
    forge(tmp_path / "nexus.db", revision, position, mac=mac)
    exporter.export()
    change(store, "c")
    exporter.export()
    exporter.discard()
    assert list_exported(tmp_path) == [(1, "a"), (2, "b"), (3, "c")]
    assert load_outbox(store) == []
    (said,) = list_alarms(tmp_path)
    assert (said.action, said.outcome) == ("audit.refused-row", "CORRUPT_ROW")
    assert said.detail.startswith(f"revision {revision} position {position}, SHA-256 {make_digest('forged')}: ")
    assert exporter.alarms[0].count == 1


def test_a_forged_row_in_the_place_of_the_next_change_gives_way(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """The change does not fail, and its entry takes the place."""
    forge(tmp_path / "nexus.db", 1)
    change(store, "a")
    exporter = make_exporter()
    exporter.export()
    assert list_exported(tmp_path) == [(1, "a")]


def test_a_flood_of_forged_rows_is_two_lines_in_two_minutes(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """The first is named at once, the others are counted."""
    clock = ManualClock()
    exporter = make_exporter(clock=clock)
    for _ in range(3):
        assert write_rows(tmp_path / "nexus.db", FLOOD, NEXUS, 1 << 61, b"forged", b"m" * 32) == 700
        exporter.export()
        clock.advance(SAY_EVERY_S / 2 + 1)
    assert exporter.alarms[0].count == 2_100
    assert [entry.detail.rpartition("; ")[2] for entry in list_alarms(tmp_path)] == ["and 699 more", "and 1399 more"]
    assert load_outbox(store) == []


def test_a_true_row_that_comes_again_is_refused(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """An authentic row that was exported is not exported twice, neither by this process nor by the next one."""
    (row,) = change(store, "a")
    change(store, "b")
    exporter = make_exporter()
    exporter.export()
    exporter.discard()
    sql = "INSERT INTO audit_outbox (nexus, revision, position, entry, mac) VALUES (?, ?, ?, ?, ?)"
    for number, again in enumerate((exporter, make_exporter()), start=1):
        write_rows(tmp_path / "nexus.db", sql, row.nexus, row.revision, row.position, row.entry, row.mac)
        again.export()
        again.discard()
        again.export()
        assert load_outbox(store) == []
        assert len(list_alarms(tmp_path)) == number
    assert list_exported(tmp_path) == [(1, "a"), (2, "b")]


def test_a_true_row_beyond_the_store_is_refused(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """An authentic row of a store that had come further, as before it was put back, is none of this one."""
    change(store, "a")
    change(store, "b")
    write_rows(tmp_path / "nexus.db", "UPDATE meta SET revision = 1")
    make_exporter().export()
    assert list_exported(tmp_path) == [(1, "a")]
    (said,) = list_alarms(tmp_path)
    assert said.detail.endswith("the store is at revision 1")


def test_an_edited_row_is_refused_and_the_true_one_named_as_missing(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """Whoever replaces an entry before it is exported leaves two alarms."""
    exporter = make_exporter()
    exporter.take(change(store, "a")[0])
    forged = make_entry("forged").encode()
    assert write_rows(tmp_path / "nexus.db", "UPDATE audit_outbox SET entry = ?", forged) == 1
    exporter.export()
    refused, missing = list_alarms(tmp_path)
    assert make_digest("forged") in refused.detail
    assert missing.detail == f"revision 1 position 0, SHA-256 {make_digest('a')}"
    assert list_exported(tmp_path) == []


def test_a_removed_row_is_named_as_missing(store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path) -> None:
    """By this process from its own digests; by the next one because a revision after the head has no entry."""
    exporter = make_exporter()
    change(store, "a")
    exporter.export()
    exporter.discard()
    exporter.take(change(store, "b")[0])
    change(store, "c")
    assert write_rows(tmp_path / "nexus.db", "DELETE FROM audit_outbox WHERE revision = 2") == 1
    exporter.export()
    make_exporter().export()
    assert [entry.detail for entry in list_alarms(tmp_path)] == [
        f"revision 2 position 0, SHA-256 {make_digest('b')}",
        "1 of the changes from revision 2 to 3",
    ]


def test_a_removed_entry_of_several_is_named_as_missing(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """The entries of one change are numbered."""
    change(store, "a", "b", "c")
    assert write_rows(tmp_path / "nexus.db", "DELETE FROM audit_outbox WHERE position = 1") == 1
    make_exporter().export()
    assert [entry.detail for entry in list_alarms(tmp_path)] == ["revision 1 position 1"]


def test_rows_of_an_older_program_are_taken_once(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """Rows without a MAC are exported up to the revision that the manifest allows, with a note, before any head."""
    change(store, "a")
    change(store, "b")
    write_rows(tmp_path / "nexus.db", "UPDATE audit_outbox SET nexus = '', mac = NULL")
    exporter = make_exporter(takes_unmarked=lambda revision: revision <= 1)
    exporter.export()
    exporter.discard()
    assert list_exported(tmp_path) == [(1, "a")]
    noted, refused = list_alarms(tmp_path)
    assert (noted.action, noted.detail[:9]) == ("audit.unmarked-rows", "1 entries")
    assert refused.detail.startswith("revision 2 position 0")
    for again in (exporter, make_exporter(takes_unmarked=lambda revision: True)):
        for revision in (1, 2):
            forge(tmp_path / "nexus.db", revision, mac=None)
        again.export()
        again.discard()
        assert list_exported(tmp_path) == [(1, "a")]
        assert load_outbox(store) == []


def test_rows_of_another_nexus_stay(store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path) -> None:
    """Each nexus exports its own."""
    change(store, "a")
    write_rows(tmp_path / "nexus.db", "UPDATE audit_outbox SET nexus = 'nexus-2'")
    exporter = make_exporter()
    exporter.export()
    exporter.discard()
    assert list_exported(tmp_path) == []
    with store.read() as reader:
        assert len(reader.load_audit("nexus-2", limit=9)) == 1


# Without a key


def test_without_a_key_a_process_exports_what_it_committed(
    store: SqliteStore, make_exporter: MakeExporter, key: FixedKey, tmp_path: Path
) -> None:
    """After a wipe; its rows stay in the store until there is a key again, and are then found in the files."""
    exporter = make_exporter()
    change(store, "of an earlier process")
    mine = change(store, "mine")
    key.is_there = False
    forge(tmp_path / "nexus.db", 1 << 61)
    for row in mine:
        exporter.take(row)
    exporter.export()
    exporter.discard()
    assert list_exported(tmp_path) == [(2, "mine")]
    assert len(load_outbox(store)) == 3
    key.is_there = True
    for one in (exporter, make_exporter()):
        one.export()
        one.discard()
    assert sorted(list_exported(tmp_path)) == [(1, "of an earlier process"), (2, "mine")]
    assert load_outbox(store) == []


def test_what_an_earlier_process_exported_is_found_although_there_was_no_key_at_first(
    store: SqliteStore, log: AuditLog, make_exporter: MakeExporter, key: FixedKey, tmp_path: Path
) -> None:
    """A row that was exported before a crash, and one of this process that was exported without a key: each once."""
    (row,) = change(store, "of an earlier process")
    log.append_change(row.revision, row.entry)
    key.is_there = False
    exporter = make_exporter()
    exporter.take(change(store, "mine")[0])
    exporter.export()
    key.is_there = True
    exporter.export()
    assert list_exported(tmp_path) == [(1, "of an earlier process"), (2, "mine")]


def test_without_a_key_an_edited_row_is_not_exported(
    store: SqliteStore, make_exporter: MakeExporter, key: FixedKey, tmp_path: Path
) -> None:
    """A digest stands for the very bytes."""
    exporter = make_exporter()
    key.is_there = False
    exporter.take(change(store, "a")[0])
    write_rows(tmp_path / "nexus.db", "UPDATE audit_outbox SET entry = ?", make_entry("forged").encode())
    exporter.export()
    assert list_exported(tmp_path) == []
    assert [entry.action for entry in list_alarms(tmp_path)] == ["audit.missing-row"]


# The head


def test_the_head_follows_each_discard(
    store: SqliteStore, log: AuditLog, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """It says how far the synced files have come, and nobody without the key can make it."""
    exporter = make_exporter()
    for revision, path in enumerate(("a", "b"), start=1):
        change(store, path)
        exporter.export()
        exporter.discard()
        head = load_head(store)
        assert head is not None
        assert (head.timeline, head.seq, head.digest, head.revision) == (
            1,
            log.position.seq,
            log.position.digest,
            revision,
        )
        assert is_authentic_head(FixedKey(), head)
    assert list_alarms(tmp_path) == []


def test_the_head_follows_reads_each_minute_and_at_the_end(
    store: SqliteStore, log: AuditLog, make_exporter: MakeExporter
) -> None:
    """An idle store is not written to."""
    clock = ManualClock()
    exporter = make_exporter(clock=clock)
    log.append(make_entry("a"))
    exporter.discard()
    assert load_head(store) is None
    clock.advance(HEAD_EVERY_S)
    exporter.discard()
    first = load_head(store)
    assert first is not None
    assert first.seq == log.position.seq
    clock.advance(HEAD_EVERY_S)
    exporter.discard()
    assert load_head(store) == first
    log.append(make_entry("b"))
    exporter.start()
    stopping = threading.Thread(target=exporter.stop)
    stopping.start()
    while stopping.is_alive():
        clock.advance(1)
    last = load_head(store)
    assert last is not None
    assert last.seq == log.position.seq > first.seq
