"""The driver: it brings an operation to its end, carries on one that it finds, and leaves nothing behind."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from common.errors import (
    InjectedError,
    OperationRefusedError,
    OutcomeUnknownError,
    SealedError,
    StoreUnavailableError,
    TooFewShardsError,
)
from common.failpoint import NEXUS, Failpoint, arm
from common.keys.protected import ProtectedMemory
from nexus.admin.operations.reshare_plan import ResharePlan
from nexus.keys import records
from nexus.keys.operation.next_action import PATIENCE
from nexus.keys.operation.record import Outcome, Step
from nexus.keys.records import SetState
from nexus.lifecycle.states import State
from nexus.vault.expected import Expected
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.reshared import DEPTHS, NEW_ID, Resharing, is_wiped_set
from tests.nexus.cluster import count_free, is_wiped, tamper
from tests.nexus.conftest import StartNexus
from tests.nexus.core import OPERATOR, SUPERUSER, NexusCore

Restart = Callable[[], NexusCore]


@pytest.fixture
def restart(resharing: Resharing, start_nexus: StartNexus) -> Restart:
    """Let the nexus end and start again: with another boot, and keys only from its keepers."""

    def run() -> NexusCore:
        core = resharing.core = start_nexus(resharing.keepers, store=resharing.store)
        wait_until(lambda: core.lifecycle.state is State.READY and core.pool.count_holders() >= 3)
        return core

    return run


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Arm a failpoint of the nexus for the block."""
    arm(Failpoint(text, NEXUS))
    try:
        yield
    finally:
        arm(None)


def find_outcome(resharing: Resharing) -> tuple[Outcome, str]:
    """Return how the last operation ended, and why."""
    ended = resharing.ended
    assert ended is not None
    return ended.outcome, ended.detail


@DEPTHS
def test_a_reshare_walks_to_its_end(resharing: Resharing, memory: ProtectedMemory) -> None:
    """At each step, exactly one set is current, and keepers drop nothing before the operation is settled."""
    free = count_free(memory)
    replaced = resharing.core.lifecycle.require_serving().shard_set
    resharing.begin()
    resharing.drive_to(Step.DISTRIBUTED)
    assert resharing.states == {1: SetState.CURRENT, 2: SetState.PENDING}
    assert not is_wiped_set(replaced, memory)
    resharing.drive_to(Step.FLIPPED)
    resharing.core.driver.step()
    assert is_wiped_set(replaced, memory)
    assert resharing.states == {1: SetState.DEAD, 2: SetState.CURRENT}
    assert set(map(tuple, resharing.count_sets().values())) == {(1, 2)}
    resharing.drive_to(None)
    assert find_outcome(resharing) == (Outcome.SETTLED, "")
    resharing.drive_to_rest()
    assert set(map(tuple, resharing.count_sets().values())) == {(2,)}
    new_keks = int(resharing.depth.renews_key)  # which stay beside those of before
    assert (count_free(memory), resharing.store.scrubs) == (free - new_keks, 1)


def test_each_step_is_audited_in_its_change(resharing: Resharing) -> None:
    """Who began it stands in the first entry; the nexus itself did the rest."""
    resharing.begin()
    resharing.drive_to_rest()
    entries = [entry for _, entry in resharing.core.list_change_entries()]
    assert [(entry.actor, entry.action) for entry in entries] == [
        (SUPERUSER.spiffe_id, "root.start"),
        ("", "root.distribute"),
        ("", "root.flip"),
        ("", "root.settle"),
        ("", "root.forget-sets"),
    ]
    assert {entry.detail for entry in entries[1:4]} == {f"reshare {NEW_ID.hex()[:8]}, set 1 → 2"}


def test_the_new_set_brings_the_key_back_after_a_restart(resharing: Resharing, restart: Restart) -> None:
    """Keepers gave it to a nexus that had nothing else."""
    resharing.begin(ResharePlan(threshold=2))
    resharing.drive_to_rest()
    core = restart()
    assert core.lifecycle.require_serving().shard_set.record.set_number == 2
    assert core.lifecycle.require_serving().root_key.view == resharing.cluster.root_key


@DEPTHS
def test_callers_notice_nothing(resharing: Resharing) -> None:
    """What was written before is read at each step, and written again."""
    core = resharing.core

    def use(number: int) -> None:
        core.vault.put(SUPERUSER, "a", {"value": b"%d" % number}, Expected(), os.urandom(16))
        assert core.vault.get(SUPERUSER, "a", 0).fields["value"] == b"%d" % number

    resharing.begin()
    for number, step in enumerate((Step.PREPARED, Step.DISTRIBUTED, Step.FLIPPED, None)):
        resharing.drive_to(step)
        use(number)


