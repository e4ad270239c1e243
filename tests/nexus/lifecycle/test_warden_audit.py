"""The warden before audit files that are not those that the store remembers: blocked, accepted."""

import os
from pathlib import Path

import pytest

from common.errors import (
    AuditUnavailableError,
    DeniedError,
    InvalidArgumentError,
    RecoveringError,
    StoreUnavailableError,
    WrongStateError,
)
from common.keys.protected import ProtectedMemory
from nexus.access.gate import Caller
from nexus.keys.root_key import RootKey
from nexus.lifecycle.states import State
from nexus.store.protocol import Writer
from nexus.vault.expected import Expected
from tests.nexus.cluster import FoundCluster, FoundedCluster, is_wiped
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.core import APP, AUDITOR, OPERATOR, RECOVER, SUPERUSER, NexusCore
from tests.nexus.failing_store import FailingStore

GAP = "the audit files do not reach line"


class Blocked:
    """A nexus that starts on an empty audit directory, beside a store that has exported before."""

    def __init__(self, cluster: FoundedCluster, folder: Path, start: StartNexus, wait_until: WaitUntil) -> None:
        self.cluster = cluster
        self.keepers = cluster.keepers()
        self.store = FailingStore(cluster.store)
        first = start(self.keepers)
        wait_until(lambda: first.lifecycle.state is State.READY)
        put(first)
        first.exporter.export()
        first.exporter.discard()
        first.close()
        for file in folder.glob("*.jsonl"):
            file.unlink()
        self.core: NexusCore = start(self.keepers, store=self.store)
        wait_until(lambda: self.core.warden.list_obstacles()[0].startswith(GAP))


def put(core: NexusCore) -> int:
    return core.vault.put(SUPERUSER, "a", {"value": b"v"}, Expected(), os.urandom(16)).revision


@pytest.fixture
def blocked(found: FoundCluster, tmp_path: Path, start_nexus: StartNexus, wait_until: WaitUntil) -> Blocked:
    """By its audit."""
    return Blocked(found(), tmp_path, start_nexus, wait_until)


def test_it_is_blocked_and_serves_nothing(blocked: Blocked) -> None:
    """The proved key is held, and status names what is missing and what to do."""
    core = blocked.core
    assert core.lifecycle.state is State.RECOVERING
    assert core.states == []
    with pytest.raises(RecoveringError):
        core.vault.get(SUPERUSER, "a", 0)
    view = core.status.describe(AUDITOR)[1]
    assert view is not None
    (obstacle,) = view.blocked_by
    assert obstacle.startswith(GAP)
    assert "'pilot audit accept-new-chain'" in obstacle


@pytest.mark.parametrize("caller", [SUPERUSER, OPERATOR], ids=lambda caller: caller.role)
def test_a_new_chain_is_accepted(
    blocked: Blocked, start_nexus: StartNexus, wait_until: WaitUntil, caller: Caller
) -> None:
    """Its first entry says who, why and what is missing; a restart is not blocked again."""
    core = blocked.core
    position = core.audit_access.accept_new_chain(caller, "the disk died")
    assert core.lifecycle.state is State.READY
    (entry,) = [entry for entry in core.list_entries() if entry.action == "audit.new-chain"]
    assert (entry.actor, entry.detail[:15]) == (caller.spiffe_id, "the disk died: ")
    assert GAP in entry.detail
    assert core.audit.find_digest(position.timeline, position.seq) == position.digest
    put(core)
    again = start_nexus(blocked.keepers)
    wait_until(lambda: again.lifecycle.state is State.READY)
    again.exporter.export()
    assert [alarm.count for alarm in again.exporter.alarms] == [0, 0]


@pytest.mark.parametrize("caller", [RECOVER, AUDITOR, APP], ids=lambda caller: caller.role)
def test_nobody_else_accepts(blocked: Blocked, caller: Caller) -> None:
    """Whoever only reads, or only submits shares, does not decide."""
    with pytest.raises(DeniedError):
        blocked.core.audit_access.accept_new_chain(caller, "x")
    assert blocked.core.lifecycle.state is State.RECOVERING


@pytest.mark.parametrize("reason", ["", "x" * 257, "a\nb"])
def test_a_reason_is_needed(blocked: Blocked, reason: str) -> None:
    """It becomes part of the audit."""
    with pytest.raises(InvalidArgumentError, match="reason: got"):
        blocked.core.audit_access.accept_new_chain(SUPERUSER, reason)


def test_what_cannot_be_committed_stays_blocked(blocked: Blocked) -> None:
    """Nothing is served, and the next word of an operator is taken."""
    blocked.store.cannot_commit = True
    with pytest.raises(StoreUnavailableError):
        blocked.core.audit_access.accept_new_chain(OPERATOR, "x")
    assert blocked.core.lifecycle.state is State.RECOVERING
    blocked.store.cannot_commit = False
    blocked.core.audit_access.accept_new_chain(OPERATOR, "x")
    assert blocked.core.states == [State.READY]


