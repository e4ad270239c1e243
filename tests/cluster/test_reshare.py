"""Reshares on real processes: who holds the root key changes, while things go wrong with keepers and nexus."""

import os
from collections.abc import Iterator

import grpc
import pytest

from shardhold.v1 import root_pb2 as pb
from tests.cluster.held_shards import fetch_shards, rebuild
from tests.cluster.operations import Operations, wait_proofs_old
from tests.kit.cluster import running
from tests.kit.probes import Status
from tests.kit.refusal import Refusal

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
FIRST = frozenset(f"keeper-{number}" for number in range(1, 6))
JOINER = "keeper-6"
SLOW = "keeper-3"  # stops when it is given its new shard, so that the operation waits


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    """Five keepers, threshold three, a sixth one that runs and is none of them, and a few secrets."""
    with running(tmp_path_factory.mktemp("reshare") / "dev") as cluster:
        reshares = Operations(cluster)
        reshares.add_server(JOINER)
        for _ in range(3):
            assert not reshares.ledger.put()
        yield reshares


@pytest.fixture
def reshares(shared: Operations) -> Iterator[Operations]:
    """The shared cluster, which is left whole and as it was: whatever a test did, the first five hold three of five."""
    yield shared
    cluster = shared.cluster
    cluster.processes.make_true()
    cluster.wait_ready()
    shared.wait_ended()
    current = shared.stored.find_current()
    names = {member.name for member in current.members}
    cluster.wait_filled(*names)
    if names != FIRST or current.threshold != 3:
        shared.reshare(threshold=3, add=sorted(FIRST - names), remove=sorted(names - FIRST))
    shared.check_world()
    cluster.wait_filled()


def test_new_shards(reshares: Operations) -> None:
    """All keepers hold new shards, under new commitments; a restart recovers from them."""
    before = reshares.stored.find_current()
    ended = reshares.reshare()
    after = reshares.stored.find_current()
    assert (ended.set_from, ended.set_to) == (before.set_number, after.set_number)
    assert after.set_id != before.set_id
    assert not {one.commitment for one in before.members} & {one.commitment for one in after.members}
    reshares.check_world()
    reshares.cluster.restart_nexus()
    reshares.check_world()


def test_old_and_new_shards_do_not_combine(reshares: Operations) -> None:
    """Two stolen before a reshare, and one after it, give another key; three of one set give the same as ever."""
    old = fetch_shards(reshares, "keeper-1", "keeper-2", "keeper-3")
    reshares.reshare()
    new = fetch_shards(reshares, "keeper-1", "keeper-2", "keeper-3")
    assert rebuild(old) == rebuild(new)
    assert rebuild([*old[:2], new[2]]) != rebuild(new)
    assert rebuild([old[0], *new[1:]]) != rebuild(new)


def test_another_threshold(reshares: Operations) -> None:
    """Two of five are enough afterwards: the nexus starts without the other three."""
    reshares.reshare(threshold=2)
    cluster = reshares.cluster
    cluster.kill("keeper-1", "keeper-2", "keeper-3")
    cluster.restart_nexus()
    assert reshares.stored.find_current().threshold == 2
    reshares.ledger.check()


def test_a_keeper_joins_and_leaves(reshares: Operations) -> None:
    """The sixth gets a shard, and holds nothing once it has left."""
    reshares.reshare(add=[JOINER])
    assert {one.name for one in reshares.stored.find_current().members} == FIRST | {JOINER}
    reshares.check_world()
    reshares.reshare(remove=[JOINER])
    reshares.check_world()
    assert reshares.list_held(JOINER) == set()


def test_the_new_keepers_are_enough(reshares: Operations) -> None:
    """A keeper takes the place of another; a restart needs none of those that left, and the store names no one else."""
    reshares.reshare(add=[JOINER], remove=["keeper-5"])
    reshares.check_world()
    assert reshares.list_held("keeper-5") == set()
    cluster = reshares.cluster
    cluster.kill("keeper-5", "keeper-1", "keeper-2")
    cluster.restart_nexus()
    reshares.ledger.check()


def test_a_keeper_is_lost(reshares: Operations) -> None:
    """Nobody waits for a dead process that an operator gives up; started again, it can join like any other."""
    cluster = reshares.cluster
    cluster.kill("keeper-5")
    reshares.reshare(remove=["keeper-5"], lost=["keeper-5"])
    reshares.check_world()
    cluster.run("keeper-5")
    reshares.reshare(add=["keeper-5"])
    reshares.check_world()


