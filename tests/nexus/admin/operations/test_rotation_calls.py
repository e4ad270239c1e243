"""Pause, resume and history, as people ask for them: authorised, audited, and kept in the store."""

import pytest

from common.errors import DeniedError, InvalidArgumentError, SealedError, StoreUnavailableError
from nexus.access.gate import Caller
from nexus.keys.operation.settings import SETTINGS, RotationSettings, find_hold
from nexus.keys.records import GenerationState, decode
from tests.nexus.admin.operations.reshared import Resharing
from tests.nexus.cluster import tamper
from tests.nexus.core import APP, AUDITOR, KEEPER, NEXUS, OPERATOR, RECOVER, SUPERUSER


def test_a_pause_is_kept_in_the_store_with_its_reason(resharing: Resharing) -> None:
    """The entry is a part of the change; the newest reason counts."""
    calls, core = resharing.core.rotation_calls, resharing.core
    calls.pause(OPERATOR, "audit week")
    calls.pause(SUPERUSER, "freeze")
    hold = decode(RotationSettings, resharing.facts.bodies[SETTINGS]).hold
    assert hold is not None
    assert (hold.reason, hold.actor) == ("freeze", SUPERUSER.spiffe_id)
    assert find_hold(resharing.facts) == f"freeze ({SUPERUSER.spiffe_id})"
    entries = [entry for _, entry in core.list_change_entries()]
    assert [(entry.actor, entry.action, entry.detail) for entry in entries] == [
        (OPERATOR.spiffe_id, "root.pause", "audit week"),
        (SUPERUSER.spiffe_id, "root.pause", "freeze"),
    ]


def test_a_pause_ends(resharing: Resharing) -> None:
    """The entry says what was paused; when nothing was, only the entry is written."""
    calls = resharing.core.rotation_calls
    calls.pause(OPERATOR, "freeze")
    calls.resume(SUPERUSER)
    assert find_hold(resharing.facts) == ""
    before = resharing.facts.meta.control_revision
    calls.resume(OPERATOR)
    assert resharing.facts.meta.control_revision == before
    entries = [entry for _, entry in resharing.core.list_change_entries()]
    assert [(entry.action, entry.detail) for entry in entries] == [
        ("root.pause", "freeze"),
        ("root.resume", f"freeze ({OPERATOR.spiffe_id})"),
        ("root.resume", ""),
    ]


def test_a_pause_that_was_tampered_with_holds_until_it_is_ended(resharing: Resharing) -> None:
    """Whoever can write into the store ends no hold."""
    calls = resharing.core.rotation_calls
    calls.pause(OPERATOR, "freeze")
    tamper(resharing.core.folder, "UPDATE control SET body = x'7b7d' WHERE kind = ?", SETTINGS[0])
    assert find_hold(resharing.facts) == "control row settings/rotation does not verify"
    calls.resume(OPERATOR)
    assert find_hold(resharing.facts) == ""


def test_an_operation_in_progress_goes_on(resharing: Resharing) -> None:
    """A pause raises no epoch, so no step of it is refused, and no mark has to be given again."""
    resharing.begin()
    epoch = resharing.facts.meta.epoch
    resharing.core.rotation_calls.pause(OPERATOR, "freeze")
    assert resharing.facts.meta.epoch == epoch
    resharing.drive_to_rest()
    resharing.core.rotation_calls.resume(OPERATOR)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        pytest.param("", "reason: got nothing", id="none"),
        pytest.param("  ", "reason: got nothing", id="blanks"),
        pytest.param("x" * 257, "reason: got 257 characters", id="long"),
        pytest.param("two\nlines", "reason: got 9 characters", id="two lines"),
    ],
)
def test_a_pause_needs_a_reason(resharing: Resharing, reason: str, message: str) -> None:
    """One line that says why; nothing changes without."""
    before = resharing.cluster.load()
    with pytest.raises(InvalidArgumentError, match=message):
        resharing.core.rotation_calls.pause(OPERATOR, reason)
    assert resharing.cluster.load() == before


@pytest.mark.parametrize("caller", [RECOVER, AUDITOR, NEXUS, KEEPER, APP], ids=lambda caller: caller.role)
def test_only_operators_and_superusers_pause_and_resume(resharing: Resharing, caller: Caller) -> None:
    """Auditors see the history besides; each denial is audited, and changes nothing."""
    calls, before = resharing.core.rotation_calls, resharing.cluster.load()
    with pytest.raises(DeniedError, match="operator or superuser"):
        calls.pause(caller, "freeze")
    with pytest.raises(DeniedError, match="operator or superuser"):
        calls.resume(caller)
    if caller is not AUDITOR:
        with pytest.raises(DeniedError, match="auditor or operator or superuser"):
            calls.history(caller)
    assert resharing.cluster.load() == before
    entries = [entry for entry in resharing.core.list_entries() if entry.actor == caller.spiffe_id]
    assert [(entry.action, entry.decision) for entry in entries][:2] == [
        ("root.pause", "deny"),
        ("root.resume", "deny"),
    ]


def test_a_pause_that_cannot_be_committed_is_none(resharing: Resharing) -> None:
    """The caller hears of it."""
    resharing.store.cannot_commit = True
    with pytest.raises(StoreUnavailableError):
        resharing.core.rotation_calls.pause(OPERATOR, "freeze")
    resharing.store.cannot_commit = False
    assert find_hold(resharing.facts) == ""


@pytest.mark.parametrize("caller", [SUPERUSER, OPERATOR, AUDITOR], ids=lambda caller: caller.role)
def test_the_history_has_every_generation(resharing: Resharing, caller: Caller) -> None:
    """From the first one, with its kcv and when it began."""
    history = resharing.core.rotation_calls.history(caller)
    ((number, record),) = history.items()
    with resharing.core.lifecycle.borrow() as serving:
        assert (number, record.kcv) == (serving.root_key.generation, serving.root_key.kcv)
    assert record.state is GenerationState.ACTIVE
    assert resharing.core.list_entries()[-1].action == "root.history"


def test_a_sealed_nexus_refuses(resharing: Resharing) -> None:
    """It has no key to change rows with."""
    calls = resharing.core.rotation_calls
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    with pytest.raises(SealedError):
        calls.pause(OPERATOR, "x")
    with pytest.raises(SealedError):
        calls.resume(OPERATOR)
    with pytest.raises(SealedError):
        calls.history(OPERATOR)
