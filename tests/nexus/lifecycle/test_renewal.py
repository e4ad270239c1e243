"""Stores of older programs: opened, served from, and brought into the form of today at the first ready."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from common.errors import CorruptRowError
from common.keys.protected import ProtectedMemory
from nexus.admin.operations.rotate_plan import RotatePlan
from nexus.keys.manifest import Key
from nexus.lifecycle.renewal import is_due, renew_controls
from nexus.lifecycle.states import State
from nexus.vault.expected import Expected
from tests.nexus.cluster import tamper
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.core import SUPERUSER, NexusCore
from tests.nexus.custodians import custodian, submit
from tests.nexus.old_store import FIELD, NAMES, PATH, VALUE, OldStore, open_old_store

OLD_ROWS = {("kcv", "1"), ("keyring", "current"), ("canary", "current")}
NEW_ROWS = {("generation", "1"), ("keyring", "1"), ("canary", "1")}

OpenOld = Callable[..., OldStore]


@pytest.fixture
def open_old(tmp_path: Path, memory: ProtectedMemory) -> Iterator[OpenOld]:
    """Open a store of an older program."""
    with ExitStack() as ending:

        def open_one(name: str, spoil: str = "") -> OldStore:
            old = open_old_store(name, tmp_path / "old", memory, spoil=spoil)
            ending.callback(old.store.close)
            return old

        yield open_one


def list_rows(old: OldStore) -> set[Key]:
    return {(row.kind, row.name) for row in old.cluster.load()[1]}


def is_renewed(core: NexusCore) -> bool:
    serving = core.lifecycle.find_serving()
    return serving is not None and not is_due(serving)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_store_is_served_and_renewed(
    open_old: OpenOld, start_nexus: StartNexus, wait_until: WaitUntil, name: str
) -> None:
    """Its secret is read, its rows are replaced in one change with a note, and the next start knows the new form."""
    old = open_old(name)
    assert list_rows(old) >= OLD_ROWS
    keepers = old.cluster.keepers()
    core = start_nexus(keepers, store=old.store)
    wait_until(lambda: core.states == [State.READY])
    assert core.vault.get(SUPERUSER, PATH, 0).fields == {FIELD: VALUE}
    wait_until(lambda: is_renewed(core))
    assert list_rows(old) >= NEW_ROWS
    assert not list_rows(old) & OLD_ROWS
    notes = [entry.detail for _, entry in core.list_change_entries() if entry.action == "manifest.renew"]
    assert notes == ["format 2, rows of generation 1" if name == "schema-1" else "rows of generation 1"]
    core.vault.put(SUPERUSER, "team/new", {"a": b"b"}, Expected(0), os.urandom(16))

    again = start_nexus(keepers, store=old.store)
    wait_until(lambda: again.states == [State.READY])
    assert is_renewed(again)
    assert again.vault.get(SUPERUSER, PATH, 0).fields == {FIELD: VALUE}
    serving = again.lifecycle.require_serving()
    assert (serving.keyring.current_id, serving.chain) == (1, old.cluster.chain)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_store_rotates(open_old: OpenOld, start_nexus: StartNexus, wait_until: WaitUntil, name: str) -> None:
    """Its one KEK goes, its value stays, and keepers bring the new root key back."""
    old = open_old(name)
    keepers = old.cluster.keepers()
    core = start_nexus(keepers, store=old.store)
    wait_until(lambda: core.states == [State.READY] and is_renewed(core) and core.pool.count_holders() == len(keepers))
    plan = RotatePlan(is_forced=True, without_backup="drill")
    core.operations.rotate(SUPERUSER, os.urandom(16), plan, "drill", dry_run=False)
    core.driver.start()
    core.job.start()
    serving = core.lifecycle.require_serving()
    wait_until(lambda: core.driver.seen_step is None and serving.keyring.list_keks() == [2])

    again = start_nexus(keepers, store=old.store)
    wait_until(lambda: again.states == [State.READY])
    assert again.lifecycle.require_serving().root_key.generation == 2
    assert again.vault.get(SUPERUSER, PATH, 0).fields == {FIELD: VALUE}


@pytest.mark.parametrize("name", NAMES)
def test_custodians_bring_an_old_store_back(
    open_old: OpenOld, start_nexus: StartNexus, wait_until: WaitUntil, name: str
) -> None:
    """From the one copy of its escrow; the rows are replaced afterwards."""
    old = open_old(name)
    keepers = old.cluster.keepers()
    for keeper in keepers:
        keeper.restart()
    core = start_nexus(keepers, store=old.store)
    session = core.unseal.start(custodian("ann"))
    for number, person in enumerate(("ann", "bob")):
        submit(core, custodian(person), session, old.recovery_shares[number])
    wait_until(lambda: core.lifecycle.state is State.READY)
    wait_until(lambda: is_renewed(core))
    assert not list_rows(old) & OLD_ROWS
    assert core.warden.list_alarms() == []


def test_rows_with_a_damaged_escrow_stay_as_they_are(
    open_old: OpenOld, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """It is served all the same, with an alarm: the row of the old form, put back, still brings the cluster back."""
    old = open_old("schema-2", spoil="UPDATE control SET body = x'7b7d' WHERE kind = 'escrow'")
    core = start_nexus(old.cluster.keepers(), store=old.store)
    wait_until(lambda: bool(core.warden.list_alarms()))
    assert core.warden.list_alarms() == [
        "custodians could not bring this cluster back: control row escrow/1 does not verify; put the row back from a "
        "backup before the nexus ends"
    ]
    assert is_renewed(core)
    assert list_rows(old) >= OLD_ROWS
    assert core.vault.get(SUPERUSER, PATH, 0).fields == {FIELD: VALUE}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param("DELETE FROM control WHERE kind = 'kcv'", "kcv/1 is missing", id="kcv"),
        pytest.param("DELETE FROM control WHERE kind = 'keyring'", "keyring/current is missing", id="keyring"),
        pytest.param("DELETE FROM control WHERE kind = 'canary'", "canary/current is missing", id="canary"),
        pytest.param("UPDATE control SET body = x'7b7d' WHERE kind = 'kcv'", "no _KcvRecord", id="no kcv record"),
    ],
)
def test_a_row_that_recovery_needs_is_named_as_it_is_stored(open_old: OpenOld, spoil: str, why: str) -> None:
    """The operator looks for the row of the old form."""
    old = open_old("schema-2", spoil=spoil)
    with pytest.raises(CorruptRowError, match=why):
        old.cluster.prove()


def test_a_row_of_the_new_form_that_was_added_decides_nothing(open_old: OpenOld) -> None:
    """Whoever writes the database cannot say that the store was renewed already."""
    spoil = "INSERT INTO control VALUES ('generation', '1', x'7b7d', zeroblob(32))"
    serving = open_old("schema-2", spoil=spoil).cluster.prove()
    assert serving.has_old_rows
    serving.release()


def test_rows_of_the_old_form_count_for_nothing_in_a_renewed_store(
    open_old: OpenOld, start_nexus: StartNexus, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """Also when those of the new form are gone."""
    old = open_old("schema-2")
    before = {(row.kind, row.name): row for row in old.cluster.load()[1]}
    core = start_nexus(old.cluster.keepers(), store=old.store)
    wait_until(lambda: is_renewed(core))
    core.close()

    for key in OLD_ROWS:
        row = before[key]
        tamper(tmp_path / "old", "INSERT INTO control VALUES (?, ?, ?, ?)", *key, row.body, row.digest)
    tamper(tmp_path / "old", "DELETE FROM control WHERE kind = 'generation'")
    with pytest.raises(CorruptRowError, match="generation/1 is missing"):
        old.cluster.prove()


def test_an_escrow_that_is_damaged_meanwhile_is_not_replaced(open_old: OpenOld, tmp_path: Path) -> None:
    """Nothing of it is lost: the rows stay, and so does what the manifest says of them."""
    old = open_old("schema-2")
    serving = old.cluster.prove()
    tamper(tmp_path / "old", "UPDATE control SET body = x'7b7d' WHERE kind = 'escrow'")
    before = old.cluster.load()[1]
    notes: list[str] = []
    renew_controls(old.store, serving, begin_epoch=lambda meta: meta, write_note=lambda _, text: notes.append(text))
    serving.release()
    assert [row for row in old.cluster.load()[1] if row.kind != "manifest"] == [
        row for row in before if row.kind != "manifest"
    ]
