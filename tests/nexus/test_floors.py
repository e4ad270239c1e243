"""A ready nexus whose database somebody else writes: what it left is what it goes on from, or it ends ready."""

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.errors import AuditUnavailableError, RecoveringError, ShardholdError
from nexus.keys import manifest
from nexus.keys.first_rows import FIRST_KEK
from nexus.lifecycle.states import State
from nexus.policy.rules import Permission, Policy
from nexus.store.protocol import ControlRow, Writer
from nexus.vault.expected import Expected
from tests.kit.patience import at_most
from tests.nexus.cluster import SUPERUSERS, FoundCluster, FoundedCluster, tamper
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.core import APP, OPERATOR, SUPERUSER, NexusCore
from tests.nexus.played_keepers import PlayedKeeper
from tests.nexus.store.contract import threads

PATH = "team/db"
READERS = Policy(
    name="readers", spiffe_ids=(APP.spiffe_id,), paths=("team/**",), permissions=(Permission.READ, Permission.WRITE)
)


class Ready:
    """A nexus that is ready, its keepers, and what somebody may do to its database."""

    def __init__(self, folder: Path, cluster: FoundedCluster, start: StartNexus, wait_until: WaitUntil) -> None:
        self.folder = folder
        self.cluster = cluster
        self.keepers: list[PlayedKeeper] = cluster.keepers()
        self.core: NexusCore = start(self.keepers)
        self._wait_until = wait_until
        wait_until(lambda: self.core.states == [State.READY])

    def put(self, value: bytes = b"v") -> int:
        return self.core.vault.put(SUPERUSER, PATH, {"value": value}, Expected(), os.urandom(16)).revision

    def get(self) -> bytes:
        return self.core.vault.get(APP, PATH, 0).fields["value"]

    def revoke(self) -> None:
        self.core.policies.delete(SUPERUSER, "readers")

    def copy(self) -> tuple[Any, list[Any]]:
        """Copy meta row and control rows."""
        with closing(sqlite3.connect(self.folder / "nexus.db")) as database:
            meta = database.execute("SELECT control_revision, epoch, sealed FROM meta").fetchone()
            return meta, database.execute("SELECT * FROM control").fetchall()

    def put_back(self, copy: tuple[Any, list[Any]]) -> None:
        """Put control rows back, and what of the meta row belongs to them; the revision stays."""
        meta, rows = copy
        with closing(sqlite3.connect(self.folder / "nexus.db", timeout=at_most(5))) as database, database:
            database.execute("DELETE FROM control")
            database.executemany("INSERT INTO control VALUES (?, ?, ?, ?)", rows)
            database.execute("UPDATE meta SET control_revision = ?, epoch = ?, sealed = ?", meta)

    def tamper(self, sql: str) -> None:
        tamper(self.folder, sql)

    def wait_lost(self, *obstacles: str) -> None:
        """Wait until ready has ended, and these are among the obstacles."""
        self._wait_until(lambda: self.core.states[:2] == [State.READY, State.RECOVERING])

        def are_named() -> bool:
            named = "\n".join(self.core.warden.list_obstacles())
            return all(obstacle in named for obstacle in obstacles)

        self._wait_until(are_named)


@pytest.fixture
def ready(tmp_path: Path, found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil) -> Ready:
    """3 of 5 keepers, and a workload that may read and write."""
    ready = Ready(tmp_path, found(policies=[SUPERUSERS, READERS]), start_nexus, wait_until)
    ready.put()
    assert ready.get() == b"v"
    return ready


NUMBERS = [
    pytest.param(
        "control_revision", -1, "control revision 0, and this nexus left it at control revision 1", id="lower"
    ),
    pytest.param(
        "control_revision", 1, "control revision 2, and this nexus left it at control revision 1", id="higher"
    ),
    pytest.param("epoch", -1, "epoch 0, and this nexus left it at epoch 1", id="epoch"),
    pytest.param("epoch", 3, "epoch 4, and this nexus left it at epoch 1", id="higher epoch"),
    pytest.param("timeline", 1, "timeline 2, and this nexus left it at timeline 1", id="timeline"),
    pytest.param("revision", -1, "revision 1, and this nexus left it at revision 2", id="revision"),
    pytest.param("generation", 1, "generation 2, and this nexus left it at generation 1", id="generation"),
    pytest.param("kek_id", 1, f"kek id {FIRST_KEK + 1}, and this nexus left it at kek id {FIRST_KEK}", id="KEK"),
]


