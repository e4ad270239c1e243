"""Operations that something else ends: a seal, an unseal, the acceptance of an older store, a warden that moves on."""

from dataclasses import replace

import pytest

from common.errors import SealedError, StoreUnavailableError
from common.keys.protected import ProtectedMemory
from nexus.keys import records
from nexus.keys.opened import OtherSets
from nexus.keys.operation.record import Outcome, Step
from nexus.keys.records import SetState
from nexus.keys.root_key import RootKey
from nexus.lifecycle.states import State
from nexus.store.protocol import Writer
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.reshared import DEPTHS, Resharing, is_wiped_set
from tests.nexus.cluster import is_wiped
from tests.nexus.conftest import StartNexus
from tests.nexus.core import OPERATOR, NexusCore

BEFORE_FLIP = [Step.PREPARED, Step.DISTRIBUTED]


def no_entry(writer: Writer, key: RootKey) -> None:
    """For a change that is not audited."""


def restart(resharing: Resharing, start_nexus: StartNexus) -> NexusCore:
    """Start the nexus again while no keeper gives anything back: only custodians bring the key."""
    for keeper in resharing.keepers:
        keeper.is_reachable = False
    resharing.core = start_nexus(resharing.keepers, store=resharing.store)
    return resharing.core


def expect_end(resharing: Resharing, step: Step) -> None:
    """See that the operation has ended by its step, that one new set is current, and that the others are dead."""
    ended = resharing.ended
    assert ended is not None
    assert resharing.operation is None
    assert ended.outcome is (Outcome.SETTLED if step is Step.FLIPPED else Outcome.ABORTED)
    assert resharing.states == {1: SetState.DEAD, 2: SetState.DEAD, 3: SetState.CURRENT}
    for keeper in resharing.keepers:
        keeper.is_reachable = True
    resharing.drive_to_rest()
    assert set(map(tuple, resharing.count_sets().values())) == {(3,)}


@DEPTHS
@pytest.mark.parametrize("step", list(Step))
def test_custodians_end_an_operation_in_the_change_that_unseals(
    resharing: Resharing, start_nexus: StartNexus, step: Step
) -> None:
    """They know no points of either set, so both are replaced; the next operation begins as any other."""
    resharing.begin()
    resharing.drive_to(step)
    core = restart(resharing, start_nexus)
    assert core.warden.admit(resharing.prove_as_custodians(), no_entry)
    expect_end(resharing, step)
    assert resharing.begin(operation_id=bytes(16)).record.target.set_number == 4


@DEPTHS
@pytest.mark.parametrize("step", list(Step))
def test_accepting_an_older_store_ends_its_operation(resharing: Resharing, start_nexus: StartNexus, step: Step) -> None:
    """The store that was put back is in the middle of one that has long ended elsewhere."""
    resharing.begin()
    resharing.drive_to(step)
    core = restart(resharing, start_nexus)
    newer = resharing.current.sign_mark(1, 999, control_revision=99, set_number=2)
    resharing.keepers[0].remembers = newer
    resharing.keepers[0].is_reachable = True
    wait_until(lambda: core.warden.find_newer_mark() is not None)
    assert not core.warden.admit(resharing.prove_as_custodians(), no_entry)
    meta, _ = resharing.cluster.load()
    resharing.keepers[0].remembers = None
    assert core.warden.accept(meta.timeline, meta.revision, no_entry, actor="") == 2
    expect_end(resharing, step)


@DEPTHS
@pytest.mark.parametrize("step", list(Step))
def test_a_replacement_that_is_not_committed_ends_nothing(
    resharing: Resharing, start_nexus: StartNexus, memory: ProtectedMemory, step: Step
) -> None:
    """What was drawn is wiped, and the operation stands as it stood."""
    resharing.begin()
    resharing.drive_to(step)
    core = restart(resharing, start_nexus)
    before = resharing.cluster.load()
    resharing.store.cannot_commit = True
    with pytest.raises(StoreUnavailableError):
        core.warden.admit(resharing.prove_as_custodians(), no_entry)
    assert resharing.cluster.load() == before
    core.close()
    assert is_wiped(memory)


@DEPTHS
@pytest.mark.parametrize("step", BEFORE_FLIP)
def test_a_seal_takes_back_what_is_not_flipped(resharing: Resharing, step: Step) -> None:
    """In the change that seals: after the unseal nobody has its points."""
    resharing.begin()
    resharing.drive_to(step)
    revision = resharing.facts.meta.revision
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    meta, rows = resharing.cluster.load()
    assert (meta.sealed, meta.revision) == (True, revision + 1)
    ended = next(row.body for row in rows if (row.kind, row.name) == records.ENDED)
    assert b"the cluster was sealed" in ended
    assert not any((row.kind, row.name) == records.OPERATION for row in rows)


@DEPTHS
def test_a_flipped_operation_stays_through_a_seal(resharing: Resharing) -> None:
    """There is no way back from it; the unseal ends it."""
    resharing.begin()
    resharing.drive_to(Step.FLIPPED)
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    assert any((row.kind, row.name) == records.OPERATION for row in resharing.cluster.load()[1])
    assert resharing.core.warden.admit(resharing.prove_as_custodians(), no_entry, asked_in=State.SEALED)
    expect_end(resharing, Step.FLIPPED)


@DEPTHS
def test_points_of_a_set_that_is_no_more_are_wiped_when_others_are_handed_out(
    resharing: Resharing, memory: ProtectedMemory
) -> None:
    """Handing out the same set again wipes nothing."""
    resharing.begin()
    warden, serving = resharing.core.warden, resharing.core.lifecycle.require_serving()
    pending = serving.others.pending
    assert pending is not None
    shard_set = pending.shard_set
    warden.hand_out(serving, replace(serving.others, leaving=()))
    assert not is_wiped_set(shard_set, memory)
    warden.hand_out(serving, OtherSets())
    assert is_wiped_set(shard_set, memory)


def test_nothing_is_handed_out_or_changed_without_the_key(resharing: Resharing) -> None:
    """A driver that comes late finds another state, and gives keepers no duty in it."""
    warden, serving = resharing.core.warden, resharing.core.lifecycle.require_serving()
    others = serving.others
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    warden.hand_out(serving, OtherSets(newest=(9, 9)))
    warden.keep_again()
    assert serving.others == others
    with pytest.raises(SealedError):
        warden.change(lambda _: pytest.fail("there are no keys"))
    wait_until(lambda: not any(keeper.sets for keeper in resharing.keepers))