def test_a_keeper_that_left_dead_is_given_up_later(reshares: Operations) -> None:
    """Its set stays in the store until an operator says that it never comes back."""
    cluster = reshares.cluster
    cluster.kill("keeper-5")
    reshares.reshare(remove=["keeper-5"])
    reshares.check_world(is_everybody=False)
    assert len(reshares.stored.load_sets()) == 2
    reshares.go_on(lost=["keeper-5"])
    reshares.check_world()


def test_a_keeper_moves(reshares: Operations) -> None:
    """One of the same name and identity takes its place at another address."""
    cluster = reshares.cluster
    state = cluster.dev.state
    cluster.kill("keeper-4")
    old = state.ports["keeper-4"]
    reshares.add_server("keeper-4")
    assert state.ports["keeper-4"] != old
    cluster.restart_nexus()  # its configuration says where keepers are
    cluster.wait_filled()
    reshares.reshare(add=["keeper-4"], remove=["keeper-4"])
    moved = next(one for one in reshares.stored.find_current().members if one.name == "keeper-4")
    assert moved.address.endswith(f":{state.ports['keeper-4'].grpc}")
    reshares.check_world()


def test_one_keeper_down_from_before(reshares: Operations) -> None:
    """It is waited for; on an operator's word the others are enough, and it gets its shard when it is back."""
    cluster = reshares.cluster
    cluster.kill("keeper-5")
    cluster.wait_status("keeper-5 is missed", lambda status: not is_reachable(status, "keeper-5"))
    reshares.begin()
    reshares.wait_waiting("keeper-5")
    reshares.go_on(with_threshold=True)
    assert reshares.wait_ended().outcome == pb.OUTCOME_SETTLED
    reshares.check_world(without=["keeper-5"], is_everybody=False)
    cluster.run("keeper-5")
    reshares.check_world()


@pytest.mark.slow
def test_the_quorum_is_enough_after_a_minute(reshares: Operations) -> None:
    """Nobody says a word: after 60 s four of five are enough."""
    reshares.cluster.kill("keeper-5")
    reshares.begin()
    reshares.cluster.wait("it has ended", lambda: not reshares.look().HasField("operation"), timeout=120)
    assert reshares.look().last.outcome == pb.OUTCOME_SETTLED


def test_two_keepers_down(reshares: Operations) -> None:
    """Nothing begins."""
    cluster = reshares.cluster
    before = reshares.stored.find_current()
    cluster.kill("keeper-4", "keeper-5")
    cluster.wait_status(
        "both are missed", lambda status: not any(is_reachable(status, name) for name in ("keeper-4", "keeper-5"))
    )
    with Refusal(FAILED_PRECONDITION, "KEEPERS_SHORT"):
        reshares.begin()
    assert reshares.stored.find_current() == before


def test_abort_before_the_flip(reshares: Operations) -> None:
    """What was current stays; the new set is dead everywhere, also at the keeper that slept."""
    before = reshares.stored.find_current()
    hold(reshares)
    reshares.abort()
    assert reshares.look().last.outcome == pb.OUTCOME_ABORTED
    reshares.cluster.thaw(SLOW)
    reshares.check_world()
    assert reshares.stored.find_current() == before


def test_no_abort_after_the_flip(reshares: Operations) -> None:
    """It is refused, and the operation settles once keepers answer again."""
    cluster = reshares.cluster
    pause_nexus(reshares, "flip.commit:after")
    sleeping = cluster.keepers[:3]
    cluster.freeze(*sleeping)
    cluster.thaw("nexus")
    cluster.wait("it has flipped", lambda: reshares.look().operation.step == pb.STEP_FLIPPED)
    with Refusal(FAILED_PRECONDITION, "OPERATION_FLIPPED"):
        reshares.abort()
    cluster.thaw(*sleeping)
    assert reshares.wait_ended().outcome == pb.OUTCOME_SETTLED
    reshares.check_world()


def test_the_same_id_begins_nothing_twice(reshares: Operations) -> None:
    """While it is in progress the same operation is returned, with other arguments too; another one is refused."""
    operation_id = os.urandom(16)
    hold(reshares, operation_id)
    again = reshares.begin(operation_id=operation_id, threshold=2)
    assert (again.operation_id, again.threshold) == (operation_id, 3)
    with Refusal(FAILED_PRECONDITION, "OPERATION_RUNNING"):
        reshares.begin()
    reshares.abort()
    with Refusal(FAILED_PRECONDITION, says="aborted"):
        reshares.begin(operation_id=operation_id)
    reshares.cluster.thaw(SLOW)