@pytest.mark.parametrize(("column", "step", "says"), NUMBERS)
def test_a_nexus_that_nobody_calls_leaves_ready(ready: Ready, column: str, step: int, says: str) -> None:
    """Within a second or two; the reason is named, keys are wiped, and the keepers keep their shards."""
    for keeper in ready.keepers:
        keeper.is_reachable = False  # so that it does not come back
    ready.tamper(f"UPDATE meta SET {column} = {column} + {step}")
    ready.wait_lost(f"ready ended: the store was {'put back' if step < 0 else 'changed by somebody else'}", says)
    assert [len(keeper.sets) for keeper in ready.keepers] == [1] * 5


@pytest.mark.parametrize(("column", "step", "says"), [one for one in NUMBERS if one.values[1] == -1])
def test_a_read_below_the_floor_is_refused(ready: Ready, column: str, step: int, says: str) -> None:
    """Before the warden looks; its caller may wait, and the entry says why."""
    with ready.core.warden._lock:  # the warden is not faster
        ready.tamper(f"UPDATE meta SET {column} = {column} + {step}")
        for ask in (ready.get, lambda: ready.core.vault.list(SUPERUSER, "", after="", limit=0)):
            with pytest.raises(RecoveringError):
                ask()
        assert says in ready.core.lifecycle.store_fault
        assert ready.core.list_entries()[-1].outcome == "NEXUS_RECOVERING"
    ready.wait_lost()


@pytest.mark.parametrize(("column", "step", "says"), NUMBERS)
def test_a_change_beside_the_floor_is_refused(ready: Ready, column: str, step: int, says: str) -> None:
    """A put, and a change of policies; nothing of it is committed."""
    with ready.core.warden._lock:
        ready.tamper(f"UPDATE meta SET {column} = {column} + {step}")
        before = ready.cluster.load()
        with pytest.raises(RecoveringError):
            ready.put()
        assert says in ready.core.lifecycle.store_fault
        ready.core.lifecycle._store_fault = ""
        with pytest.raises(RecoveringError):
            ready.revoke()
        assert says in ready.core.lifecycle.store_fault
        assert ready.cluster.load() == before


def test_policies_put_back_are_not_in_force_again(ready: Ready) -> None:
    """Revoked, put back whole, and revoked again: the second revocation fails, and the nexus is blocked by itself."""
    copy = ready.copy()
    ready.revoke()
    for keeper in ready.keepers:
        keeper.marks.clear()
    with ready.core.warden._lock:
        ready.put_back(copy)
        with pytest.raises(RecoveringError, match="was put back"):
            ready.revoke()
    ready.wait_lost("ready ended: the store was put back", "this nexus remember 2")
    assert ready.core.lifecycle.state is State.RECOVERING
    with pytest.raises(RecoveringError):
        ready.get()
    blocked = ready.core.warden.find_newer_mark()
    assert blocked is not None
    assert (blocked.is_own, blocked.mark.control_revision) == (True, 2)


def test_a_superuser_accepts_what_was_put_back(ready: Ready, wait_until: WaitUntil) -> None:
    """As any older store; then the numbers go on above those of before."""
    copy, epoch = ready.copy(), ready.cluster.load()[0].epoch
    ready.revoke()
    ready.put_back(copy)
    ready.wait_lost("this nexus remember 2")
    wait_until(lambda: ready.core.warden._executor.held is not None)
    meta = ready.cluster.load()[0]
    assert ready.core.seal.accept_older_store(SUPERUSER, meta.timeline, meta.revision) == 2
    assert ready.core.lifecycle.state is State.READY
    assert ready.cluster.load()[0].epoch == epoch + 1
    ready.revoke()
    ready.put()


