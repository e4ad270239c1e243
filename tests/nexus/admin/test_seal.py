"""Seal: the door is shut, whatever fails, and stays shut."""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from common.errors import CorruptRowError, DeniedError, InvalidArgumentError, SealedError, StoreUnavailableError
from common.forms.mark import verify_mark
from common.keys.protected import ProtectedMemory
from nexus.access.gate import Caller
from nexus.lifecycle.sealing import Emptied
from nexus.lifecycle.states import State
from nexus.store.protocol import Writer
from nexus.store.sqlite.store import SqliteStore
from nexus.vault.expected import Expected
from tests.kit.patience import join, patience, patiently
from tests.nexus.cluster import FoundCluster, FoundedCluster, is_wiped
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.core import APP, AUDITOR, KEEPER, NEXUS, OPERATOR, RECOVER, SUPERUSER, NexusCore
from tests.nexus.custodians import Lost, custodian
from tests.nexus.failing_store import FailingStore
from tests.nexus.played_keepers import DEADLINE_S, PlayedKeeper


@dataclass
class Ready:
    """A nexus that serves, and its keepers."""

    cluster: FoundedCluster
    keepers: list[PlayedKeeper]
    store: FailingStore
    core: NexusCore

    def seal(self, caller: Caller = OPERATOR, reason: str = "", *, seconds: float = 10) -> Emptied:
        return self.core.seal.seal(caller, reason, seconds=seconds)

    def is_sealed_in_store(self) -> bool:
        return self.cluster.load()[0].sealed

    def put(self) -> int:
        return self.core.vault.put(SUPERUSER, "a", {"value": b"v"}, Expected(), os.urandom(16)).revision

    def last_mark(self, keeper: int) -> tuple[int, int]:
        """The position that the keeper remembers."""
        signed = self.keepers[keeper].marks[-1]
        return verify_mark(signed, cluster_id=self.cluster.cluster_id, genesis=self.cluster.genesis).position


@pytest.fixture
def ready(found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil) -> Iterator[Ready]:
    """3 of 5, all full."""
    cluster = found()
    keepers, store = cluster.keepers(), FailingStore(cluster.store)
    core = start_nexus(keepers, store=store)
    wait_until(lambda: core.pool.count_holders() == 5 and core.states == [State.READY])
    yield Ready(cluster, keepers, store, core)
    store.cannot_read = store.cannot_commit = False


def test_a_seal_empties_the_keepers_and_wipes_the_nexus(ready: Ready, memory: ProtectedMemory) -> None:
    """Committed and audited in one change; nothing is served but what custodians and operators need."""
    assert ready.seal(reason="drill") == Emptied(keepers_emptied=5, keepers=5)
    assert ready.core.states == [State.READY, State.SEALED]
    assert ready.is_sealed_in_store()
    assert [keeper.sets for keeper in ready.keepers] == [{}] * 5
    with pytest.raises(SealedError):
        ready.core.vault.get(SUPERUSER, "a", 0)
    assert ready.core.warden.list_obstacles() == ["the nexus is sealed: custodians have to unseal it"]
    ((revision, entry),) = ready.core.list_change_entries()
    assert revision == ready.cluster.load()[0].revision
    assert (entry.actor, entry.action, entry.detail, entry.outcome) == (OPERATOR.spiffe_id, "seal", "drill", "ok")
    assert is_wiped(memory)


def test_a_seal_stays_through_restarts(ready: Ready, start_nexus: StartNexus, wait_until: WaitUntil) -> None:
    """A keeper that was away is emptied when it comes, and t full keepers bring nothing back."""
    for keeper in ready.keepers[:3]:
        keeper.is_reachable = False
    assert ready.seal(seconds=patience(0.5)).keepers_emptied == 2
    core = start_nexus(ready.keepers)
    assert core.lifecycle.state is State.SEALED
    for keeper in ready.keepers[:3]:
        keeper.is_reachable = True
    wait_until(lambda: not any(keeper.sets for keeper in ready.keepers))
    assert core.states == []
    assert start_nexus(ready.keepers).lifecycle.state is State.SEALED


def test_a_late_keeper_takes_the_last_mark_before_it_is_emptied(ready: Ready, wait_until: WaitUntil) -> None:
    """Without the last mark, a store put back while sealed would look like the newest one."""
    ready.keepers[0].is_reachable = False
    ready.put()
    assert ready.seal(seconds=patience(0.5)).keepers_emptied == 4
    meta = ready.cluster.load()[0]
    ready.keepers[0].is_reachable = True
    wait_until(lambda: not ready.keepers[0].sets)
    assert ready.last_mark(0) == ready.last_mark(4) == (meta.timeline, meta.revision)