def test_a_seal_before_the_flip_takes_it_back(reshares: Operations) -> None:
    """After the unseal there is no operation, and one set that is new."""
    operation_id = os.urandom(16)
    hold(reshares, operation_id)
    reshares.cluster.superuser.seal(timeout=10)
    reshares.cluster.thaw(SLOW)
    reshares.cluster.unseal()
    ended = reshares.wait_ended()
    assert (ended.operation_id, ended.outcome, ended.detail) == (
        operation_id,
        pb.OUTCOME_ABORTED,
        "the cluster was sealed",
    )
    reshares.check_world()


def test_an_unseal_ends_what_is_flipped(reshares: Operations) -> None:
    """Sealed between flip and settling: the unseal draws a set of its own, and the operation counts as settled."""
    cluster = reshares.cluster
    operation_id = os.urandom(16)
    pause_nexus(reshares, "flip.commit:after", operation_id)
    sleeping = cluster.keepers[:3]
    cluster.freeze(*sleeping)
    cluster.thaw("nexus")
    cluster.wait("it has flipped", lambda: reshares.look().operation.step == pb.STEP_FLIPPED)
    cluster.superuser.seal(timeout=10)
    cluster.thaw(*sleeping)
    cluster.unseal()
    ended = reshares.wait_ended()
    assert (ended.operation_id, ended.outcome) == (operation_id, pb.OUTCOME_SETTLED)
    assert reshares.stored.find_current().set_number == ended.set_to + 1
    reshares.check_world()


def test_a_lying_keeper_is_named_and_left_out(reshares: Operations) -> None:
    """It gives other shards back than it was given: the reshare goes on without it, and a true one takes its shard."""
    cluster = reshares.cluster
    cluster.replace_keeper("keeper-2", "flip")
    reshares.begin()
    operation = reshares.wait_waiting("keeper-2")
    assert "keeper-2" not in operation.holders
    cluster.wait_status("the liar is named", lambda status: "does not match" in find_fault(status, "keeper-2"))
    reshares.go_on(with_threshold=True)
    assert reshares.wait_ended().outcome == pb.OUTCOME_SETTLED
    cluster.restart_nexus()
    reshares.ledger.check()


def test_a_keeper_that_started_anew_before_the_flip(reshares: Operations) -> None:
    """It has lost both shards: the flip waits until it holds them again."""
    pause_nexus(reshares, "flip.mark:before")
    reshares.cluster.rerun("keeper-4")
    reshares.cluster.thaw("nexus")
    assert reshares.wait_ended().outcome == pb.OUTCOME_SETTLED
    reshares.check_world()


def test_a_driver_that_slept_at_the_flip_does_no_harm(reshares: Operations) -> None:
    """Stopped right before the commit while three keepers are about to end: it flips by no old proof."""
    cluster = reshares.cluster
    before = reshares.stored.find_current()
    pause_nexus(reshares, "flip.commit:before")
    cluster.freeze(*cluster.keepers[:3])  # so that it does not hear at once that they are gone
    wait_proofs_old()
    cluster.thaw("nexus")
    reshares.wait_waiting("keeper-1")
    assert reshares.stored.find_current() == before
    cluster.rerun(*cluster.keepers[:3])
    assert reshares.wait_ended().outcome == pb.OUTCOME_SETTLED
    reshares.check_world()


def hold(reshares: Operations, operation_id: bytes = b"") -> None:
    """Begin a reshare that waits for one keeper, which sleeps from when it is given its new shard."""
    reshares.arm(SLOW, "put.store:before:2:pause")  # the first one is of the current set
    reshares.cluster.wait_filled()
    reshares.begin(operation_id=operation_id)
    reshares.wait_asleep(SLOW)
    reshares.wait_waiting(SLOW)


def pause_nexus(reshares: Operations, point: str, operation_id: bytes = b"") -> None:
    """Begin a reshare, and return when the nexus sleeps at a point."""
    cluster = reshares.cluster
    reshares.arm("nexus", f"{point}:1:pause")
    cluster.wait_ready()
    cluster.wait_filled()
    reshares.begin(operation_id=operation_id)
    reshares.wait_asleep("nexus")


def is_reachable(status: Status, name: str) -> bool:
    return any(keeper["name"] == name and keeper["reachable"] for keeper in status["keepers"])


def find_fault(status: Status, name: str) -> str:
    return next(str(keeper["fault"] or "") for keeper in status["keepers"] if keeper["name"] == name)
