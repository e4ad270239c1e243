"""The states that a nexus goes through, and what it serves with in them: keys are not wiped in use."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.errors import AuditUnavailableError, RecoveringError, SealedError, ShardholdError, WrongStateError
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import READY_ONLY, State
from tests.kit.patience import join
from tests.nexus.cluster import FoundCluster, FoundedCluster, is_wiped
from tests.nexus.conftest import MakeNexus, StartNexus, WaitUntil
from tests.nexus.core import SUPERUSER, NexusCore
from tests.nexus.played_keepers import DEADLINE_S


class Watched:
    """A lifecycle and the states that it told."""

    def __init__(self, cluster: FoundedCluster) -> None:
        self.cluster = cluster
        self.told: list[State] = []
        self.failures: list[str] = []
        self.lifecycle = Lifecycle(State.RECOVERING, on_change=self.told.append, on_failure=self.failures.append)
        self.serving = cluster.prove()

    def is_usable(self) -> bool:
        """Whether the keys are there to use."""
        try:
            return self.serving.root_key.view == self.cluster.root_key
        except ValueError:  # released
            return False

    @contextmanager
    def withdrawing(self, seconds: float) -> Iterator[threading.Thread]:
        """Withdraw on another thread meanwhile."""
        thread = threading.Thread(target=lambda: self.lifecycle.withdraw(State.SEALED, seconds=seconds))
        thread.start()
        yield thread
        join(thread, DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture
def watched(found: FoundCluster) -> Iterator[Watched]:
    """Ready."""
    watched = Watched(found())
    watched.lifecycle.install(watched.serving)
    yield watched
    watched.lifecycle.wipe()


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
    """Keys can be looked at and borrowed in ready only; each other state is refused by its name."""
    core.bind(state)
    with pytest.raises(error):
        core.lifecycle.require_serving()
    with pytest.raises(error), core.lifecycle.borrow():
        pytest.fail("there is nothing to borrow")
    (obstacle,) = core.warden.list_obstacles()
    assert f"the nexus is {state.value}" in obstacle


def test_a_wiped_nexus_serves_nothing(make_nexus: MakeNexus) -> None:
    """At the end of the process; again, nothing happens."""
    nexus = make_nexus()
    nexus.pool.stop()
    nexus.lifecycle.wipe()
    nexus.lifecycle.wipe()
    with pytest.raises(WrongStateError):
        nexus.lifecycle.require_serving()
    assert is_wiped(nexus.memory)


def test_a_nexus_becomes_ready_when_its_audit_is_failing(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """The chain of this timeline goes on; the gate refuses what cannot be audited, and the process lives."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers:
        keeper.is_reachable = False
    nexus = start_nexus(keepers)
    wait_until(lambda: "0 of 3 shards" in nexus.warden.list_obstacles()[0])
    with nexus.audit_failing():
        for keeper in keepers:
            keeper.is_reachable = True
        wait_until(lambda: nexus.states == [State.READY])
        nexus.audit.start_timeline(cluster.load()[0].timeline)
        with pytest.raises(AuditUnavailableError):
            nexus.vault.get(SUPERUSER, "a", 0)
    assert nexus.lifecycle.require_serving().root_key.view == cluster.root_key
    assert nexus.failures == []


def test_a_change_of_state_is_told_once(watched: Watched) -> None:
    """A state that stays the same is not told."""
    watched.lifecycle.enter(State.READY)
    watched.lifecycle.withdraw(State.SEALED, seconds=0)
    watched.lifecycle.enter(State.SEALED)
    assert watched.told == [State.READY, State.SEALED]


def test_keys_that_nobody_borrows_are_wiped_at_once(watched: Watched) -> None:
    """A withdrawal that may wait long wipes keys at once when nobody borrows them."""
    with watched.lifecycle.borrow():
        pass
    watched.lifecycle.withdraw(State.SEALED, seconds=3600)
    assert is_wiped(watched.cluster.memory)


