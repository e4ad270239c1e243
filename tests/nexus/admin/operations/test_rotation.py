"""A rotation: a new root key with its KEK, escrow and link. What it shares with a reshare is tested for both."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import (
    CorruptRowError,
    DeniedError,
    InvalidArgumentError,
    OperationRefusedError,
    SealedError,
    UnavailableError,
    WrongRootKeyError,
)
from common.keys.protected import ProtectedMemory
from common.keys.recovery_key import escrow_info, open_sealed
from nexus.admin.operations.rotate_plan import RotatePlan
from nexus.keys import records
from nexus.keys.operation.record import Depth, Step
from nexus.keys.records import GenerationState, KekState
from nexus.lifecycle.states import State
from nexus.vault.expected import Expected
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.reshared import NEW_ID, Resharing
from tests.nexus.cluster import count_free, is_wiped, tamper
from tests.nexus.conftest import StartNexus
from tests.nexus.core import OPERATOR, SUPERUSER

ROTATE = pytest.mark.parametrize("resharing", [Depth.ROTATE], indirect=True)
EMERGENCY = pytest.mark.parametrize("resharing", [Depth.EMERGENCY], indirect=True)
WAIVED = RotatePlan(without_backup="drill")


def put(resharing: Resharing, value: bytes) -> None:
    """Write one secret."""
    resharing.core.vault.put(SUPERUSER, "team/a", {"value": value}, Expected(), os.urandom(16))


def get(resharing: Resharing) -> bytes:
    """Read it."""
    return resharing.core.vault.get(SUPERUSER, "team/a", 0).fields["value"]


def refuse(resharing: Resharing, plan: RotatePlan, reason: str = "") -> str:
    """Ask for a rotation that a check refuses; return its rule. Nothing has changed then, and nothing is kept."""
    before = resharing.cluster.load()
    with pytest.raises(OperationRefusedError) as refused:
        resharing.core.operations.rotate(SUPERUSER, NEW_ID, plan, reason, dry_run=False)
    assert resharing.cluster.load() == before
    return refused.value.reason


@ROTATE
def test_everything_that_the_old_key_opens_is_replaced(resharing: Resharing) -> None:
    """Rows of the old generation are gone but for its history; the KEK of before is wrapped under the new key."""
    put(resharing, b"before")
    view = resharing.begin()
    staged = resharing.facts.generations[2]
    assert (staged.state, staged.kcv) == (GenerationState.PENDING, view.kcv)
    assert resharing.facts.meta.generation == 1
    resharing.drive_to_rest()
    facts = resharing.facts
    assert (facts.generation, facts.meta.generation, facts.kek_id, facts.meta.kek_id) == (2, 2, 3, 3)
    assert {number: one.state for number, one in facts.generations.items()} == {
        1: GenerationState.DECRYPT_ONLY,
        2: GenerationState.ACTIVE,
    }
    assert facts.generations[2].without_backup == "drill"
    assert [facts.numbers(kind) for kind in (records.KEYRING, records.ESCROW, records.CANARY)] == [[2], [2], [3]]
    assert {name: kek.state for name, kek in facts.keyring.keks.items()} == {"2": KekState.OLD, "3": KekState.CURRENT}
    put(resharing, b"after")
    with resharing.cluster.store.read() as reader:
        assert reader.count_by_kek() == {2: 1, 3: 1}
    assert get(resharing) == b"after"


@ROTATE
def test_the_old_root_key_opens_the_store_no_more(resharing: Resharing) -> None:
    """Neither by what keepers gave for it, nor as a candidate for the new set."""
    resharing.begin()
    resharing.drive_to_rest()
    meta, rows = resharing.cluster.load()
    with pytest.raises((WrongRootKeyError, CorruptRowError)):
        resharing.cluster.prove_without_points().release()
    escrows = [row.body for row in rows if row.kind == records.ESCROW]
    copy = records.decode(records.EscrowRecord, escrows[0]).copies[0]
    opened = open_sealed(copy.sealed, bytes(32), escrow_info(meta.cluster_id, 2))
    assert opened == resharing.new_root_key != resharing.cluster.root_key


@ROTATE
def test_the_chain_leads_from_the_key_of_before(resharing: Resharing) -> None:
    """Its link names the flip, and is signed by nobody until then."""
    resharing.begin()
    resharing.drive_to(Step.DISTRIBUTED)
    assert resharing.facts.chain_length == 0
    resharing.drive_to(Step.FLIPPED)
    chain = resharing.core.lifecycle.require_serving().chain
    meta = resharing.facts.meta
    (link,) = chain.links
    assert (link.generation, link.revision, link.control_revision) == (2, meta.revision, meta.control_revision)
    assert resharing.facts.generations[2].flip_revision == link.revision
    assert chain.audit_public_key == resharing.core.lifecycle.require_serving().root_key.public_key


@ROTATE
def test_a_restart_has_the_new_key_from_the_keepers(resharing: Resharing, start_nexus: StartNexus) -> None:
    """With every value, whichever KEK it is under."""
    put(resharing, b"before")
    resharing.begin()
    resharing.drive_to_rest()
    resharing.core = start_nexus(resharing.keepers, store=resharing.store)
    wait_until(lambda: resharing.core.lifecycle.state is State.READY)
    assert resharing.core.lifecycle.require_serving().root_key.view == resharing.new_root_key
    assert get(resharing) == b"before"


@ROTATE
def test_the_old_key_is_wiped_once_its_last_borrower_is_back(resharing: Resharing) -> None:
    """A call that began before the flip still uses it; a seal would wipe it too."""
    serving = resharing.core.lifecycle.require_serving()
    old = serving.root_key
    resharing.begin()
    resharing.drive_to(Step.DISTRIBUTED)
    with resharing.core.lifecycle.borrow():
        resharing.drive_to(Step.FLIPPED)
        assert serving.root_key is not old
        resharing.core.driver.step()
        assert serving.replaced
        old.sign(b"in use")
    resharing.core.driver.step()
    assert not serving.replaced
    with pytest.raises(SealedError):
        old.sign(b"wiped")


@ROTATE
def test_a_seal_just_after_the_flip_wipes_what_was_replaced(resharing: Resharing, memory: ProtectedMemory) -> None:
    resharing.begin()
    resharing.drive_to(Step.FLIPPED)
    assert resharing.core.lifecycle.require_serving().replaced
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    resharing.core.driver.stop()
    assert is_wiped(memory)


@ROTATE
def test_an_abort_wipes_the_new_key(resharing: Resharing, memory: ProtectedMemory) -> None:
    """Its numbers stay used up, and its generation is remembered as aborted."""
    free = count_free(memory)
    resharing.begin()
    pending = resharing.core.lifecycle.require_serving().others.pending
    assert pending is not None
    assert pending.root_key is not None
    resharing.drive_to(Step.DISTRIBUTED)
    resharing.core.operations.abort(OPERATOR, NEW_ID, "no")
    resharing.drive_to_rest()
    with pytest.raises(SealedError):
        pending.root_key.sign(b"wiped")
    assert count_free(memory) == free
    assert resharing.facts.generations[2].state is GenerationState.ABORTED
    assert resharing.begin(operation_id=bytes(16)).record.target.generation == 3


@EMERGENCY
def test_an_emergency_taints_every_kek_of_before(resharing: Resharing) -> None:
    """Their values get new DEKs; the root key of before is compromised, with when that was suspected and found."""
    resharing.begin()
    resharing.drive_to_rest()
    facts = resharing.facts
    assert {name: kek.state for name, kek in facts.keyring.keks.items()} == {
        "2": KekState.TAINTED,
        "3": KekState.CURRENT,
    }
    assert facts.generations[1].state is GenerationState.COMPROMISED
    assert facts.generations[1].found_at > 0
    assert facts.generations[2].is_emergency


def test_without_a_backup_somebody_has_to_say_why(resharing: Resharing) -> None:
    """An emergency waits for none."""
    assert refuse(resharing, RotatePlan()) == "BACKUP_OLD"
    resharing.core.operations.rotate(SUPERUSER, NEW_ID, RotatePlan(is_emergency=True), "leaked", dry_run=False)
    assert resharing.step is Step.PREPARED


def test_an_emergency_or_a_forced_rotation_needs_a_reason(resharing: Resharing) -> None:
    assert refuse(resharing, RotatePlan(is_emergency=True)) == "REASON_MISSING"
    assert refuse(resharing, replace(WAIVED, is_forced=True)) == "REASON_MISSING"


def test_a_dry_run_makes_nothing(resharing: Resharing, memory: ProtectedMemory) -> None:
    """It shows every check, also those that refuse."""
    free, before = count_free(memory), resharing.cluster.load()
    checks, view = resharing.core.operations.rotate(OPERATOR, NEW_ID, RotatePlan(), "", dry_run=True)
    assert view is None
    assert [check.name for check in checks if check.reason] == ["backup"]
    assert {"escrow", "chain", "age", "keepers", "disk"} <= {check.name for check in checks}
    assert (count_free(memory), resharing.cluster.load()) == (free, before)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        pytest.param(RotatePlan(suspected_at=1), "suspected_since", id="suspected without an emergency"),
        pytest.param(RotatePlan(is_emergency=True, suspected_at=1 << 60), "suspected_since", id="suspected later"),
        pytest.param(RotatePlan(without_backup="x" * 257), "reason", id="long reason"),
    ],
)
def test_a_wrong_argument_is_named(resharing: Resharing, plan: RotatePlan, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        resharing.core.operations.rotate(SUPERUSER, NEW_ID, plan, "", dry_run=False)


@pytest.mark.parametrize("plan", [WAIVED, RotatePlan(is_forced=True)], ids=["without backup", "forced"])
def test_only_a_superuser_does_without_a_guard(resharing: Resharing, plan: RotatePlan) -> None:
    with pytest.raises(DeniedError, match="superuser"):
        resharing.core.operations.rotate(OPERATOR, NEW_ID, plan, "why", dry_run=False)
    assert resharing.operation is None


def test_a_rotation_without_a_way_back_is_refused(
    resharing: Resharing, start_nexus: StartNexus, tmp_path: Path
) -> None:
    """The recovery key that stands in the store is not the one of the chain."""
    tamper(tmp_path, "UPDATE control SET body = x'7b7d' WHERE kind = 'recovery-key'")
    resharing.core = start_nexus(resharing.keepers, store=resharing.store)
    wait_until(lambda: resharing.core.lifecycle.state is State.READY)
    assert refuse(resharing, WAIVED) in ("ESCROW_UNPROVED", "CONTROL_ROW_DAMAGED")


@ROTATE
def test_an_opener_that_fails_leaves_nothing(
    resharing: Resharing, memory: ProtectedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new key never left this process, and is wiped."""
    free, before = count_free(memory), resharing.cluster.load()
    monkeypatch.setattr("common.keys.opener.sys.executable", "/bin/false")
    with pytest.raises(UnavailableError):
        resharing.begin()
    assert (count_free(memory), resharing.cluster.load()) == (free, before)
    monkeypatch.undo()
    resharing.begin()


