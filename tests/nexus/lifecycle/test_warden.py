"""The warden: how a nexus comes to be ready, and what is in its way."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import CorruptRowError, RecoveringError, StoreUnavailableError, WrongStateError
from common.keys.protected import ProtectedMemory
from nexus.keys import records
from nexus.keys.root_key import RootKey
from nexus.lifecycle.states import State
from nexus.store.protocol import Store, Writer
from nexus.vault.expected import Expected
from tests.kit.patience import join
from tests.nexus.cluster import FoundCluster, FoundedCluster, is_wiped, tamper
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.core import SUPERUSER, NexusCore
from tests.nexus.failing_store import FailingStore


def no_entry(writer: Writer, key: RootKey) -> None:
    """For a change that is not audited."""


def test_a_recovery_ends_in_ready_and_says_before_what_is_missing(
    found: FoundCluster, start_nexus: StartNexus, memory: ProtectedMemory, wait_until: WaitUntil
) -> None:
    """Status says what is missing until ready; empty keepers are then filled, and the end wipes every key."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers[2:]:
        keeper.is_reachable = False
    core = start_nexus(keepers)
    wait_until(lambda: "2 of 3 shards" in core.warden.list_obstacles()[0])
    assert core.states == []
    keepers[3].restart()
    for keeper in keepers[2:]:
        keeper.is_reachable = True
    wait_until(lambda: core.states == [State.READY])
    assert core.warden.list_obstacles() == []
    assert core.lifecycle.require_serving().root_key.view == cluster.root_key
    wait_until(lambda: core.pool.count_holders() == 5)
    assert keepers[3].sets[cluster.record.set_id][1] == cluster.shards["keeper-4"]
    core.close()
    assert is_wiped(memory)