def test_the_right_rows_bring_it_back(ready: Ready, wait_until: WaitUntil) -> None:
    """Whoever put old rows back puts the true ones back: nothing is lost, and nothing has to be accepted."""
    older = ready.copy()
    ready.revoke()
    newest = ready.copy()
    ready.put_back(older)
    ready.wait_lost("this nexus remember 2")
    ready.put_back(newest)
    ready.core.lifecycle.wake.set()
    wait_until(lambda: ready.core.warden.find_newer_mark() is None)


def test_no_mark_is_made_of_a_store_that_was_put_back(ready: Ready, wait_until: WaitUntil) -> None:
    """Else the keepers would take the lower numbers for true: a seal leaves no mark then, and the old ones stay."""
    wait_until(lambda: all(keeper.marks for keeper in ready.keepers))
    copy = ready.copy()
    ready.revoke()
    highest = ready.cluster.load()[0].control_revision
    with ready.core.warden._lock:
        ready.put_back(copy)
        ready.core.warden.seal(lambda writer, key: None, seconds=10)
    marks = [ready.cluster.book().take("k", mark) for keeper in ready.keepers for mark in keeper.marks[-1:]]
    wanted = {mark.control_revision for mark in marks if mark}
    assert wanted <= {highest - 1, highest}
    assert ready.core.warden._marks.last is None
    newer = ready.core.warden.find_newer_mark()
    assert newer is not None
    assert newer.mark.control_revision == highest


def test_a_store_that_was_put_back_is_sealed_as_without_a_key(ready: Ready) -> None:
    """Noticed before or not, the seal is committed, takes no revision, and its entry is in the audit files."""
    for has_noticed in (True, False):
        with ready.core.warden._lock:
            ready.tamper("UPDATE meta SET epoch = epoch - 1")
            before = ready.cluster.load()[0]
            if has_noticed:
                with pytest.raises(RecoveringError):
                    ready.get()
            ready.core.seal.seal(SUPERUSER, "an incident", seconds=1)
        after = ready.cluster.load()[0]
        assert (after.sealed, after.revision) == (True, before.revision)
        assert after.epoch > before.epoch + 1  # above what this nexus left, not just back there
        assert ready.core.failures == []
        entry = ready.core.list_entries()[-1]
        assert (entry.action, entry.outcome, entry.detail) == ("seal", "ok", "an incident")
        assert ready.core.warden._marks.last is None
        assert ready.core.warden.admit(
            ready.cluster.prove_without_points(), lambda writer, key: None, asked_in=State.SEALED
        )


def test_a_new_chain_is_not_accepted_on_a_store_that_was_put_back(ready: Ready) -> None:
    """A ready nexus whose audit files are gone commits nothing below its floor; else it raises the floor with it."""

    def displace() -> None:
        for file in ready.folder.glob("*.jsonl"):
            file.unlink()
        with pytest.raises(AuditUnavailableError):
            ready.core.audit.sync()

    serving = ready.core.lifecycle.require_serving()
    displace()
    ready.core.audit_access.accept_new_chain(OPERATOR, "the disk died")
    assert serving.floor.position == ready.cluster.load()[0].position
    displace()
    with ready.core.warden._lock:
        ready.tamper("UPDATE meta SET revision = revision - 1")
        before = ready.cluster.load()
        with pytest.raises(RecoveringError, match="was put back"):
            ready.core.audit_access.accept_new_chain(OPERATOR, "the disk died")
        assert ready.cluster.load() == before
        assert "was put back" in ready.core.lifecycle.store_fault


def test_a_set_number_that_somebody_lowered_is_not_given_out_again(ready: Ready) -> None:
    """Keepers drop no older set for a lower number: the new set is above the one that the manifest proves."""
    ready.core.seal.seal(SUPERUSER, "", seconds=5)
    ready.tamper("UPDATE meta SET last_set_number = 0")
    serving = ready.cluster.prove_without_points()
    number = serving.shard_set.record.set_number
    assert ready.core.warden.admit(serving, lambda writer, key: None, asked_in=State.SEALED)
    assert ready.core.lifecycle.require_serving().shard_set.record.set_number == number + 1
    assert ready.cluster.load()[0].last_set_number == number + 1


