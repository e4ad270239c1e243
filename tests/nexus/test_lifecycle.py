"""The states that a nexus goes through, and what it serves with in them."""

import threading
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.errors import RecoveringError, SealedError, WrongStateError
from common.protected import ProtectedMemory
from nexus.recovery import Recovery
from nexus.states import State
from nexus.store.protocol import Store
from tests.nexus.cluster import FoundCluster, is_wiped
from tests.nexus.conftest import MakeNexus, WaitUntil
from tests.nexus.core import NexusCore


def test_a_recovery_ends_in_ready_and_says_before_what_is_missing(
    found: FoundCluster, store: Store, memory: ProtectedMemory, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """Then empty keepers are filled, and the end wipes every key."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers[2:]:
        keeper.is_reachable = False
    core = NexusCore(tmp_path, store, memory, keepers)
    core.pool.start()
    recovery = Recovery(store, core.pool, memory, SystemClock())
    thread = threading.Thread(target=core.lifecycle.recover, args=(recovery, threading.Event()))
    thread.start()
    wait_until(lambda: "2 of 3 shards" in core.lifecycle.blocked_by[0])
    assert core.states == []
    keepers[3].restart()
    for keeper in keepers[2:]:
        keeper.is_reachable = True
    thread.join(20)
    assert core.states == [State.READY]
    assert core.lifecycle.blocked_by == []
    assert core.lifecycle.require_serving().root_key.view == cluster.root_key
    wait_until(lambda: core.pool.count_holders() == 5)
    assert keepers[3].sets[cluster.record.set_id][1] == cluster.shards["keeper-4"]
    core.close()
    assert is_wiped(memory)


def test_a_recovery_that_is_stopped_changes_nothing(
    found: FoundCluster, store: Store, memory: ProtectedMemory, tmp_path: Path
) -> None:
    """The process ends; it never becomes ready on the way."""
    found()
    core = NexusCore(tmp_path, store, memory, [])
    stopping = threading.Event()
    stopping.set()
    core.lifecycle.recover(Recovery(store, core.pool, memory, SystemClock()), stopping)
    assert core.states == []
    assert core.lifecycle.state is State.RECOVERING
    core.close()


@pytest.mark.parametrize(
    ("state", "error"),
    [
        pytest.param(State.UNINITIALISED, WrongStateError, id="uninitialised"),
        pytest.param(State.INITIALISING, WrongStateError, id="initialising"),
        pytest.param(State.RECOVERING, RecoveringError, id="recovering"),
        pytest.param(State.SEALED, SealedError, id="sealed"),
    ],
)
def test_only_a_ready_nexus_serves(core: NexusCore, state: State, error: type[Exception]) -> None:
    """And each other state blocks by its name."""
    core.bind(state)
    with pytest.raises(error):
        core.lifecycle.require_serving()
    assert core.lifecycle.blocked_by == [f"the nexus is {state.value}"]


def test_a_wiped_nexus_serves_nothing(make_nexus: MakeNexus) -> None:
    """At the end of the process; again, nothing happens."""
    nexus = make_nexus()
    nexus.lifecycle.wipe()
    nexus.lifecycle.wipe()
    with pytest.raises(WrongStateError):
        nexus.lifecycle.require_serving()
    assert is_wiped(nexus.memory)


def test_a_nexus_becomes_ready_when_its_audit_is_failing(make_nexus: MakeNexus) -> None:
    """The chain of this timeline goes on; the gate refuses what cannot be audited, and the process lives."""
    nexus = make_nexus()
    with nexus.store.read() as reader:
        timeline = reader.load_meta().timeline
    with nexus.audit_failing():
        nexus.audit.start_timeline(timeline)