def test_a_repeated_seal_repeats_the_drops(ready: Ready, wait_until: WaitUntil) -> None:
    """A repeated seal brings the last mark to keepers that lack it; without a key it takes no revision."""
    ready.keepers[0].is_reachable = False
    assert ready.seal(seconds=patience(0.5)).keepers_emptied == 4
    last, revision = ready.last_mark(1), ready.cluster.load()[0].revision
    ready.keepers[0].is_reachable = True
    assert ready.seal().keepers_emptied == 5
    assert ready.last_mark(0) == last == (1, revision)
    assert ready.cluster.load()[0].revision == revision
    (again,) = ready.core.list_entries()
    assert (again.action, again.outcome) == ("seal", "ok")
    assert ready.core.states == [State.READY, State.SEALED]


def test_a_call_in_flight_ends_before_the_keys_are_wiped(ready: Ready, wait_until: WaitUntil) -> None:
    """What it commits is under the last mark; no call begins any more."""
    lifecycle = ready.core.lifecycle
    serving, era = lifecycle.lend()
    sealing = threading.Thread(target=ready.seal)
    sealing.start()
    wait_until(lambda: lifecycle.state is State.SEALED)
    with pytest.raises(SealedError):
        ready.put()
    assert serving.root_key.view == ready.cluster.root_key
    revision = ready.store.write(lambda writer: writer.revision)  # of the call in flight
    lifecycle.give_back(era)
    join(sealing, DEADLINE_S)
    assert [ready.last_mark(keeper) for keeper in range(5)] == [(1, revision)] * 5


def test_a_put_that_is_behind_the_seal_in_the_store_is_refused(ready: Ready, wait_until: WaitUntil) -> None:
    """Its change asks for the keys when its turn comes."""
    reached, go, refused = threading.Event(), threading.Event(), list[SealedError]()

    def hold() -> None:
        reached.set()
        assert patiently(go.wait, DEADLINE_S)

    def put() -> None:
        with pytest.raises(SealedError) as caught:
            ready.put()
        refused.append(caught.value)

    ready.store.at_write = hold
    putter = threading.Thread(target=put)
    putter.start()
    assert patiently(reached.wait, DEADLINE_S)
    sealer = threading.Thread(target=ready.seal)
    sealer.start()
    wait_until(lambda: ready.core.lifecycle.state is State.SEALED)
    go.set()
    join(putter, DEADLINE_S)
    join(sealer, DEADLINE_S)
    assert len(refused) == 1
    assert ready.last_mark(0) == (1, ready.cluster.load()[0].revision)


def test_puts_that_wait_beside_the_seal_are_under_the_last_mark(ready: Ready, wait_until: WaitUntil) -> None:
    """One before it is acknowledged, one after it may be refused; no keeper forgets what was acknowledged."""
    store, reached, go, made = ready.cluster.store, threading.Event(), threading.Event(), list[int]()
    assert isinstance(store, SqliteStore)

    def hold(writer: Writer) -> None:
        reached.set()
        assert patiently(go.wait, DEADLINE_S)

    def put() -> None:
        with contextlib.suppress(SealedError):
            made.append(ready.put())

    threads = [
        threading.Thread(target=lambda: ready.store.write(hold)),
        threading.Thread(target=put),
        threading.Thread(target=ready.seal),
        threading.Thread(target=put),
    ]
    for waiting, thread in enumerate(threads):
        thread.start()
        assert patiently(reached.wait, DEADLINE_S)
        wait_until(lambda waiting=waiting: len(store._committer._waiting) == waiting)
    go.set()
    for thread in threads:
        join(thread, DEADLINE_S)
    newest = ready.cluster.load()[0].revision
    assert made in ([newest - 1], [newest - 2, newest])
    assert ready.last_mark(0) == (1, newest)
    assert ready.core.lifecycle.store_fault == ""


