"""A nexus or a keeper is killed at every failpoint of a rotation: the world is right afterwards, and nothing is lost.

The cells come from `common.failpoint`, each before and after its block; a point that does not fire fails its cell.
Where the depth of an operation makes a difference, a reshare or an emergency has cells as well. All share a cluster, on
which each cell goes one operation further, so that the start of a cell is also the restart after the one before. In a
run with TEST_ROUND a third of the cells take their turn.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from common.failpoint import KEEPER, NEXUS
from pilot.dev.directory import Plan
from shardhold.v1 import root_pb2 as pb
from tests.cluster.operation_ways import ABORTED, NEVER, RENEWED, SETTLED, WAYS, Try
from tests.cluster.operations import Operations
from tests.cluster.turns import list_due
from tests.kit.cluster import running

pytestmark = [pytest.mark.cluster, pytest.mark.destructive, pytest.mark.final]

# Where the rows, or the keys in memory, differ with the depth.
OF_RESHARES = {
    "prepare.commit",
    "distribute.commit",
    "flip.commit",
    "settle.commit",
    "takeover.commit",
    "abort.commit",
    "heal.commit",
    "unseal.end",
}
OF_EMERGENCIES = {"flip.commit", "job.commit", "job.retire"}
OF_THE_SCHEDULE = {"prepare.backup"}  # which would have to wait for a day
DEPTHS = {
    pb.DEPTH_ROTATE: (NEXUS | KEEPER) - OF_THE_SCHEDULE,
    pb.DEPTH_RESHARE: OF_RESHARES,
    pb.DEPTH_EMERGENCY: OF_EMERGENCIES,
}


class Cell(NamedTuple):
    """A failpoint in an operation of some depth."""

    depth: "pb.Depth.ValueType"
    name: str
    side: str  # before or after

    @property
    def point(self) -> str:
        """As a process is armed with it."""
        return f"{self.name}:{self.side}:1:kill"

    def __str__(self) -> str:
        return f"{pb.Depth.Name(self.depth).removeprefix('DEPTH_').lower()}-{self.name}-{self.side}"


CELLS = [
    Cell(depth, name, side) for depth, names in DEPTHS.items() for name in sorted(names) for side in ("before", "after")
]


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    """Three keepers, threshold two, and a backup, so that there is an identity which has to follow every rotation.

    In the end all is there, also after a start, and the audit of all of it verifies.
    """
    with running(tmp_path_factory.mktemp("kills") / "dev", Plan(keepers=3, threshold=2)) as cluster:
        cluster.wait_filled()
        genesis = cluster.superuser.get_status().genesis.hex()
        operations = Operations(cluster)
        operations.back_up()
        yield operations
        cluster.restart_nexus()
        operations.check_world()
        operations.ledger.check(whole=True)
        operations.back_up()
        cluster.pilot("audit", "verify", "--genesis", genesis)


@pytest.mark.parametrize("cell", list_due(CELLS), ids=str)
def test_a_kill_at_every_point(operations: Operations, cell: Cell) -> None:
    """Every acknowledged secret is there, one set is current and held by all, and nothing of the operation is left."""
    cluster, one = operations.cluster, Try(operations, cell.depth, cell.point)
    way = WAYS[cell.name]
    cluster.restore()
    operations.wait_ended()
    operations.stored.remember()
    before = operations.look()
    way.prepare(one)
    with operations.writing():
        way.reach(one)
        operations.wait_killed(one.victim, one.point)
        operations.stored.remember()
        cluster.run(one.victim)
        way.bring_back(one)
        ended = operations.wait_ended()
    way.mend(one)
    operations.check_world()
    check_outcome(before, operations.look(), way.before if cell.side == "before" else way.after)
    if cell.name == "unseal.end":
        assert operations.stored.find_current().set_number > ended.set_to  # custodians replaced it


def check_outcome(before: pb.GetOperationResponse, after: pb.GetOperationResponse, wanted: str) -> None:
    """Compare how the operation ended, and which root key is current, with what has to be."""
    ended = after.last
    assert (ended.operation_id == before.last.operation_id) is (wanted in (NEVER, RENEWED)), ended
    if wanted in (ABORTED, SETTLED):
        assert pb.Outcome.Name(ended.outcome) == f"OUTCOME_{wanted.upper()}", ended.detail
    is_renewed = wanted == RENEWED or (wanted == SETTLED and ended.depth != pb.DEPTH_RESHARE)
    assert (after.generation > before.generation) is is_renewed
    if wanted == SETTLED:
        assert after.generation == ended.generation_to
