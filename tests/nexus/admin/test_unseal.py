"""Unseal: custodians, one by one, until the escrow opens."""

import os
from collections.abc import Callable
from datetime import timedelta

import pytest

from common.errors import DeniedError, RecoveringError, SealedError, WrongStateError
from common.keys.protected import ProtectedMemory
from nexus.access.gate import Caller
from nexus.admin.unseal import SESSION_S, Submitted
from nexus.keys import records
from nexus.lifecycle.states import State
from nexus.vault.expected import Expected
from tests.nexus.cluster import FoundCluster, count_free, is_wiped
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.core import APP, AUDITOR, KEEPER, NEXUS, OPERATOR, RECOVER, SUPERUSER
from tests.nexus.custodians import KEY, Lost, custodian, submit
from tests.nexus.played_keepers import PlayedKeeper

ANN, BEN, EVE = custodian("ann"), custodian("ben"), custodian("eve")


@pytest.mark.parametrize("state", [State.RECOVERING, State.SEALED])
def test_a_threshold_of_shares_brings_the_nexus_back(lost: Lost, memory: ProtectedMemory, state: State) -> None:
    """An unseal makes a new set in one change with one entry, and leaves nothing of shares or session."""
    lost.restart(sealed=state is State.SEALED)
    revision = lost.meta.revision
    session = lost.core.unseal.start(ANN)
    assert (session.submitted, session.needed, session.expires_in) == (0, 2, SESSION_S)
    assert lost.submit(session, 3, ANN) == Submitted(3, 1, 2, ready=False)
    assert lost.core.lifecycle.state is state
    assert lost.core.unseal.count() == (1, 2)
    assert lost.submit(session, 1, BEN) == Submitted(1, 2, 2, ready=True)
    assert lost.core.states == [State.READY]
    assert lost.core.lifecycle.require_serving().root_key.view == lost.cluster.root_key
    assert lost.core.unseal.count() is None
    assert (lost.meta.sealed, lost.meta.revision, lost.meta.last_set_number) == (False, revision + 1, 2)
    assert lost.load_sets() == {1: records.SetState.DEAD, 2: records.SetState.CURRENT}
    ((_, entry),) = lost.core.list_change_entries()
    assert (entry.actor, entry.action, entry.detail) == (BEN.spiffe_id, "unseal.submit", "share 1")
    submitted = [entry for entry in lost.core.list_entries() if entry.action == "unseal.submit"]
    assert [(entry.actor, entry.detail, entry.outcome) for entry in submitted] == [(ANN.spiffe_id, "share 3", "ok")]
    lost.core.close()
    assert is_wiped(memory)