@DEPTHS
def test_one_that_is_found_at_prepared_is_taken_back(resharing: Resharing, restart: Restart) -> None:
    """Its points died with the process that drew them."""
    resharing.begin()
    restart()
    resharing.drive_to(None)
    outcome, why = find_outcome(resharing)
    assert (outcome, "died with the process that began it" in why) == (Outcome.ABORTED, True)
    resharing.drive_to_rest()
    assert resharing.states == {1: SetState.CURRENT}


@DEPTHS
def test_one_that_is_found_at_distributed_is_carried_on(
    resharing: Resharing, restart: Restart, memory: ProtectedMemory
) -> None:
    """Keepers bring the new points back; then a keeper that lacks its shard is given it, and the set is flipped."""
    resharing.keepers[4].refusal = "not today"
    resharing.begin()
    resharing.drive_to(Step.DISTRIBUTED)
    core = restart()
    free = count_free(memory) - int(resharing.depth.renews_key)  # the new KEK
    resharing.keepers[4].refusal = ""
    resharing.drive_to(Step.FLIPPED)
    assert resharing.operation is not None
    assert resharing.operation.driver == core.driver.driver
    assert resharing.count_sets()["keeper-5"] == [1, 2]
    resharing.drive_to_rest()
    assert (resharing.states, find_outcome(resharing)) == ({2: SetState.CURRENT}, (Outcome.SETTLED, ""))
    assert count_free(memory) == free
    assert "root.takeover" in resharing.actions()


@DEPTHS
def test_one_that_keepers_do_not_bring_back_is_taken_back_after_a_minute(
    resharing: Resharing, restart: Restart
) -> None:
    """Without its points, the process that took it over cannot fill a keeper."""
    resharing.keepers[4].refusal = "not today"
    resharing.begin()
    resharing.drive_to(Step.DISTRIBUTED)
    core = restart()
    new = resharing.facts.sets[2].set_id
    for keeper in resharing.keepers:
        keeper.sets.pop(new, None)

    def act() -> bool:
        try:
            core.driver.step()
        except TooFewShardsError:
            core.clock.advance(PATIENCE)
        return resharing.step is None

    wait_until(act, what="the abort", seconds=60)
    outcome, why = find_outcome(resharing)
    assert (outcome, "did not bring set 2 back" in why) == (Outcome.ABORTED, True)


@DEPTHS
def test_one_that_is_found_at_flipped_is_settled(resharing: Resharing, restart: Restart) -> None:
    """What is current stays current, and keepers are asked for it once more."""
    resharing.begin()
    resharing.drive_to(Step.FLIPPED)
    for keeper in resharing.keepers:
        keeper.calls.clear()
    restart()
    resharing.drive_to_rest()
    assert (resharing.states, find_outcome(resharing)) == ({2: SetState.CURRENT}, (Outcome.SETTLED, ""))
    assert sum(keeper.count("fetch_shard") >= 1 for keeper in resharing.keepers) >= 3


@DEPTHS
def test_liars_keep_it_from_being_distributed(resharing: Resharing) -> None:
    """A key that keepers cannot give back is not flipped to; whoever lies is named, and it ends once they stop."""
    for keeper in resharing.keepers[:3]:
        keeper.pretends = True
    resharing.begin()
    resharing.drive(until=lambda: sum(bool(seat.status.fault) for seat in resharing.core.pool.seats) == 3)
    waits_for = "keeper-1, keeper-2, keeper-3 to hold set 2"
    resharing.drive(until=lambda: resharing.core.driver.waits_for == waits_for)
    for _ in range(3):
        resharing.core.driver.step()
    assert (resharing.step, resharing.core.driver.waits_for) == (Step.PREPARED, waits_for)
    for keeper in resharing.keepers[:3]:
        keeper.pretends = False
    resharing.drive_to_rest()
    assert resharing.states == {2: SetState.CURRENT}


def test_all_keepers_are_waited_for_and_then_a_quorum_is_enough(resharing: Resharing) -> None:
    """Just after a flip, as many keepers may fail as hold more than the threshold."""
    resharing.keepers[4].refusal = "not today"
    resharing.begin()
    resharing.drive_to(Step.DISTRIBUTED)
    driver = resharing.core.driver
    for _ in range(3):
        driver.step()
    assert (resharing.step, driver.waits_for) == (Step.DISTRIBUTED, "keeper-5 to hold set 2")
    resharing.core.clock.advance(PATIENCE)
    resharing.drive_to(Step.FLIPPED)