def test_borrowed_keys_are_wiped_only_after_they_were_given_back(watched: Watched, wait_until: WaitUntil) -> None:
    """The last borrower's return wipes the keys; new calls are refused from the beginning of the withdrawal."""
    lifecycle = watched.lifecycle
    (serving, era), (again, _) = lifecycle.lend(), lifecycle.lend()
    assert serving is again is watched.serving
    with watched.withdrawing(DEADLINE_S) as thread:
        wait_until(lambda: lifecycle.state is State.SEALED)
        with pytest.raises(SealedError):
            lifecycle.lend()
        with pytest.raises(SealedError):
            lifecycle.check_served("GetSecret", READY_ONLY)
        lifecycle.give_back(era)
        thread.join(0.05)
        assert thread.is_alive()
        assert watched.is_usable()
        lifecycle.give_back(era)
    assert is_wiped(watched.cluster.memory)


def test_keys_are_given_back_when_the_call_fails(watched: Watched) -> None:
    """A failed call gives its keys back, so that no withdrawal waits in vain."""
    with pytest.raises(ShardholdError), watched.lifecycle.borrow():
        raise WrongStateError("of the call")
    watched.lifecycle.withdraw(State.RECOVERING, seconds=3600)
    assert is_wiped(watched.cluster.memory)


def test_waiting_for_those_who_borrowed_earlier(watched: Watched) -> None:
    """Whoever replaces a key waits for everybody who may have seen the one before, and for nobody else."""
    lifecycle = watched.lifecycle
    _, earlier = lifecycle.lend()
    assert not lifecycle.wait_earlier(seconds=0)
    _, later = lifecycle.lend()
    lifecycle.give_back(earlier)
    with lifecycle.borrow():
        assert not lifecycle.wait_earlier(seconds=0)  # of *later*, which came before this wait
        lifecycle.give_back(later)
        assert not lifecycle.wait_earlier(seconds=0)
    assert lifecycle.wait_earlier(seconds=0)


def test_calls_go_on_while_somebody_waits_for_those_before(watched: Watched, wait_until: WaitUntil) -> None:
    """Borrowers that overlap for ever hold nobody up."""
    lifecycle = watched.lifecycle
    _, first = lifecycle.lend()
    waited: list[bool] = []
    thread = threading.Thread(target=lambda: waited.append(lifecycle.wait_earlier(seconds=DEADLINE_S)))
    thread.start()
    newest: list[int] = []

    def is_over() -> bool:
        newest.append(lifecycle.lend()[1])
        return newest[-1] > first

    wait_until(is_over)
    for era in (first, *(era for era in newest if era == first)):
        lifecycle.give_back(era)
    join(thread, DEADLINE_S)
    assert waited == [True]


def test_a_withdrawal_waits_only_so_long(watched: Watched) -> None:
    """When the wait is over the keys are wiped, and those who still have them get an error, not a key of zeros."""
    serving, era = watched.lifecycle.lend()
    watched.lifecycle.withdraw(State.SEALED, seconds=0.05)
    with pytest.raises(ValueError, match="released"):
        bytes(serving.root_key.view)
    watched.lifecycle.give_back(era)
    assert is_wiped(watched.cluster.memory)


def test_giving_up_ends_the_process(watched: Watched) -> None:
    """Giving up ends the process with its reason and leaves the state as it was."""
    watched.lifecycle.give_up("nobody knows")
    assert watched.failures == ["nobody knows"]
    assert watched.lifecycle.state is State.READY


def test_nothing_is_served_from_a_lost_store(watched: Watched) -> None:
    """From the moment on in which somebody says so, whoever borrows already; the first reason stays."""
    lifecycle = watched.lifecycle
    lifecycle.wake.clear()
    with lifecycle.borrow() as serving:
        lifecycle.lose_store("it was put back")
        lifecycle.lose_store("something else")
        assert lifecycle.wake.is_set()
        assert bytes(serving.root_key.view) == watched.cluster.root_key
        for ask in (lifecycle.lend, lifecycle.require_serving):
            with pytest.raises(RecoveringError, match="it was put back"):
                ask()
    assert (lifecycle.state, lifecycle.store_fault) == (State.READY, "it was put back")


def test_a_store_is_lost_by_a_ready_nexus_alone(watched: Watched) -> None:
    """Another state has nothing to lose, and a nexus that becomes ready begins anew."""
    lifecycle = watched.lifecycle
    lifecycle.lose_store("it was put back")
    lifecycle.withdraw(State.RECOVERING, seconds=0)
    lifecycle.install(watched.cluster.prove())
    assert lifecycle.store_fault == ""
    lifecycle.withdraw(State.RECOVERING, seconds=0)
    lifecycle.lose_store("again")
    assert lifecycle.store_fault == ""
