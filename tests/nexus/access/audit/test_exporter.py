"""The exporter: each change's entry is in the files once, whatever dies in between, and no other is."""

import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import AuditUnavailableError, StoreUnavailableError
from common.forms.audit.entry import decode_entry
from common.forms.audit.line import ChangeLine
from common.forms.audit.verify import verify
from nexus.access.audit.exporter import HEAD_EVERY_S, Exporter
from nexus.access.audit.log import AuditLog
from nexus.keys.outbox import is_authentic_head
from nexus.store.sqlite.store import SqliteStore
from tests.kit.manual_clock import ManualClock
from tests.kit.seed import make_random
from tests.nexus.access.audit.exports import MakeExporter, list_alarms, list_exported, load_head
from tests.nexus.access.audit.keyed import (
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


def test_a_store_that_learns_its_generation_goes_on(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """As that of an older program does; nothing is exported twice, or called forged."""
    exporter = make_exporter()
    change(store, "a")
    exporter.export()
    store.write(lambda writer: writer.save_meta(replace(writer.load_meta(), generation=1)), counts=False)
    change(store, "b")
    for _ in range(2):
        exporter.discard()
        exporter.export()
    assert list_exported(tmp_path) == [(1, "a"), (2, "b")]
    assert (list_alarms(tmp_path), load_outbox(store)) == ([], [])


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
    exporter.export()
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