@DEPTHS
def test_less_than_a_quorum_is_never_enough(resharing: Resharing) -> None:
    """Three of five hold the new set; without an operator's word the operation waits on."""
    for keeper in resharing.keepers[3:]:
        keeper.refusal = "not today"
    resharing.begin()
    resharing.core.clock.advance(PATIENCE)
    new = resharing.facts.sets[2].set_id
    resharing.drive(until=lambda: len(resharing.core.pool.find_holders(new)) == 3, what="three holders")
    for _ in range(5):
        resharing.core.driver.step()
    assert resharing.step is Step.PREPARED
    assert resharing.core.driver.waits_for == "keeper-4, keeper-5 to hold set 2"


@DEPTHS
def test_a_step_is_refused_when_another_transition_came_first(resharing: Resharing) -> None:
    """An abort that is committed between the look and the step is not overwritten."""
    resharing.begin()
    resharing.drive_to(Step.DISTRIBUTED)

    def abort() -> None:
        resharing.core.operations.abort(OPERATOR, NEW_ID, "first")

    def act() -> bool:
        resharing.store.at_write = abort  # just before the driver's own change
        try:
            resharing.core.driver.step()
        finally:
            resharing.store.at_write = None
        return False

    with pytest.raises(OperationRefusedError, match="no operation is in progress") as refused:
        wait_until(act, what="the refusal")
    assert refused.value.reason == "NO_OPERATION"
    assert resharing.states == {1: SetState.CURRENT, 2: SetState.DEAD}
    assert resharing.core.lifecycle.require_serving().shard_set.record.set_number == 1
    resharing.drive_to_rest()


@DEPTHS
@pytest.mark.parametrize("step", [Step.PREPARED, Step.DISTRIBUTED, Step.FLIPPED])
def test_an_unknown_outcome_ends_the_process(resharing: Resharing, step: Step) -> None:
    """Nobody knows what keepers have to hold."""
    resharing.begin()
    resharing.drive_to(step)
    resharing.store.forgets_outcome = True
    with pytest.raises(OutcomeUnknownError):
        resharing.drive(until=lambda: resharing.step is not step)
    resharing.core.driver.start()
    wait_until(lambda: resharing.core.failures)
    assert "operation: " in resharing.core.failures[0]


@DEPTHS
@pytest.mark.parametrize("step", [Step.PREPARED, Step.DISTRIBUTED, Step.FLIPPED])
def test_what_is_not_committed_is_tried_again(resharing: Resharing, step: Step) -> None:
    """A full disk ends nothing: the step before stays, and what is served stays."""
    resharing.begin()
    resharing.drive_to(step)
    number = resharing.core.lifecycle.require_serving().shard_set.record.set_number
    resharing.store.cannot_commit = True
    with pytest.raises(StoreUnavailableError):
        resharing.drive(until=lambda: resharing.step is not step)
    assert resharing.core.lifecycle.require_serving().shard_set.record.set_number == number
    resharing.store.cannot_commit = False
    resharing.drive_to_rest()
    assert resharing.states == {2: SetState.CURRENT}


@DEPTHS
@pytest.mark.parametrize("step", [Step.PREPARED, Step.DISTRIBUTED, Step.FLIPPED])
def test_a_seal_in_the_middle_wipes_every_key(resharing: Resharing, memory: ProtectedMemory, step: Step) -> None:
    """Before the flip the operation is taken back with the seal; after it, it stays."""
    resharing.begin()
    resharing.drive_to(step)
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    with pytest.raises(SealedError):
        resharing.core.driver.step()
    resharing.core.driver.stop()
    assert is_wiped(memory)
    _, rows = resharing.cluster.load()
    assert any((row.kind, row.name) == records.OPERATION for row in rows) == (step is Step.FLIPPED)
    wait_until(lambda: not any(keeper.sets for keeper in resharing.keepers))


@DEPTHS
def test_a_seal_between_fetch_and_proof_wipes_what_was_fetched(resharing: Resharing, memory: ProtectedMemory) -> None:
    """At once, and not when the driver looks again."""
    resharing.begin()
    with armed("distribute.rehearse:before:1:error"), pytest.raises(InjectedError):
        resharing.drive_to(Step.DISTRIBUTED)
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    assert is_wiped(memory)


