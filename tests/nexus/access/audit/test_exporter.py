"""The exporter: each change's entry is in the files once, whatever dies in between."""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import AuditUnavailableError, StoreUnavailableError
from common.forms.audit.entry import decode_entry
from common.forms.audit.line import ChangeLine
from common.forms.audit.verify import verify
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.log import AuditLog
from nexus.store.protocol import Writer
from nexus.store.sqlite.store import SqliteStore
from tests.kit.manual_clock import ManualClock
from tests.kit.seed import make_random
from tests.nexus.access.audit.test_log import ROOT, WRITING, load_lines
from tests.nexus.access.audit.writing import make_entry
from tests.nexus.failing_store import FailingStore

WaitUntil = Callable[..., None]


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


def change(store: SqliteStore, *paths: str) -> None:
    """Commit a change with an entry for each path."""

    def append(writer: Writer) -> None:
        for path in paths:
            writer.append_audit(make_entry(path).encode())

    store.write(append)


def list_exported(directory: Path) -> list[tuple[int, str]]:
    """List revision and path of all exported entries."""
    changes = [line for line in load_lines(directory) if isinstance(line, ChangeLine)]
    return [(line.revision, decode_entry(bytes(line.entry)).path) for line in changes]


def test_entries_are_exported_in_order_and_discarded(store: SqliteStore, log: AuditLog, tmp_path: Path) -> None:
    """All entries of all changes, in order; discarded only by `discard`."""
    change(store, "a")
    change(store)
    change(store, "b", "c", "b")
    exporter = Exporter(store, log)
    exporter.export()
    exporter.export()
    assert list_exported(tmp_path) == [(1, "a"), (3, "b"), (3, "c")]  # the very same entry twice is one
    assert len(store.load_audit(limit=9)) == 4
    exporter.discard()
    assert store.load_audit(limit=9) == []


@pytest.mark.parametrize("appended", [0, 1, 2, 3])
def test_what_was_appended_before_a_crash_is_not_appended_again(
    store: SqliteStore, log: AuditLog, tmp_path: Path, appended: int
) -> None:
    """A new exporter finds in the segments what the one before it appended and did not discard."""
    change(store, "a")
    change(store, "b", "c")
    for revision, entry in store.load_audit(limit=9)[:appended]:
        log.append_change(revision, entry)
    Exporter(store, log).export()
    assert list_exported(tmp_path) == [(1, "a"), (2, "b"), (2, "c")]


def test_another_store_s_revisions_are_not_mistaken(store: SqliteStore, log: AuditLog, tmp_path: Path) -> None:
    """Entries of a store that wrote here before, under the same revisions, do not hide those of this one."""
    for revision in (1, 2, 3):
        log.append_change(revision, make_entry("older store").encode())
    change(store, "a")
    Exporter(store, log).export()
    assert list_exported(tmp_path)[3:] == [(1, "a")]


def test_a_row_that_is_no_entry_is_named(store: SqliteStore, log: AuditLog, tmp_path: Path) -> None:
    """An outbox row that does not decode is exported as an entry that says so, once, and holds nothing up."""
    store.write(lambda writer: writer.append_audit(b"garbage"))
    change(store, "b")
    for _ in range(2):
        Exporter(store, log).export()
    changes = [line for line in load_lines(tmp_path) if isinstance(line, ChangeLine)]
    first, second = (decode_entry(bytes(line.entry)) for line in changes)
    assert (first.action, first.outcome) == ("audit.corrupt-row", "CORRUPT_ROW")
    assert second.path == "b"


def test_a_nudge_exports(store: SqliteStore, log: AuditLog, tmp_path: Path, wait_until: WaitUntil) -> None:
    """The thread exports after a nudge, without one within a second, and what is left at the stop."""
    exporter = Exporter(store, log)
    exporter.start()
    change(store, "a")
    exporter.nudge()
    wait_until(lambda: list_exported(tmp_path) == [(1, "a")])
    change(store, "b")
    wait_until(lambda: list_exported(tmp_path)[1:] == [(2, "b")])
    change(store, "c")
    exporter.stop()
    exporter.stop()
    assert list_exported(tmp_path)[2:] == [(3, "c")]
    assert store.load_audit(limit=9) == []


def test_an_exporter_that_cannot_export_says_so(
    store: SqliteStore, log: AuditLog, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """When the store refuses, audit is failing, while entries of reads are still written."""
    clock = ManualClock()
    exporter = Exporter(store, log, clock=clock)
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
    store: SqliteStore, log: AuditLog, wait_until: WaitUntil
) -> None:
    """At once, and not only when the next caller meets the same."""
    failing, reasons = FailingStore(store), list[str]()
    failing.forgets_outcome = True
    exporter = Exporter(failing, log, give_up=reasons.append)
    exporter.start()
    change(store, "a")
    wait_until(lambda: reasons)
    exporter.stop()
    assert "cannot be opened again" in reasons[0]


def test_entries_stay_in_the_store_while_the_files_refuse(store: SqliteStore, log: AuditLog) -> None:
    """Nothing is discarded that is not in the files."""
    change(store, "a")
    log.close()
    exporter = Exporter(store, log)
    with pytest.raises(AuditUnavailableError):
        exporter.export()
    exporter.discard()
    assert len(store.load_audit(limit=9)) == 1


def test_what_else_is_old_is_discarded_beside(store: SqliteStore, log: AuditLog, wait_until: WaitUntil) -> None:
    """The thread discards other things too, again and again, and the audit goes on when that is refused."""
    looks = list[str]()

    def look() -> None:
        looks.append(exporter.failing + log.failing)
        if len(looks) == 1:
            raise StoreUnavailableError("store failed to write: SQLITE_FULL")

    clock = ManualClock()
    exporter = Exporter(store, log, clock=clock, beside=look)
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
        exporter = Exporter(store, log)
        exporter.export()
        exporter.discard()
        with store.read() as reader:
            revision = reader.load_meta().revision
    changes = [line.revision for line in load_lines(tmp_path) if isinstance(line, ChangeLine)]
    assert sorted(changes) == list(range(1, revision + 1))
    assert acknowledged
    assert set(acknowledged) <= set(changes)
    assert verify(tmp_path).faults == []
