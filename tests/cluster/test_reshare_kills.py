"""A nexus or a keeper is killed at every failpoint of a reshare: the world is right afterwards, and nothing is lost.

The cells come from `common.failpoint`, each before and after its block; a point that does not fire fails its cell. One
cluster, on which each cell reshares once more, so that the start of each cell is also the restart after the one before.
In a run with TEST_ROUND a third of the cells take their turn.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import grpc
import pytest

from common.failpoint import KEEPER, NEXUS
from nexus.keys import records
from pilot.dev.directory import Plan
from shardhold.v1 import root_pb2 as pb
from tests.cluster.reshares import Reshares, wait_proofs_old
from tests.containers.rounds import ROUNDS, parse_round
from tests.kit.cluster import running

pytestmark = [pytest.mark.cluster, pytest.mark.destructive, pytest.mark.final]

NEVER, ABORTED, SETTLED = "never", "aborted", "settled"  # what is known of the operation in the end
HOLDER = "keeper-3"  # stops when it is given its new shard, so that the operation waits


@dataclass(frozen=True)
class Way:
    """How a cell comes to its point, and how the operation ends when the process dies before it, and after it."""

    before: str
    after: str
    reach: Callable[[Reshares, str], None]
    prepare: Callable[[Reshares, str], None] = lambda _, __: None  # before the writer begins


@contextmanager
def cut_off() -> Iterator[None]:
    """A call that the end of the nexus may cut off."""
    try:
        yield
    except grpc.RpcError as exc:
        if exc.code() is not grpc.StatusCode.UNAVAILABLE:
            raise


def reshare(reshares: Reshares, point: str) -> None:
    """An armed nexus reshares."""
    reshares.arm("nexus", point)
    reshares.cluster.wait_ready()
    with cut_off():
        reshares.begin()


def find_one(at: str) -> Callable[[Reshares, str], None]:
    """An armed nexus finds the operation of another process, which died *at* a point."""

    def reach(reshares: Reshares, point: str) -> None:
        reshare(reshares, at)
        reshares.wait_killed("nexus", at)
        reshares.arm("nexus", point)

    return reach


def find_damaged(reshares: Reshares, point: str) -> None:
    """An armed nexus finds an operation of which nothing can be read any more."""
    at = "distribute.commit:after:1:kill"
    reshare(reshares, at)
    reshares.wait_killed("nexus", at)
    with closing(sqlite3.connect(reshares.cluster.directory.data / "nexus.db")) as database:
        damaged = database.execute("UPDATE control SET body = x'7b7d' WHERE kind = ?", (records.OPERATION[0],))
        assert damaged.rowcount == 1
        database.commit()
    reshares.arm("nexus", point)


def hold(act: Callable[[Reshares], None]) -> Callable[[Reshares, str], None]:
    """Something is asked of an armed nexus while an operation waits for a keeper."""

    def reach(reshares: Reshares, point: str) -> None:
        cluster = reshares.cluster
        reshares.arm(HOLDER, "put.store:before:2:pause")  # the first put is of the current set
        cluster.wait_filled(HOLDER)
        reshares.arm("nexus", point)
        cluster.wait_ready()
        cluster.wait_filled()
        reshares.begin()
        reshares.wait_asleep(HOLDER)
        reshares.wait_waiting(HOLDER)
        with cut_off():
            act(reshares)
        reshares.wait_killed("nexus", point)
        cluster.rerun(HOLDER)

    return reach


def go_on(reshares: Reshares) -> None:
    """Continue with the threshold."""
    reshares.go_on(with_threshold=True)


def seal(reshares: Reshares) -> None:
    """Seal."""
    reshares.cluster.superuser.seal()


def wake_late(reshares: Reshares) -> None:
    """Let the keeper go on when the others have shown their shards so long ago that they have to again."""
    wait_proofs_old()
    reshares.cluster.thaw(HOLDER)


def lose_keepers(reshares: Reshares, point: str) -> None:
    """Custodians unseal an armed nexus whose keepers were all lost right after a flip."""
    at = "flip.commit:after:1:kill"
    reshare(reshares, at)
    reshares.wait_killed("nexus", at)
    reshares.cluster.rerun(*reshares.cluster.keepers)
    reshares.arm("nexus", point)
    with cut_off():
        reshares.cluster.wait_settled()
        reshares.cluster.unseal()


def begin(reshares: Reshares, _: str) -> None:
    """A reshare of which an armed keeper dies."""
    reshares.begin()


def arm_keeper(count: int) -> Callable[[Reshares, str], None]:
    """A keeper is armed, filled and marked; the point is the *count*th that it reaches."""

    def prepare(reshares: Reshares, point: str) -> None:
        name, side, _, action = point.split(":")
        reshares.arm("keeper-2", f"{name}:{side}:{count}:{action}")
        reshares.cluster.wait_filled("keeper-2")
        reshares.cluster.wait_marked("keeper-2")

    return prepare


WAYS = {
    "prepare.commit": Way(NEVER, ABORTED, reshare),
    "distribute.put": Way(ABORTED, ABORTED, reshare),
    "distribute.fetch": Way(ABORTED, ABORTED, reshare),
    "distribute.rehearse": Way(ABORTED, ABORTED, reshare),
    "distribute.commit": Way(ABORTED, SETTLED, reshare),
    "flip.mark": Way(SETTLED, SETTLED, reshare),
    "flip.holders": Way(SETTLED, SETTLED, hold(wake_late)),
    "flip.commit": Way(SETTLED, SETTLED, reshare),
    "flip.mark-after": Way(SETTLED, SETTLED, reshare),
    "settle.collect": Way(SETTLED, SETTLED, reshare),
    "settle.prove": Way(SETTLED, SETTLED, reshare),
    "settle.commit": Way(SETTLED, SETTLED, reshare),
    "settle.scrub": Way(SETTLED, SETTLED, reshare),
    "settle.drop": Way(SETTLED, SETTLED, reshare),
    "forget.commit": Way(SETTLED, SETTLED, reshare),
    "takeover.commit": Way(SETTLED, SETTLED, find_one("distribute.commit:after:1:kill")),
    "abort.commit": Way(ABORTED, ABORTED, find_one("prepare.commit:after:1:kill")),
    "abort.scrub": Way(ABORTED, ABORTED, find_one("prepare.commit:after:1:kill")),
    "abort.drop": Way(ABORTED, ABORTED, find_one("prepare.commit:after:1:kill")),
    "heal.commit": Way(NEVER, NEVER, find_damaged),
    "continue.commit": Way(ABORTED, ABORTED, hold(go_on)),
    "seal.end": Way(ABORTED, ABORTED, hold(seal)),
    "unseal.end": Way(SETTLED, SETTLED, lose_keepers),
    "put.store": Way(SETTLED, SETTLED, begin, arm_keeper(2)),  # the first one fills it
    "fetch.answer": Way(SETTLED, SETTLED, begin, arm_keeper(1)),
    "drop.wipe": Way(SETTLED, SETTLED, begin, arm_keeper(1)),
    "mark.store": Way(SETTLED, SETTLED, begin, arm_keeper(2)),
}
# A reshare leaves the keyring job nothing to do, and nothing is in quarantine.
ELSEWHERE = {name for name in NEXUS if name.startswith(("job.", "quarantine."))}
CELLS = [f"{name}:{side}:1:kill" for name in sorted((NEXUS | KEEPER) - ELSEWHERE) for side in ("before", "after")]


def list_due() -> list[str]:
    """Return the cells of this round, which are all of them without TEST_ROUND."""
    number = parse_round(os.environ.get("TEST_ROUND", ""))
    return CELLS if number is None else CELLS[number % ROUNDS :: ROUNDS]


@pytest.fixture(scope="module")
def reshares(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reshares]:
    """Three keepers, threshold two."""
    with running(tmp_path_factory.mktemp("kills") / "dev", Plan(keepers=3, threshold=2)) as cluster:
        cluster.wait_filled()
        yield Reshares(cluster)
        cluster.restart_nexus()
        Reshares(cluster).check_world()


@pytest.mark.parametrize("point", list_due())
def test_a_kill_at_every_point(reshares: Reshares, point: str) -> None:
    """Every acknowledged secret is there, one set is current and held by all, and nothing of the operation is left."""
    cluster, way = reshares.cluster, WAYS[point.partition(":")[0]]
    cluster.restore()
    reshares.wait_ended()
    before = reshares.look()
    way.prepare(reshares, point)
    with reshares.writing():
        way.reach(reshares, point)
        victim = "nexus" if point.partition(":")[0] in NEXUS else "keeper-2"
        reshares.wait_killed(victim, point)
        cluster.run(victim)
        cluster.bring_back()
        ended = reshares.wait_ended()
    reshares.check_world()
    wanted = way.before if ":before:" in point else way.after
    if wanted is NEVER:
        assert ended == before.last
    else:
        assert ended.operation_id != before.last.operation_id
        assert pb.Outcome.Name(ended.outcome) == f"OUTCOME_{wanted.upper()}", ended.detail
    if point.startswith("unseal.end"):
        assert reshares.find_current().set_number > before.set_number + 1  # custodians replaced it