def test_a_newer_mark_comes_first(blocked: Blocked, wait_until: WaitUntil) -> None:
    """Accepting an older store begins a new timeline, whose chain needs no word of its own."""
    core, cluster = blocked.core, blocked.cluster
    blocked.keepers[1].marks.append(cluster.sign_mark(1, 60))
    blocked.keepers[1].boot_id = os.urandom(16)
    wait_until(lambda: core.warden.find_newer_mark() is not None)
    with pytest.raises(WrongStateError, match="older than a mark"):
        core.audit_access.accept_new_chain(OPERATOR, "x")
    meta = cluster.load()[0]
    assert core.seal.accept_older_store(SUPERUSER, meta.timeline, meta.revision) == 2
    assert core.lifecycle.state is State.READY


def test_custodians_are_blocked_too(blocked: Blocked, start_nexus: StartNexus) -> None:
    """A key of theirs is held; the acceptance clears the seal and draws a new set."""
    blocked.core.warden.seal(no_entry, seconds=5)
    core = start_nexus(blocked.keepers)
    assert core.lifecycle.state is State.SEALED
    assert not core.warden.admit(blocked.cluster.prove_without_points(), no_entry, asked_in=State.SEALED)
    assert core.warden.list_obstacles()[0].startswith(GAP)
    assert blocked.cluster.load()[0].sealed
    core.audit_access.accept_new_chain(OPERATOR, "x")
    assert not blocked.cluster.load()[0].sealed
    assert core.states == [State.RECOVERING, State.READY]


def displace(core: NexusCore) -> None:
    """Take its audit files away while it runs."""
    for file in core.folder.glob("*.jsonl"):
        file.unlink()
    with pytest.raises(AuditUnavailableError):
        core.audit.sync()
    assert core.audit.is_displaced


def no_entry(writer: Writer, key: RootKey) -> None:
    """Write none."""


def test_a_sealed_nexus_that_lost_its_audit_can_be_unsealed(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """A chain begins without a key, so that custodians are heard; with the key, the gap blocks until it is accepted."""
    cluster = found()
    core = start_nexus(cluster.keepers())
    wait_until(lambda: core.lifecycle.state is State.READY)
    put(core)
    core.exporter.export()
    core.exporter.discard()
    core.seal.seal(OPERATOR, "", seconds=5)
    with pytest.raises(WrongStateError, match="nothing to accept"):
        core.audit_access.accept_new_chain(OPERATOR, "x")
    displace(core)
    head = core.audit_access._continuity.load_head()
    with pytest.raises(AuditUnavailableError):
        core.audit_access.tail(AUDITOR, None, after=None, limit=0, wait_s=0)
    core.audit_access.accept_new_chain(OPERATOR, "the disk died")
    assert core.audit_access._continuity.load_head() == head
    began, said = core.list_entries()
    assert (began.action, began.detail[:15]) == ("audit.new-chain", "the disk died: ")
    assert (said.action, said.outcome) == ("audit.accept-new-chain", "ok")
    core.audit_access.tail(AUDITOR, None, after=None, limit=0, wait_s=0)
    assert not core.warden.admit(cluster.prove_without_points(), no_entry, asked_in=State.SEALED)
    assert "'pilot audit accept-new-chain'" in core.warden.list_obstacles()[0]
    core.audit_access.accept_new_chain(OPERATOR, "x")
    assert core.lifecycle.state is State.READY


def test_a_recovering_nexus_that_lost_its_audit_accepts_too(found: FoundCluster, start_nexus: StartNexus) -> None:
    """No key is there, and none is needed."""
    keepers = found().keepers()
    for keeper in keepers:
        keeper.is_reachable = False
    core = start_nexus(keepers)
    displace(core)
    core.audit_access.accept_new_chain(OPERATOR, "x")
    assert not core.audit.failing
    assert core.states == []


def test_a_lost_audit_does_not_keep_an_older_store_from_being_accepted(blocked: Blocked, wait_until: WaitUntil) -> None:
    """The chain begins anew without a word of the store; then the older store is accepted as ever."""
    core, cluster = blocked.core, blocked.cluster
    blocked.keepers[1].marks.append(cluster.sign_mark(1, 60))
    blocked.keepers[1].boot_id = os.urandom(16)
    wait_until(lambda: core.warden.find_newer_mark() is not None)
    displace(core)
    meta = cluster.load()[0]
    with pytest.raises(AuditUnavailableError):
        core.seal.accept_older_store(SUPERUSER, meta.timeline, meta.revision)
    core.audit_access.accept_new_chain(OPERATOR, "x")
    assert core.seal.accept_older_store(SUPERUSER, meta.timeline, meta.revision) == 2
    assert core.lifecycle.state is State.READY


def test_a_held_key_is_wiped_at_the_end(blocked: Blocked, memory: ProtectedMemory) -> None:
    """It was never served."""
    blocked.core.close()
    assert is_wiped(memory)


def test_with_nothing_missing_there_is_nothing_to_accept(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """Neither ready nor while keys are awaited."""
    keepers = found().keepers()
    for keeper in keepers:
        keeper.go.clear()
    core = start_nexus(keepers)
    with pytest.raises(WrongStateError, match="nothing to accept"):
        core.audit_access.accept_new_chain(OPERATOR, "x")
    for keeper in keepers:
        keeper.go.set()
    wait_until(lambda: core.lifecycle.state is State.READY)
    with pytest.raises(WrongStateError, match="nothing to accept"):
        core.audit_access.accept_new_chain(OPERATOR, "x")