def test_empty_keepers_are_filled_after_an_unseal_and_bring_the_nexus_back_the_next_time(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """Ready does not wait for them; secrets are as they were."""
    cluster = found(recovery=KEY.record, seal_escrow=KEY.seal_escrow)
    core = start_nexus(cluster.keepers())
    wait_until(lambda: core.lifecycle.state is State.READY)
    core.vault.put(SUPERUSER, "a", {"value": b"v"}, Expected(0), os.urandom(16))
    keepers = [PlayedKeeper(f"keeper-{i}") for i in range(1, 6)]
    for keeper in keepers:
        keeper.is_reachable = False
    core = start_nexus(keepers)
    session = core.unseal.start(ANN)
    submit(core, ANN, session, KEY.shares[0])
    assert submit(core, BEN, session, KEY.shares[1]).ready
    assert core.vault.get(SUPERUSER, "a", 0).fields == {"value": b"v"}
    for keeper in keepers:
        keeper.is_reachable = True
    assert core.pool.wait_holders(5, seconds=10) == 5
    core = start_nexus(keepers)
    wait_until(lambda: core.states == [State.READY])
    assert core.vault.get(SUPERUSER, "a", 0).fields == {"value": b"v"}


def test_a_nexus_that_died_before_the_threshold_starts_anew(lost: Lost) -> None:
    """It says what is missing, and takes shares again; nothing was stored of the first ones."""
    before = lost.cluster.load()
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    lost.restart()
    assert lost.cluster.load() == before
    material, view = lost.core.unseal.describe(AUDITOR)
    assert view is None
    assert (material.recovery.threshold, len(material.recovery.shares)) == (2, 3)
    with pytest.raises(WrongStateError, match="no such session"):
        lost.submit(session, 2)
    session = lost.core.unseal.start(BEN)
    lost.submit(session, 2)
    assert lost.submit(session, 1) == Submitted(1, 2, 2, ready=True)


def test_one_session_at_a_time(lost: Lost) -> None:
    """A second one would scatter the shares; whoever asks is told to join."""
    lost.core.unseal.start(ANN)
    with pytest.raises(WrongStateError, match="join it, or have it reset"):
        lost.core.unseal.start(BEN)
    assert lost.core.unseal.count() == (0, 2)


def test_a_session_expires_with_its_shares(lost: Lost, memory: ProtectedMemory) -> None:
    """After 15 minutes of the monotonic clock, whether somebody asks or not; then another one can be opened."""
    free = count_free(memory)
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    lost.clock.advance(SESSION_S - 1)
    lost.core.unseal.expire()
    assert lost.core.unseal.describe(OPERATOR)[1] is not None
    lost.clock.advance(1)
    lost.core.unseal.expire()
    assert lost.core.unseal.count() is None
    assert count_free(memory) == free
    with pytest.raises(WrongStateError, match="no such session"):
        lost.submit(session, 2)
    assert lost.core.unseal.start(BEN).submitted == 0


def test_a_call_finds_out_by_itself_that_the_session_expired(lost: Lost, memory: ProtectedMemory) -> None:
    """Nobody looked after it in between."""
    free = count_free(memory)
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    lost.clock.advance(SESSION_S)
    with pytest.raises(WrongStateError, match="no such session"):
        lost.submit(session, 2)
    assert count_free(memory) == free


@pytest.mark.parametrize("state", [State.READY, State.SEALED])
def test_a_session_ends_with_the_state_that_it_was_opened_in(lost: Lost, memory: ProtectedMemory, state: State) -> None:
    """Keepers came back, or an operator shut the door: its shares are wiped at the next look."""
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    if state is State.READY:
        lost.core.warden.admit(lost.cluster.prove())
    else:
        lost.core.seal.seal(OPERATOR, "", seconds=0)
    lost.core.unseal.expire()
    assert lost.core.unseal.count() is None
    with pytest.raises(WrongStateError):
        lost.submit(session, 2)
    lost.core.close()
    assert is_wiped(memory)


def test_a_seal_in_the_middle_of_the_last_share_stays(lost: Lost, memory: ProtectedMemory) -> None:
    """A key that was asked for before the seal is not admitted after it."""
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    last = lost.prepare(session, 2)
    lost.store.at_read = lambda: lost.core.warden.seal(lambda writer, key: None, seconds=0)  # behind the opener
    with pytest.raises(WrongStateError, match="sealed meanwhile"):
        last()
    assert lost.core.states == [State.SEALED]
    lost.core.unseal.expire()
    lost.core.close()
    assert is_wiped(memory)


@pytest.mark.parametrize("caller", [ANN, OPERATOR, SUPERUSER], ids=["starter", "operator", "superuser"])
def test_who_may_reset_a_session(lost: Lost, memory: ProtectedMemory, caller: Caller) -> None:
    """Its shares are wiped, and counted."""
    free = count_free(memory)
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    assert lost.core.unseal.reset(caller, session.session_id) == 1
    assert count_free(memory) == free
    with pytest.raises(WrongStateError, match="no such session"):
        lost.core.unseal.reset(caller, session.session_id)


@pytest.mark.parametrize(
    "caller", [BEN, AUDITOR, NEXUS, KEEPER, APP], ids=["another custodian", "auditor", "nexus", "keeper", "workload"]
)
def test_a_strangers_reset_is_refused(lost: Lost, caller: Caller) -> None:
    """A stranger's reset is audited as a denial, and the session goes on."""
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    with pytest.raises(DeniedError, match=r"needs role operator or (recover or )?superuser"):
        lost.core.unseal.reset(caller, session.session_id)
    (denial,) = [entry for entry in lost.core.list_entries() if entry.decision == "deny"]
    assert (denial.actor, denial.action) == (caller.spiffe_id, "unseal.reset")
    assert lost.submit(session, 2, BEN).ready


@pytest.mark.parametrize("caller", [AUDITOR, NEXUS, KEEPER, APP], ids=lambda caller: caller.role)
def test_who_may_not_submit(lost: Lost, caller: Caller) -> None:
    """A caller who may not submit can neither start a session, nor get a key, nor send a share."""
    session = lost.core.unseal.start(ANN)
    with pytest.raises(DeniedError):
        lost.core.unseal.start(caller)
    with pytest.raises(DeniedError):
        lost.core.unseal.state_key(caller, session.session_id, os.urandom(32))
    with pytest.raises(DeniedError):
        lost.core.unseal.submit(caller, session.session_id, bytes(32), bytes(114))
    assert lost.core.unseal.count() == (0, 2)


def test_others_see_how_a_session_stands_and_not_who_started_it(lost: Lost) -> None:
    """Counts and time; the starter is for itself and for who may reset."""
    lost.core.unseal.start(ANN)
    lost.clock.advance(60)
    told = {}
    for caller in (ANN, BEN, OPERATOR, SUPERUSER, AUDITOR, RECOVER):
        material, view = lost.core.unseal.describe(caller)
        assert view is not None
        assert (view.submitted, view.needed, view.expires_in) == (0, 2, SESSION_S - 60)
        assert material.genesis.fingerprint == lost.cluster.genesis
        told[caller.spiffe_id] = view.started_by
    assert [caller for caller, started_by in told.items() if started_by] == [
        one.spiffe_id for one in (ANN, OPERATOR, SUPERUSER)
    ]
    with pytest.raises(DeniedError):
        lost.core.unseal.describe(APP)


def test_a_ready_nexus_has_no_session(lost: Lost) -> None:
    """Every call of it is refused by the state."""
    lost.core.warden.admit(lost.cluster.prove())
    calls: list[Callable[[], object]] = [
        lambda: lost.core.unseal.start(ANN),
        lambda: lost.core.unseal.describe(ANN),
        lambda: lost.core.unseal.reset(ANN, bytes(16)),
        lambda: lost.core.unseal.state_key(ANN, bytes(16), bytes(32)),
        lambda: lost.core.unseal.submit(ANN, bytes(16), bytes(32), b""),
    ]
    for call in calls:
        with pytest.raises(WrongStateError, match="in state ready"):
            call()


def test_a_sealed_nexus_serves_no_secret_during_an_unseal(lost: Lost) -> None:
    """A sealed nexus serves no secret before the last share."""
    for sealed, error in ((False, RecoveringError), (True, SealedError)):
        lost.restart(sealed=sealed)
        lost.submit(lost.core.unseal.start(ANN), 1)
        with pytest.raises(error):
            lost.core.vault.get(SUPERUSER, "a", 0)


def test_status_counts_the_shares(lost: Lost) -> None:
    """Status counts the shares and never says whose they are."""
    view = lost.core.status.describe(AUDITOR)[1]
    assert view is not None
    assert view.unseal is None
    lost.submit(lost.core.unseal.start(ANN), 2)
    view = lost.core.status.describe(AUDITOR)[1]
    assert view is not None
    assert view.unseal == (1, 2)


def test_a_newer_mark_ends_the_session_with_a_nexus_that_is_blocked(
    lost: Lost, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """The last share is answered with "not ready"; the proved key is held for the acceptance."""
    lost.restart(sealed=True)
    lost.core.close()
    keeper = PlayedKeeper("keeper-1")
    keeper.marks.append(lost.cluster.sign_mark(1, 60))
    core = start_nexus([keeper])
    session = core.unseal.start(ANN)
    submit(core, ANN, session, KEY.shares[0])
    assert submit(core, ANN, session, KEY.shares[1]) == Submitted(2, 2, 2, ready=False)
    assert core.unseal.count() is None
    assert core.lifecycle.state is State.RECOVERING
    meta = lost.meta
    assert meta.sealed
    assert "older than a rollback mark" in core.warden.list_obstacles()[0]
    assert core.seal.accept_older_store(SUPERUSER, meta.timeline, meta.revision) == 2
    assert core.states == [State.RECOVERING, State.READY]
    assert not lost.meta.sealed


def test_the_clock_of_a_session_is_not_the_wall(lost: Lost) -> None:
    """It is set forward, or back: nothing expires, and nothing lasts longer."""
    session = lost.core.unseal.start(ANN)
    lost.clock.offset = timedelta(hours=1)
    lost.core.unseal.expire()
    lost.submit(session, 1)
    lost.clock.offset = timedelta(hours=-1)
    assert lost.submit(session, 2) == Submitted(2, 2, 2, ready=True)
