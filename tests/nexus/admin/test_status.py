"""What the nexus says of itself, to whom."""

from pathlib import Path

import pytest

from common.errors import DeniedError, RecoveringError
from common.keys.protected import ProtectedMemory
from nexus.access.gate import Caller
from nexus.admin.status import ClusterFacts, ClusterView, OperationStep
from nexus.lifecycle.states import State
from nexus.store.protocol import Store
from tests.nexus.cluster import FoundCluster
from tests.nexus.conftest import MakeNexus, WaitUntil
from tests.nexus.core import APP, AUDITOR, KEEPER, NEXUS, OPERATOR, RECOVER, SUPERUSER, NexusCore
from tests.nexus.failing_store import FailingStore
from tests.nexus.founder import answer, begin

PEOPLE = [SUPERUSER, OPERATOR, RECOVER, AUDITOR]


def describe(core: NexusCore, caller: Caller = OPERATOR) -> ClusterView:
    view = core.status.describe(caller)[1]
    assert view is not None
    return view


@pytest.mark.parametrize("caller", [NEXUS, KEEPER, APP], ids=lambda caller: caller.role)
def test_any_caller_learns_the_state_and_nothing_else(make_nexus: MakeNexus, caller: Caller) -> None:
    """A workload sees neither cluster nor keepers in the status, and its call is audited."""
    nexus = make_nexus()
    assert nexus.status.describe(caller) == (State.READY, None)
    (entry,) = nexus.list_entries()
    assert (entry.actor, entry.action, entry.outcome) == (caller.spiffe_id, "status.get", "ok")


@pytest.mark.parametrize("caller", PEOPLE, ids=lambda caller: caller.role)
def test_every_role_of_people_sees_a_ready_cluster_whole(
    make_nexus: MakeNexus, wait_until: WaitUntil, caller: Caller
) -> None:
    """Set, keepers with their faults, revision; nothing blocks."""
    nexus = make_nexus()
    nexus.keepers["keeper-2"].lies = True
    nexus.keepers["keeper-3"].is_reachable = False
    nexus.pool.start()
    wait_until(lambda: [bool(seat.status.fault) for seat in nexus.pool.seats] == [False, True, True])
    wait_until(lambda: nexus.pool.count_holders() == 1)
    state, _ = nexus.status.describe(caller)
    view = describe(nexus, caller)
    assert state is State.READY
    assert view.blocked_by == []
    serving = nexus.lifecycle.require_serving()
    assert view.facts == ClusterFacts(serving.genesis.fingerprint, serving.shard_set.record, serving.recovery)
    assert view.meta.cluster_id == serving.cluster_id
    assert view.memory_protection == nexus.memory.level
    assert view.operation is None
    assert [keeper.x for keeper in view.keepers] == [1, 2, 3]
    assert [keeper.status.reachable for keeper in view.keepers] == [True, True, False]
    assert [keeper.status.holds_current_set for keeper in view.keepers] == [True, False, False]
    honest, liar, absent = (keeper.status.fault for keeper in view.keepers)
    assert honest == ""
    assert "lies" in liar
    assert "does not answer" in absent


def test_before_the_first_init_there_is_nothing_to_see_but_keepers(core: NexusCore) -> None:
    """No cluster, no set, no x."""
    state, view = core.status.describe(SUPERUSER)
    assert state is State.UNINITIALISED
    assert view is not None
    assert view.blocked_by == ["the nexus is uninitialised"]
    assert (view.facts, view.operation, view.meta.cluster_id) == (None, None, b"")
    assert [keeper.x for keeper in view.keepers] == [0, 0, 0]


def test_an_init_in_progress_is_an_operation(core: NexusCore) -> None:
    """It waits for its proof, or is void."""
    begun = begin(core)
    assert describe(core).operation == OperationStep("init", "attempt 1 waits for its proof")
    core.initialisation.abort(SUPERUSER, begun.attempt)
    assert describe(core).operation == OperationStep(
        "init", "attempt 1 is void: destroy its recovery shares and begin again"
    )
    begun = begin(core)
    core.initialisation.confirm(SUPERUSER, begun.attempt, answer(begun), seconds=0)
    assert describe(core).operation is None