@DEPTHS
@pytest.mark.parametrize("step", [Step.PREPARED, Step.DISTRIBUTED, Step.FLIPPED, None])
def test_an_end_in_the_middle_leaves_no_thread_and_no_key(
    resharing: Resharing, memory: ProtectedMemory, step: Step | None
) -> None:
    """The thread is joined, and what it fetched is wiped."""
    resharing.begin()
    resharing.drive_to(step)
    resharing.core.driver.start()
    resharing.core.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "operation"]
    assert is_wiped(memory)


@DEPTHS
def test_an_end_between_fetch_and_proof_wipes_what_was_fetched(resharing: Resharing, memory: ProtectedMemory) -> None:
    """Nothing else owns it."""
    resharing.begin()
    with armed("distribute.rehearse:before:1:error"), pytest.raises(InjectedError):
        resharing.drive_to(Step.DISTRIBUTED)
    resharing.core.pool.stop()
    held = count_free(memory)
    resharing.core.driver.stop()
    assert count_free(memory) == held + 3


def test_the_thread_does_it_all(resharing: Resharing) -> None:
    """It begins at once when an operation is begun, and rests when nothing is to do."""
    resharing.core.driver.start()
    resharing.begin()
    wait_until(lambda: resharing.ended is not None)
    assert resharing.ended is not None
    assert resharing.ended.outcome is Outcome.SETTLED
    resharing.wait_for_rest()
    assert resharing.core.failures == []


def test_what_is_prepared_while_the_driver_looks_keeps_its_points(resharing: Resharing) -> None:
    """A look that began before the commit found no pending set, and must not withdraw it from the keepers."""

    def begin_at_next_read() -> None:
        resharing.store.at_read = resharing.begin

    resharing.store.at_read = begin_at_next_read
    resharing.core.driver.step()
    assert resharing.core.lifecycle.require_serving().others.pending is not None
    resharing.drive_to_rest()
    assert resharing.states == {2: SetState.CURRENT}


def test_what_the_driver_sees_right_after_its_commit_is_not_taken_back(resharing: Resharing) -> None:
    """The driver's thread may look before the call that began the operation has returned."""
    resharing.core.driver.step()
    with resharing.looking_at_commit():
        resharing.begin()
    resharing.drive_to_rest()
    assert resharing.states == {2: SetState.CURRENT}


def test_a_row_that_does_not_verify_ends_the_operation(resharing: Resharing, restart: Restart) -> None:
    """What cannot be read is not carried on: everything that was staged is gone, and the current set stays."""
    resharing.begin()
    tamper(resharing.core.folder, "UPDATE control SET body = x'80' WHERE kind = ?", records.OPERATION[0])
    resharing.drive(until=lambda: records.OPERATION not in resharing.facts.damaged, what="healing")
    assert resharing.actions()[-1] == "root.heal"
    resharing.drive_to_rest()
    assert resharing.states == {1: SetState.CURRENT}
    restart()


def test_it_is_not_retried_faster_than_once_a_second(resharing: Resharing) -> None:
    """While nothing can be done, the store is looked at, and neither keepers nor the log are flooded."""
    assert resharing.core.driver.step() == 1.0
    resharing.keepers[0].refusal = resharing.keepers[1].refusal = "not today"
    resharing.begin()
    resharing.drive(until=lambda: bool(resharing.core.driver.waits_for))
    assert resharing.core.driver.step() == 1.0


@pytest.mark.parametrize("point", sorted(NEXUS - {"prepare.commit", "seal.end", "unseal.end", "takeover.commit"}))
@pytest.mark.parametrize("side", ["before", "after"])
def test_an_error_at_any_point_only_delays(resharing: Resharing, point: str, side: str) -> None:
    """What fails once is tried again, and the operation ends in one of its two ways with one current set."""
    is_abort = point.startswith("abort")
    resharing.begin()
    if is_abort:
        resharing.drive_to(Step.DISTRIBUTED)
    with armed(f"{point}:{side}:1:error"):
        while is_abort and resharing.step is not None:
            with suppress(InjectedError):
                resharing.core.operations.abort(OPERATOR, NEW_ID, "")
        resharing.core.driver.start()
        resharing.wait_for_rest()
        resharing.core.driver.stop()
    current = 1 if is_abort else 2
    assert resharing.states == {current: SetState.CURRENT}
    wait_until(lambda: set(map(tuple, resharing.count_sets().values())) == {(current,)})