@ROTATE
def test_the_same_call_again_is_the_same_rotation(resharing: Resharing, memory: ProtectedMemory) -> None:
    """No second key is kept."""
    first = resharing.begin()
    free = count_free(memory)
    _, again = resharing.core.operations.rotate(SUPERUSER, NEW_ID, WAIVED, "", dry_run=False)
    assert again is not None
    assert (again.record, again.kcv, count_free(memory)) == (first.record, first.kcv, free)


@ROTATE
def test_every_line_of_the_audit_is_of_its_key(resharing: Resharing) -> None:
    """Changes of before, of and after the flip leave the outbox, none is refused, and none is missing."""
    put(resharing, b"before")
    resharing.begin()
    resharing.drive_to(Step.FLIPPED)
    put(resharing, b"after")
    resharing.drive_to_rest()
    core = resharing.core
    core.exporter.export()
    core.exporter.discard()
    assert (resharing.actions(), [alarm.count for alarm in core.exporter.alarms]) == ([], [0, 0])


def test_a_key_that_people_brought_back_is_remembered_as_such(resharing: Resharing, start_nexus: StartNexus) -> None:
    """So that it is said that it is due; keepers bring it back without that."""
    assert resharing.facts.generations[1].people_had_it_at == 0
    for keeper in resharing.keepers:
        keeper.is_reachable = False
    resharing.core = start_nexus(resharing.keepers, store=resharing.store)
    assert resharing.core.warden.admit(resharing.prove_as_custodians(), lambda writer, key: None)
    assert resharing.facts.generations[1].people_had_it_at > 0


@ROTATE
def test_a_key_that_was_staged_before_is_wiped_when_another_one_is_staged(resharing: Resharing) -> None:
    """The driver has not looked since the first operation was taken back."""
    resharing.begin()
    serving = resharing.core.lifecycle.require_serving()
    first = serving.others.pending
    assert first is not None
    assert first.root_key is not None
    resharing.core.operations.abort(OPERATOR, NEW_ID, "no")
    resharing.begin(operation_id=bytes(16))
    assert serving.others.pending is not first
    with pytest.raises(SealedError):
        first.root_key.sign(b"wiped")