@pytest.mark.parametrize("broken", ["cannot_commit", "cannot_audit", "meta row", "cannot_read"])
def test_a_seal_that_cannot_be_committed_wipes_all_the_same_and_ends_the_process(
    ready: Ready, memory: ProtectedMemory, broken: str
) -> None:
    """The keepers are emptied, so a restart needs custodians although it is not sealed."""
    if broken == "meta row":
        ready.store.is_corrupt = True
    else:
        setattr(ready.store, broken, True)
        ready.store.cannot_commit = True
    with pytest.raises((StoreUnavailableError, CorruptRowError)):
        ready.seal()
    (failure,) = ready.core.failures
    assert "the seal could not be committed" in failure
    assert ready.core.states == [State.READY, State.SEALED]
    assert [keeper.sets for keeper in ready.keepers] == [{}] * 5
    assert is_wiped(memory)
    ready.store.cannot_read = False
    assert not ready.is_sealed_in_store()
    (entry,) = ready.core.list_entries()
    assert (entry.action, entry.decision) == ("seal", "allow")
    assert entry.outcome != "ok"


def test_a_seal_works_while_the_audit_fails(ready: Ready) -> None:
    """Its entry is in the store, with the change."""
    with ready.core.audit_failing():
        assert ready.seal().keepers_emptied == 5
    assert ready.is_sealed_in_store()
    assert [entry.action for _, entry in ready.core.list_change_entries()] == ["seal"]


def test_a_seal_while_recovering_needs_no_key(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, memory: ProtectedMemory
) -> None:
    """What was gathered is wiped; keepers that hold shards are emptied and bring nothing back."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers[2:]:
        keeper.is_reachable = False
    core = start_nexus(keepers)
    wait_until(lambda: "2 of 3 shards" in core.warden.list_obstacles()[0])
    assert core.seal.seal(OPERATOR, "", seconds=patience(0.5)).keepers_emptied == 2
    for keeper in keepers[2:]:
        keeper.is_reachable = True
    wait_until(lambda: not any(keeper.sets for keeper in keepers))
    assert core.states == [State.SEALED]
    core.close()
    assert is_wiped(memory)


def test_a_seal_does_not_wait_longer_than_it_may(ready: Ready) -> None:
    """It answers with those that are empty, and goes on by itself."""
    for keeper in ready.keepers:
        keeper.is_reachable = False
    assert ready.seal(seconds=0) == Emptied(keepers_emptied=0, keepers=5)
    assert ready.core.lifecycle.state is State.SEALED


@pytest.mark.parametrize("caller", [RECOVER, AUDITOR, NEXUS, KEEPER, APP], ids=lambda caller: caller.role)
def test_only_operator_and_superuser_seal(ready: Ready, caller: Caller) -> None:
    """A denial is audited; nothing happens."""
    with pytest.raises(DeniedError, match="operator or superuser"):
        ready.seal(caller)
    assert ready.core.states == [State.READY]
    assert [entry.decision for entry in ready.core.list_entries()] == ["deny"]


@pytest.mark.parametrize("reason", ["x" * 257, "a\nb", "\x1b[31m"], ids=["too long", "two lines", "an escape"])
def test_a_reason_that_does_not_fit_an_audit_entry_is_refused(ready: Ready, reason: str) -> None:
    """The reason is checked before anything happens."""
    with pytest.raises(InvalidArgumentError, match="at most 256 printable"):
        ready.seal(reason=reason)
    assert ready.core.states == [State.READY]
    assert ready.seal(reason="x" * 256).keepers_emptied == 5


def test_a_seal_does_not_wait_for_a_call_that_hangs_with_the_store(
    lost: Lost, memory: ProtectedMemory, wait_until: WaitUntil
) -> None:
    """The custodians' key that waits for its commit is not installed when that comes back after all."""
    reached, go, outcomes = threading.Event(), threading.Event(), list[object]()
    core = lost.core
    session = core.unseal.start(custodian("ann"))
    lost.submit(session, 1)

    def hang() -> None:
        reached.set()
        assert patiently(go.wait, DEADLINE_S)

    def submit_last() -> None:
        try:
            outcomes.append(lost.submit(session, 2))
        except SealedError as exc:
            outcomes.append(exc)

    lost.store.at_write = hang
    unsealing = threading.Thread(target=submit_last)
    unsealing.start()
    assert patiently(reached.wait, DEADLINE_S)
    with pytest.raises(StoreUnavailableError, match="seal is not committed: another call waits for the store"):
        core.seal.seal(OPERATOR, "", seconds=10)
    assert core.failures
    go.set()
    join(unsealing, DEADLINE_S)
    assert [type(outcome) for outcome in outcomes] == [SealedError]
    assert core.states == [State.SEALED]
    core.close()
    assert is_wiped(memory)