def test_a_recovery_that_is_stopped_changes_nothing(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """The process ends; it never becomes ready on the way."""
    found()
    core = start_nexus([])
    wait_until(lambda: "0 of 3 shards" in core.warden.list_obstacles()[0])
    core.warden.stop()
    assert core.states == []
    assert core.lifecycle.state is State.RECOVERING


def test_there_is_an_obstacle_from_the_first_moment_on(
    found: FoundCluster, store: Store, memory: ProtectedMemory, tmp_path: Path
) -> None:
    """A nexus that has not begun to recover names an obstacle, so that /readyz does not call it ready."""
    found()
    core = NexusCore(tmp_path, store, memory, [])
    assert core.warden.list_obstacles() == ["the nexus is recovering"]
    core.close()


@pytest.mark.parametrize("custodians_first", [False, True], ids=["keepers first", "custodians first"])
def test_of_two_proved_keys_one_is_admitted(
    found: FoundCluster, start_nexus: StartNexus, memory: ProtectedMemory, custodians_first: bool
) -> None:
    """The other one is wiped; there is one set, and one change of state."""
    cluster = found()
    core = start_nexus([])
    by_keepers, by_custodians = cluster.prove(), cluster.prove()
    if custodians_first:
        assert core.warden.admit(by_custodians, no_entry)
        with pytest.raises(WrongStateError, match="ready meanwhile"):
            core.warden.admit(by_keepers)
    else:
        assert core.warden.admit(by_keepers)
        with pytest.raises(WrongStateError, match="ready meanwhile"):
            core.warden.admit(by_custodians, no_entry)
    assert core.states == [State.READY]
    sets = _load_sets(cluster)
    assert [one.set_number for one in sets if one.state is records.SetState.CURRENT] == [1 + custodians_first]
    assert core.lifecycle.require_serving().shard_set.record.set_number == 1 + custodians_first
    core.close()
    assert is_wiped(memory)


def test_a_key_of_a_set_that_is_not_current_any_more_is_not_admitted(
    found: FoundCluster, start_nexus: StartNexus, memory: ProtectedMemory
) -> None:
    """Its points would fill keepers with shards that the store does not know."""
    cluster = found()
    core = start_nexus([])
    late = cluster.prove()
    assert core.warden.admit(cluster.prove(), no_entry)
    core.warden.seal(no_entry, seconds=0)
    with pytest.raises(WrongStateError, match="another one meanwhile"):
        core.warden.admit(late, no_entry, asked_in=State.SEALED)
    assert core.lifecycle.state is State.SEALED
    core.close()
    assert is_wiped(memory)


def test_keepers_and_custodians_that_come_at_once_leave_one_ready_nexus(
    found: FoundCluster, start_nexus: StartNexus, memory: ProtectedMemory, wait_until: WaitUntil
) -> None:
    """Whether keepers or custodians win, every keeper holds the current set in the end, and no other."""
    cluster = found()
    keepers = cluster.keepers()
    core = start_nexus(keepers)
    serving = cluster.prove()
    outcomes: list[object] = []

    def admit() -> None:
        try:
            outcomes.append(core.warden.admit(serving, no_entry))
        except WrongStateError as exc:
            outcomes.append(exc)

    thread = threading.Thread(target=admit)
    thread.start()
    join(thread, 20)
    wait_until(lambda: core.lifecycle.state is State.READY)
    current = core.lifecycle.require_serving().shard_set.record
    assert current.set_number == (2 if outcomes == [True] else 1)
    wait_until(lambda: all(set(keeper.sets) == {current.set_id} for keeper in keepers))
    wait_until(lambda: core.pool.count_holders() == 5)
    assert core.states == [State.READY]
    core.close()
    assert is_wiped(memory)


def test_custodians_in_the_middle_of_a_recovery_end_it(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, memory: ProtectedMemory
) -> None:
    """What it had gathered is wiped; the keepers are given the new set, and nobody asks for the old one any more."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers[2:]:
        keeper.is_reachable = False
    core = start_nexus(keepers)
    wait_until(lambda: "2 of 3 shards" in core.warden.list_obstacles()[0])
    assert core.warden.admit(cluster.prove(), no_entry)
    current = core.lifecycle.require_serving().shard_set.record
    for keeper in keepers[2:]:
        keeper.is_reachable = True
    wait_until(lambda: all(set(keeper.sets) == {current.set_id} for keeper in keepers))
    core.close()
    assert is_wiped(memory)


@pytest.mark.parametrize("gone", ["store", "genesis record"])
def test_a_store_that_fails_is_said_and_tried_again(
    found: FoundCluster, store: Store, memory: ProtectedMemory, wait_until: WaitUntil, tmp_path: Path, gone: str
) -> None:
    """The warden lives on: what it needs may come back."""
    cluster = found()
    failing = FailingStore(store)
    genesis = next(row.body for row in cluster.load()[1] if row.kind == "genesis")
    core = NexusCore(tmp_path, failing, memory, [])
    if gone == "store":
        failing.cannot_read = True
    else:
        tamper(tmp_path, "UPDATE control SET body = x'7b7d' WHERE kind = 'genesis'")
    core.warden.start()
    why = "SQLITE_IOERR" if gone == "store" else "GenesisRecord"
    wait_until(lambda: any(why in obstacle for obstacle in core.warden.list_obstacles()))
    if gone == "store":
        failing.cannot_read = False
    else:
        tamper(tmp_path, "UPDATE control SET body = ? WHERE kind = 'genesis'", genesis)
    wait_until(lambda: "0 of 3 shards" in core.warden.list_obstacles()[0])
    assert len(core.warden.list_obstacles()) == 1
    assert core.failures == []
    core.close()


def test_a_store_that_cannot_be_read_for_a_while_does_not_end_a_ready_nexus(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """It looks for marks each second, and goes on when that fails."""
    cluster = found()
    keepers = cluster.keepers()
    store = FailingStore(cluster.store)
    core = start_nexus(keepers, store=store)
    wait_until(lambda: core.lifecycle.state is State.READY)
    wait_until(lambda: keepers[0].marks)
    store.cannot_read = True
    wait_until(lambda: "warden" in store.refused)
    store.cannot_read = False
    keepers[0].restart(mark=cluster.sign_mark(5, 1))
    wait_until(lambda: core.lifecycle.state is State.RECOVERING)


def test_a_key_that_was_proved_while_the_store_failed_is_wiped_and_asked_for_again(
    found: FoundCluster, start_nexus: StartNexus, memory: ProtectedMemory
) -> None:
    """Custodians submit the last share again after the store failed; the first key is wiped."""
    cluster = found()
    store = FailingStore(cluster.store)
    core = start_nexus([], store=store)
    store.cannot_commit = True
    with pytest.raises(Exception, match="SQLITE_FULL"):
        core.warden.admit(cluster.prove(), no_entry)
    assert core.lifecycle.state is State.RECOVERING
    store.cannot_commit = False
    assert core.warden.admit(cluster.prove(), no_entry)
    assert core.lifecycle.require_serving().shard_set.record.set_number == 2
    core.close()
    assert is_wiped(memory)


def test_a_genesis_record_that_changed_since_the_start_ends_the_process(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, tmp_path: Path, memory: ProtectedMemory
) -> None:
    """Marks were held against another one: the true ones counted for nothing."""
    cluster = found()
    true = next(row.body for row in cluster.load()[1] if row.kind == "genesis")
    false = records.encode(records.GenesisRecord(_with_other_kcv(cluster)))
    tamper(tmp_path, "UPDATE control SET body = ? WHERE kind = 'genesis'", false)
    core = start_nexus([])
    wait_until(lambda: "0 of 3 shards" in core.warden.list_obstacles()[0])
    tamper(tmp_path, "UPDATE control SET body = ? WHERE kind = 'genesis'", true)
    with pytest.raises(CorruptRowError, match="genesis record is another one"):
        core.warden.admit(cluster.prove())
    assert core.failures == ["genesis record is another one than at the start"]
    assert core.lifecycle.state is State.RECOVERING
    core.close()
    assert is_wiped(memory)


def _with_other_kcv(cluster: FoundedCluster) -> bytes:
    return replace(cluster.genesis_record, kcv=bytes(32)).encode()


def _load_sets(cluster: FoundedCluster) -> list[records.ShardSetRecord]:
    rows = cluster.load()[1]
    return [records.decode(records.ShardSetRecord, row.body) for row in rows if row.kind == records.SHARD_SET]


def test_secrets_that_were_put_before_are_served_after_custodians_brought_the_key_back(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """A new set is no new key."""
    cluster = found()
    keepers = cluster.keepers()
    core = start_nexus(keepers)
    wait_until(lambda: core.lifecycle.state is State.READY)
    core.vault.put(SUPERUSER, "a", {"value": b"v"}, Expected(0), os.urandom(16))
    for keeper in keepers:
        keeper.restart()
    core = start_nexus(keepers)
    with pytest.raises(RecoveringError):
        core.vault.get(SUPERUSER, "a", 0)
    assert core.warden.admit(cluster.prove(), no_entry)
    assert core.vault.get(SUPERUSER, "a", 0).fields == {"value": b"v"}
    assert core.pool.wait_holders(5, seconds=10) == 5
    core = start_nexus(keepers)  # and the keepers bring it back the next time
    wait_until(lambda: core.lifecycle.state is State.READY)
    assert core.lifecycle.require_serving().shard_set.record.set_number == 2


def test_a_nexus_marks_how_far_its_store_came(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """Each keeper gets a mark with the poll after a change, and none of a store that stands still."""
    cluster = found()
    keepers = cluster.keepers()
    core = start_nexus(keepers)
    wait_until(lambda: all(len(keeper.marks) == 1 for keeper in keepers))
    made = core.vault.put(SUPERUSER, "a", {"value": b"v"}, Expected(0), os.urandom(16))
    wait_until(lambda: all(len(keeper.marks) == 2 for keeper in keepers))
    book = cluster.book()
    mark = book.take("keeper-1", keepers[0].marks[-1])
    assert mark is not None
    assert (mark.timeline, mark.revision, mark.generation, mark.set_number) == (1, made.revision, 1, 1)


def test_a_lost_store_ends_ready_and_the_keepers_bring_the_key_back(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, memory: ProtectedMemory
) -> None:
    """The keys are wiped, and the reason is named until the nexus is ready again, with the store as it is then."""
    cluster = found()
    keepers = cluster.keepers()
    core = start_nexus(keepers)
    wait_until(lambda: core.states == [State.READY])
    serving = core.lifecycle.require_serving()
    for keeper in keepers:
        keeper.is_reachable = False
    core.lifecycle.lose_store("somebody else wrote it")
    wait_until(lambda: core.states == [State.READY, State.RECOVERING])
    with pytest.raises(ValueError, match="released"):
        wait_until(lambda: bytes(serving.root_key.view) == b"")
    assert "ready ended: somebody else wrote it" in core.warden.list_obstacles()
    assert [len(keeper.sets) for keeper in keepers] == [1] * 5
    for keeper in keepers:
        keeper.is_reachable = True
    wait_until(lambda: core.states == [State.READY, State.RECOVERING, State.READY])
    assert core.warden.list_obstacles() == []
    core.close()
    assert is_wiped(memory)


def test_a_store_whose_files_are_wrong_is_not_served_from(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """Ready ends within a second, and neither keepers nor custodians bring it back before the files are right."""
    cluster = found()
    core = start_nexus(cluster.keepers())
    wait_until(lambda: core.states == [State.READY])
    fault = ["the file is gone"]
    core.warden._inspect_store = lambda: fault[0]
    wait_until(lambda: core.states == [State.READY, State.RECOVERING])
    wait_until(lambda: "the file is gone" in core.warden.list_obstacles())
    with pytest.raises(StoreUnavailableError, match="the file is gone"):
        core.warden.admit(cluster.prove(), no_entry)
    fault[0] = ""
    wait_until(lambda: core.states == [State.READY, State.RECOVERING, State.READY])


def test_a_set_that_too_many_keepers_refuse_is_replaced(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """They held a newer one, so they never take it again; without a new one the next restart would find no key."""
    cluster = found()
    keepers = cluster.keepers()
    core = start_nexus(keepers)
    wait_until(lambda: core.pool.count_holders() == 5)
    for keeper in keepers[:3]:
        keeper.restart()
        keeper.is_newer_held = True
    wait_until(lambda: core.lifecycle.require_serving().shard_set.record.set_number == 2)
    for keeper in keepers:
        keeper.is_newer_held = False
    wait_until(lambda: core.pool.count_holders() == 5)
    serving = core.lifecycle.require_serving()
    assert serving.root_key.view == cluster.root_key
    assert core.states == [State.READY]
    notes = [entry.detail for _, entry in core.list_change_entries() if entry.action == "root.replace-set"]
    assert notes == ["keepers refuse set 1: they held a newer one"]