def test_a_recovering_nexus_says_what_blocks_it(
    found: FoundCluster, store: Store, memory: ProtectedMemory, tmp_path: Path
) -> None:
    """Status tells what the store says, without a root key; the list of keepers does not."""
    cluster = found()
    core = NexusCore(tmp_path, store, memory, cluster.keepers())
    state, view = core.status.describe(AUDITOR)
    assert state is State.RECOVERING
    assert view is not None
    assert view.facts is not None
    assert (view.facts.genesis, view.facts.shard_set) == (cluster.genesis, cluster.record)
    assert view.blocked_by == ["the nexus is recovering"]
    with pytest.raises(RecoveringError):
        core.status.list_keepers(AUDITOR)
    core.close()


@pytest.mark.parametrize("caller", [SUPERUSER, OPERATOR, AUDITOR], ids=lambda caller: caller.role)
def test_keepers_are_listed_for_who_runs_or_audits_the_cluster(make_nexus: MakeNexus, caller: Caller) -> None:
    """Each keeper is listed with its exact SPIFFE ID and x."""
    nexus = make_nexus()
    views = nexus.status.list_keepers(caller)
    assert [(view.member.name, view.x) for view in views] == [("keeper-1", 1), ("keeper-2", 2), ("keeper-3", 3)]
    assert views[0].member.spiffe_id == "spiffe://example.org/shardhold/keeper/keeper-1"
    (entry,) = nexus.list_entries()
    assert (entry.action, entry.decision) == ("keeper.list", "allow")


@pytest.mark.parametrize("caller", [RECOVER, NEXUS, KEEPER, APP], ids=lambda caller: caller.role)
def test_nobody_else_lists_keepers(make_nexus: MakeNexus, caller: Caller) -> None:
    """Denied and audited."""
    nexus = make_nexus()
    with pytest.raises(DeniedError, match="auditor or operator or superuser"):
        nexus.status.list_keepers(caller)
    (entry,) = nexus.list_entries()
    assert (entry.actor, entry.decision) == (caller.spiffe_id, "deny")


def test_a_store_that_cannot_be_read_is_said_and_all_else_is_shown(core: NexusCore, failing: FailingStore) -> None:
    """Status is answered without the store, and names what the store said."""
    failing.cannot_read = True
    view = describe(core)
    assert view.blocked_by == ["the nexus is uninitialised", "store failed to read: SQLITE_IOERR"]
    assert (view.facts, view.newer, view.meta.revision) == (None, None, 0)
    assert [keeper.member.name for keeper in view.keepers] == ["keeper-1", "keeper-2", "keeper-3"]


def test_a_ready_nexus_says_that_its_audit_fails(make_nexus: MakeNexus) -> None:
    """While entries cannot be written almost every call is refused, and status says by what it is blocked."""
    nexus = make_nexus()
    with nexus.audit_failing():
        state, _ = nexus.status.describe(SUPERUSER)
        assert state is State.READY
        (blocked,) = describe(nexus, SUPERUSER).blocked_by
        assert blocked.startswith("audit entries cannot be written, so almost every call is refused: ")


def test_a_state_that_ends_meanwhile_is_not_told_with_what_ended_it(
    make_nexus: MakeNexus, failing: FailingStore
) -> None:
    """Nobody is told that a ready nexus is blocked."""
    core = make_nexus(store=failing)

    def end_ready() -> None:
        failing.at_read = None
        core.lifecycle.withdraw(State.RECOVERING, seconds=1)

    failing.at_read = end_ready
    state, view = core.status.describe(OPERATOR)
    assert view is not None
    assert (state, bool(view.blocked_by)) == (State.RECOVERING, True)
