"""A store from before an operation is put back, or one from the middle of it: keepers remember better.

In a run with TEST_ROUND stores from a rotation take turns.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.keys import records
from nexus.keys.operation.record import OperationRecord
from pilot.dev.directory import Plan
from shardhold.v1 import root_pb2 as pb
from tests.cluster.operations import Operations
from tests.cluster.turns import list_due
from tests.kit.cluster import running

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

BEFORE, DISTRIBUTED, FLIPPED, SETTLED = "before", "distributed", "flipped", "settled"
KILLED_AT = {DISTRIBUTED: "distribute.commit:after:1:kill", FLIPPED: "flip.mark-after:after:2:kill"}  # 2: marks are out


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    """Three keepers, threshold two. In the end the audit of all timelines verifies."""
    with running(tmp_path_factory.mktemp("rollback") / "dev", Plan(keepers=3, threshold=2)) as cluster:
        genesis = cluster.superuser.get_status().genesis.hex()
        yield Operations(cluster)
        cluster.pilot("audit", "verify", "--genesis", genesis)


@pytest.fixture
def operations(shared: Operations) -> Operations:
    """The shared cluster, whole and with a secret."""
    shared.cluster.restore()
    shared.cluster.wait_marked()
    shared.ledger.turn()
    assert not shared.ledger.put()
    return shared


def go_to(operations: Operations, depth: "pb.Depth.ValueType", step: str) -> None:
    """Bring an operation to a step, and kill the nexus there; it is begun unless the store has one."""
    cluster = operations.cluster
    if step == BEFORE:
        cluster.wait_marked()
        cluster.kill("nexus")
        return
    is_begun = records.OPERATION in operations.stored.load().control
    operations.arm("nexus", KILLED_AT.get(step, ""))
    cluster.wait_ready()
    if not is_begun:
        operations.begin(depth)
    if step != SETTLED:
        operations.wait_killed("nexus", KILLED_AT[step])
        return
    assert operations.wait_ended().outcome == pb.OUTCOME_SETTLED
    operations.check_world()
    cluster.wait_marked()
    cluster.kill("nexus")


def copy_store(operations: Operations) -> Path:
    """Copy the store of a nexus that has just been killed."""
    return operations.cluster.store.copy(os.urandom(4).hex())


def put_back(operations: Operations, older: Path, *, are_shards_held: bool) -> None:
    """Put a store back under a new nexus, and accept it when nothing but marks stands against it."""
    cluster = operations.cluster
    cluster.store.put_back(older)
    operations.stored.remember()
    cluster.run("nexus")
    if not are_shards_held:
        cluster.wait_status(
            "keepers have dropped the set", lambda status: any("0 of 2 shards" in why for why in status["blocked_by"])
        )
        cluster.unseal()
    cluster.superuser.accept_older_store(*operations.wait_refused())
    operations.check_world()


STORES = [
    pytest.param(BEFORE, FLIPPED, True, id="before, keepers hold both sets"),
    pytest.param(BEFORE, SETTLED, False, id="before, keepers have the new set"),
    pytest.param(DISTRIBUTED, SETTLED, False, id="distributed, keepers have the new set"),
    pytest.param(FLIPPED, SETTLED, True, id="flipped, keepers have the new set"),
]


@pytest.mark.parametrize(("older", "newer", "are_shards_held"), list_due(STORES))
def test_a_store_from_a_rotation(operations: Operations, older: str, newer: str, are_shards_held: bool) -> None:
    """It is refused; once it is accepted a new root key is current, keepers bring it back, and so do custodians."""
    go_to(operations, pb.DEPTH_ROTATE, older)
    copy = copy_store(operations)
    go_to(operations, pb.DEPTH_ROTATE, newer)
    rotated = operations.stored.load().current
    put_back(operations, copy, are_shards_held=are_shards_held)
    accepted = operations.stored.load().current
    assert accepted[0] > rotated[0]  # no number is given out twice, neither of a generation
    assert accepted[1] > rotated[1]  # nor of a KEK
    cluster = operations.cluster
    cluster.restart_nexus()
    cluster.kill("nexus")
    cluster.rerun(*cluster.keepers)
    cluster.run("nexus")
    cluster.unseal()
    cluster.wait_ready()
    operations.check_world()


def test_a_store_from_before_a_reshare(operations: Operations) -> None:
    """Keepers have dropped the set that it names: custodians bring the key, and the marks still block."""
    go_to(operations, pb.DEPTH_RESHARE, BEFORE)
    older = copy_store(operations)
    go_to(operations, pb.DEPTH_RESHARE, SETTLED)
    put_back(operations, older, are_shards_held=False)


def test_a_store_from_the_middle_of_a_reshare(operations: Operations) -> None:
    """Its operation was settled since then; accepting the store takes it back, and nothing carries it on."""
    go_to(operations, pb.DEPTH_RESHARE, DISTRIBUTED)
    older = copy_store(operations)
    begun = records.decode(OperationRecord, operations.stored.load().control[records.OPERATION])
    go_to(operations, pb.DEPTH_RESHARE, SETTLED)
    put_back(operations, older, are_shards_held=False)
    ended = operations.look().last
    assert (ended.operation_id, ended.outcome) == (begun.id, pb.OUTCOME_ABORTED)