def test_many_changes_at_once_lose_nothing(ready: Ready, wait_until: WaitUntil) -> None:
    """Puts, reads and policies beside each other never look like somebody else's."""
    failures: list[ShardholdError] = []

    def work(name: int) -> None:
        try:
            for number in range(15):
                if name < 2:
                    ready.core.policies.apply(SUPERUSER, [msgspec.structs.replace(READERS, name=f"p-{name}-{number}")])
                else:
                    ready.put(b"%d" % number)
                ready.get()
        except ShardholdError as exc:
            failures.append(exc)

    with threads(work, 6):
        pass
    assert failures == []
    assert ready.core.states == [State.READY]
    assert ready.core.lifecycle.require_serving().floor.position == ready.cluster.load()[0].position
    assert len(ready.core.policies.list(SUPERUSER).policies) == 32


def make_old(cluster: FoundedCluster) -> None:
    """Let the store be as a program of the first format left it."""
    root_key = cluster.make_root_key()

    def write(writer: Writer) -> None:
        row = writer.load_control(*manifest.MANIFEST)
        assert row is not None
        head, listed = manifest._parse_manifest(row.body)
        head = replace(head, format=1, generation=0, epoch=0, control_revision=head.control_revision + 1)
        body = manifest._encode_manifest(head, listed)
        writer.save_control(ControlRow(*manifest.MANIFEST, body, root_key.authenticate(body)))
        writer.save_meta(replace(writer.load_meta(), control_revision=head.control_revision))

    cluster.store.write(write)
    root_key.release()
    with closing(sqlite3.connect(cluster.store._path)) as database, database:  # type: ignore[attr-defined]
        database.execute("UPDATE meta SET epoch = 0")


def test_the_manifest_of_an_older_program_is_made_anew(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """In a change of its own, once, with an entry of its own; the epochs begin, and the keepers hear of them."""
    cluster = found()
    make_old(cluster)
    before = cluster.load()[0]
    keepers = cluster.keepers()
    core = start_nexus(keepers)
    wait_until(lambda: cluster.load()[0].control_revision > before.control_revision)
    after = cluster.load()[0]
    assert (after.revision, after.control_revision, after.epoch) == (
        before.revision + 1,
        before.control_revision + 1,
        1,
    )
    serving = core.lifecycle.require_serving()
    assert serving.manifest_format == 2
    assert cluster.prove().manifest_format == 2
    assert serving.floor.position == after.position
    ((revision, entry),) = core.list_change_entries()
    assert (revision, entry.action, entry.actor) == (after.revision, "manifest.renew", "")
    wait_until(lambda: all(keeper.epoch == (1, 1) for keeper in keepers))
    assert cluster.load()[0] == after
    core = start_nexus(keepers)
    wait_until(lambda: core.states == [State.READY])
    assert cluster.load()[0] == after


def test_each_seal_and_unseal_raises_the_epoch_above_what_keepers_have_seen(ready: Ready) -> None:
    """So that a store that was put back can be sealed: its keepers would drop nothing at a lower epoch."""
    for keeper in ready.keepers:
        keeper.epoch = keeper.epoch._replace(timeline=1, epoch=7)
    ready.core.pool.wait_emptied(seconds=0)

    def have_seen() -> bool:
        return ready.core.pool.find_epoch(1) == 7

    ready._wait_until(have_seen)
    assert ready.core.warden.seal(lambda writer, key: None, seconds=10).keepers_emptied == 5
    assert ready.cluster.load()[0].epoch == 8
    serving = ready.cluster.prove_without_points()
    assert ready.core.warden.admit(serving, lambda writer, key: None, asked_in=State.SEALED)
    meta, serving = ready.cluster.load()[0], ready.core.lifecycle.require_serving()
    assert (meta.epoch, serving.floor.position) == (9, meta.position)
    assert serving.view.control_revision == meta.control_revision  # what the change left is in force
    assert ready.core.pool.wait_holders(5, seconds=10) == 5
