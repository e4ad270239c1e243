"""What of the audit when a store was put back or upgraded: each true entry of a change is in the files, once."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from common.forms.audit.entry import Entry, decode_entry
from common.forms.audit.line import ChangeLine, EntryLine
from nexus.lifecycle.states import State
from tests.nexus.access.audit.test_log import load_lines
from tests.nexus.cluster import SUPERUSERS, FoundCluster
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.core import SUPERUSER, NexusCore
from tests.nexus.test_floors import READERS, Ready, make_old

TABLES = ("meta", "control", "secrets", "versions", "deletions", "requests")  # children follow their parents


@pytest.fixture
def ready(found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, tmp_path: Path) -> Ready:
    """A ready nexus whose audit has come to the end of its outbox."""
    ready = Ready(tmp_path, found(policies=[SUPERUSERS, READERS]), start_nexus, wait_until)
    export(ready.core)
    return ready


def export(core: NexusCore) -> None:
    """Do what the exporter's thread does, twice: a second round finds nothing new."""
    for _ in range(2):
        core.exporter.export()
        core.exporter.discard()


def list_changes(folder: Path) -> list[str]:
    """List the actions of all changes in the files."""
    lines = [line for line in load_lines(folder) if isinstance(line, ChangeLine)]
    return [decode_entry(bytes(line.entry)).action for line in lines]


def lose_changes(ready: Ready, count: int) -> None:
    """Make changes, export them, and put the store back to before them while the nexus runs."""
    copy = ready.folder / "copy.db"
    with closing(sqlite3.connect(ready.folder / "nexus.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    for _ in range(count):
        ready.put()
    export(ready.core)
    with closing(sqlite3.connect(ready.folder / "nexus.db", timeout=5, isolation_level=None)) as database:
        database.execute("ATTACH ? AS copy", (str(copy),))
        database.execute("BEGIN IMMEDIATE")
        for table in reversed(TABLES):
            database.execute(f"DELETE FROM main.{table}")
        for table in TABLES:
            database.execute(f"INSERT INTO main.{table} SELECT * FROM copy.{table}")
        database.execute("COMMIT")


@pytest.mark.parametrize("restarts", [False, True], ids=["by the same process", "by the next process"])
def test_changes_of_an_accepted_store_are_exported(
    ready: Ready, start_nexus: StartNexus, wait_until: WaitUntil, *, restarts: bool
) -> None:
    """They have the revisions of changes that were given up, and are none of those."""
    lose_changes(ready, 20)
    core = ready.core
    wait_until(lambda: core.lifecycle.state is State.RECOVERING and core.warden._executor.held is not None)
    meta = ready.cluster.load()[0]
    core.seal.accept_older_store(SUPERUSER, meta.timeline, meta.revision)
    if restarts:
        wait_until(
            lambda: core.pool.count_holders() >= ready.cluster.record.threshold
        )  # else nobody gives the key back
        core = ready.core = start_nexus(ready.keepers)
        wait_until(lambda: core.states == [State.READY])
    ready.revoke()
    export(core)
    assert list_changes(ready.folder)[-2:] == ["store.accept-older", "policy.delete"]
    assert [alarm.count for alarm in core.exporter.alarms] == [0, 0]


def test_a_seal_of_a_store_that_was_put_back_is_in_the_files(ready: Ready) -> None:
    """It is no change, since it would have the revision of one that was given up: its entry is that of a read."""
    with ready.core.warden._lock:  # the warden has not noticed yet
        lose_changes(ready, 20)
        ready.core.seal.seal(SUPERUSER, "why", seconds=1)
    export(ready.core)
    entries = [line.entry for line in load_lines(ready.folder) if isinstance(line, EntryLine)]
    assert [(entry.action, entry.outcome, entry.detail) for entry in entries][-1] == ("seal", "ok", "why")


def test_entries_of_an_older_program_outlive_a_kill_right_after_the_upgrade(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """They are adopted in the very change that ends the first format."""
    cluster = found()
    make_old(cluster)
    entry = Entry(at=1, actor="spiffe://example.org/alice", action="policy.delete").encode()
    with closing(sqlite3.connect(tmp_path / "nexus.db")) as database, database:
        database.execute("DELETE FROM audit_outbox")
        values = (cluster.load()[0].revision, entry)
        database.execute("INSERT INTO audit_outbox (nexus, revision, position, entry) VALUES ('', ?, 0, ?)", values)
    keepers = cluster.keepers()
    start_nexus(keepers)
    wait_until(lambda: cluster.load()[0].epoch == 1)  # the manifest is made anew, and nothing is exported yet
    core = start_nexus(keepers)
    wait_until(lambda: core.states == [State.READY])
    export(core)
    assert list_changes(tmp_path) == ["policy.delete", "manifest.renew"]
