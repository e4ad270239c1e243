"""How an operation comes to each failpoint, and what is known of it once a process died there and was started again."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import grpc

from common.failpoint import NEXUS
from nexus.keys import records
from nexus.keys.operation.settings import SETTINGS
from shardhold.v1 import root_pb2 as pb
from tests.cluster.damaged_version import DamagedVersion
from tests.cluster.operations import REASON, Operations, wait_proofs_old
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most

# What is known in the end. Renewed: no operation, but the root key was replaced at once.
NEVER, ABORTED, SETTLED, RENEWED = "never", "aborted", "settled", "renewed"
HOLDER = "keeper-3"  # stops when it is given its new shard, so that the operation waits
ARMED_KEEPER = "keeper-2"
_TIMEOUT_S = 20.0


@dataclass
class Try:
    """One process dies at one point of an operation of some depth."""

    operations: Operations
    depth: "pb.Depth.ValueType"
    point: str  # as a failpoint is written
    damaged: DamagedVersion = field(init=False)  # once there is one

    @property
    def cluster(self) -> Cluster:
        return self.operations.cluster

    @property
    def victim(self) -> str:
        """Who dies."""
        return "nexus" if self.point.partition(":")[0] in NEXUS else ARMED_KEEPER

    def arm(self) -> None:
        """Start the nexus with the point, and wait until it is ready."""
        self.operations.arm("nexus", self.point)
        self.cluster.wait_ready()

    def begin(self) -> None:
        """Begin the operation, which may be cut off."""
        with cut_off():
            self.operations.begin(self.depth)


Act = Callable[[Try], None]


def do_nothing(_: Try) -> None:
    """Nothing is to be done."""


def bring_back(one: Try) -> None:
    """Bring the root key back, if it was lost."""
    one.cluster.bring_back()


@dataclass(frozen=True)
class Way:
    """How a cell comes to its point, and what is known when the process died before it, and after it."""

    before: str
    after: str
    reach: Act
    prepare: Act = do_nothing  # before the writer begins
    bring_back: Act = bring_back  # once the process runs again
    mend: Act = do_nothing  # once no operation is in progress


@contextmanager
def cut_off() -> Iterator[None]:
    """A call that the end of the nexus may cut off."""
    try:
        yield
    except grpc.RpcError as exc:
        if exc.code() is not grpc.StatusCode.UNAVAILABLE:
            raise


def drive(one: Try) -> None:
    """An armed nexus carries an operation out."""
    one.arm()
    one.begin()


def back_up(one: Try) -> None:
    """The root key of now has a backup."""
    one.operations.back_up()


def drive_with_backup(one: Try) -> None:
    """An armed nexus carries an operation out, and makes a backup of the new root key."""
    one.arm()
    one.operations.begin(one.depth, wants_backup=True)


def find_one(at: str) -> Act:
    """An armed nexus finds the operation of another process, which died *at* a point."""

    def reach(one: Try) -> None:
        _leave_at(one, at)
        one.operations.arm("nexus", one.point)

    return reach


def find_damaged(one: Try) -> None:
    """An armed nexus finds an operation of which nothing can be read any more."""
    _leave_at(one, "distribute.commit:after:1:kill")
    with closing(sqlite3.connect(one.cluster.directory.data / "nexus.db")) as database:
        damaged = database.execute("UPDATE control SET body = x'7b7d' WHERE kind = ?", (records.OPERATION[0],))
        assert damaged.rowcount == 1
        database.commit()
    one.operations.arm("nexus", one.point)


def hold(act: Act) -> Act:
    """Something is asked of an armed nexus while an operation waits for a keeper."""

    def reach(one: Try) -> None:
        operations, cluster = one.operations, one.cluster
        operations.arm(HOLDER, "put.store:before:2:pause")  # the first put is of the current set
        cluster.wait_filled(HOLDER)
        one.arm()
        cluster.wait_filled()
        operations.begin(one.depth)
        operations.wait_asleep(HOLDER)
        operations.wait_waiting(HOLDER)
        with cut_off():
            act(one)
        operations.wait_killed("nexus", one.point)
        cluster.rerun(HOLDER)

    return reach


def go_on(one: Try) -> None:
    """Continue with the threshold."""
    one.operations.go_on(with_threshold=True)


def seal(one: Try) -> None:
    """Seal."""
    one.cluster.superuser.seal()


def wake_late(one: Try) -> None:
    """Let the keeper go on when the others have shown their shards so long ago that they have to again."""
    wait_proofs_old()
    one.cluster.thaw(HOLDER)


def lose_keepers(one: Try) -> None:
    """Custodians unseal an armed nexus whose keepers were all lost right after a flip."""
    _leave_at(one, "flip.commit:after:1:kill")
    one.cluster.rerun(*one.cluster.keepers)
    one.operations.arm("nexus", one.point)
    with cut_off():
        one.cluster.wait_settled()
        one.cluster.unseal()


def begin(one: Try) -> None:
    """An operation of which an armed keeper dies."""
    one.operations.begin(one.depth)


def arm_keeper(count: int) -> Act:
    """A keeper is armed, filled and marked; the point is the *count*th that it reaches."""

    def prepare(one: Try) -> None:
        name, side, _, action = one.point.split(":")
        one.operations.arm(ARMED_KEEPER, f"{name}:{side}:{count}:{action}")
        one.cluster.wait_filled(ARMED_KEEPER)
        one.cluster.wait_marked(ARMED_KEEPER)

    return prepare


def put_store_back(one: Try) -> None:
    """An armed nexus finds a store that is older than its keepers remember."""
    cluster = one.cluster
    cluster.wait_marked()
    cluster.kill("nexus")
    older = cluster.store.copy(one.point.replace(":", "-"))
    cluster.start_nexus()
    cluster.allow("/newer", ["newer/**"], ["read"])
    cluster.wait_marked()
    cluster.kill("nexus")
    cluster.store.put_back(older)
    one.operations.arm("nexus", one.point)
    one.operations.wait_refused()


def accept(one: Try) -> None:
    """Accept it."""
    with cut_off():
        one.cluster.superuser.accept_older_store(*one.operations.wait_refused())


def accept_again(one: Try) -> None:
    """Accept it, unless that was committed: then no keeper has a shard of the new set, and custodians are needed."""
    one.cluster.wait_settled()
    if one.cluster.superuser.get_status().HasField("newer_mark"):
        accept(one)
    bring_back(one)


def damage(one: Try) -> None:
    """One version does not open."""
    one.damaged = DamagedVersion(one.operations)


def set_aside(one: Try) -> None:
    """One version is in quarantine, after the operation."""
    damage(one)
    one.cluster.start_nexus()
    one.operations.rotate(one.depth)
    one.damaged.wait_quarantined()


def repair(one: Try) -> None:
    """One version is in quarantine, and would open by now."""
    set_aside(one)
    one.damaged.repair()
    one.arm()


def set_aside_and_arm(one: Try) -> None:
    """One version is in quarantine of an armed nexus."""
    set_aside(one)
    one.arm()


def give_up_and_forget(one: Try) -> None:
    """The secret of a version that was given up is gone before the keyring job noticed; it is paused."""
    set_aside(one)
    pause(one)
    one.damaged.give_up()
    one.damaged.forget()
    one.arm()


def retry(one: Try) -> None:
    """Let it be tried again."""
    with cut_off():
        one.damaged.retry()


def give_up(one: Try) -> None:
    """Give it up by name."""
    with cut_off():
        one.damaged.give_up()


def decide(one: Try) -> None:
    """Give up what is in quarantine, and remove it once its KEK is gone."""
    one.damaged.wait_quarantined()
    one.damaged.give_up()
    one.cluster.wait("one KEK is left", lambda: len(one.operations.look().keks) == 1)
    one.damaged.forget()


def pause(one: Try) -> None:
    """Pause the keyring job and the schedule."""
    with cut_off():
        request = pb.PauseRotationRequest(reason=REASON)
        one.cluster.superuser.root.PauseRotation(request, timeout=at_most(_TIMEOUT_S))


def resume(one: Try) -> None:
    """Let them go on."""
    with cut_off():
        one.cluster.superuser.root.ResumeRotation(pb.ResumeRotationRequest(), timeout=at_most(_TIMEOUT_S))


def resume_what_is_paused(one: Try) -> None:
    """Let them go on; they were paused if that was committed."""
    assert (SETTINGS in one.operations.stored.load().control) is (":after:" in one.point)
    resume(one)


def arm(one: Try) -> None:
    """The nexus is armed, and nothing is in progress."""
    one.arm()


def _leave_at(one: Try, at: str) -> None:
    """Let a nexus die *at* a point of an operation."""
    operations = one.operations
    operations.arm("nexus", at)
    one.cluster.wait_ready()
    one.begin()
    operations.wait_killed("nexus", at)
    operations.stored.remember()


WAYS = {
    "prepare.key": Way(NEVER, NEVER, drive),
    "prepare.escrow": Way(NEVER, NEVER, drive),
    "prepare.commit": Way(NEVER, ABORTED, drive),
    "distribute.put": Way(ABORTED, ABORTED, drive),
    "distribute.fetch": Way(ABORTED, ABORTED, drive),
    "distribute.rehearse": Way(ABORTED, ABORTED, drive),
    "distribute.commit": Way(ABORTED, SETTLED, drive),
    "flip.mark": Way(SETTLED, SETTLED, drive),
    "flip.holders": Way(SETTLED, SETTLED, hold(wake_late)),
    "flip.commit": Way(SETTLED, SETTLED, drive),
    "flip.signer": Way(SETTLED, SETTLED, drive),
    "flip.mark-after": Way(SETTLED, SETTLED, drive),
    "settle.collect": Way(SETTLED, SETTLED, drive),
    "settle.prove": Way(SETTLED, SETTLED, drive),
    "settle.commit": Way(SETTLED, SETTLED, drive),
    "settle.scrub": Way(SETTLED, SETTLED, drive),
    "settle.drop": Way(SETTLED, SETTLED, drive),
    "forget.commit": Way(SETTLED, SETTLED, drive),
    "takeover.commit": Way(SETTLED, SETTLED, find_one("distribute.commit:after:1:kill")),
    "abort.commit": Way(ABORTED, ABORTED, find_one("prepare.commit:after:1:kill")),
    "abort.scrub": Way(ABORTED, ABORTED, find_one("prepare.commit:after:1:kill")),
    "abort.drop": Way(ABORTED, ABORTED, find_one("prepare.commit:after:1:kill")),
    "heal.commit": Way(NEVER, NEVER, find_damaged),
    "continue.commit": Way(ABORTED, ABORTED, hold(go_on)),
    "seal.end": Way(ABORTED, ABORTED, hold(seal)),
    "unseal.end": Way(SETTLED, SETTLED, lose_keepers),
    "accept.escrow": Way(RENEWED, RENEWED, accept, put_store_back, accept_again),
    "accept.commit": Way(RENEWED, RENEWED, accept, put_store_back, accept_again),
    "job.commit": Way(SETTLED, SETTLED, drive),
    "job.quarantine": Way(SETTLED, SETTLED, drive, damage, mend=decide),
    "job.verify": Way(SETTLED, SETTLED, drive),
    "job.verified": Way(SETTLED, SETTLED, drive),
    "job.backup": Way(SETTLED, SETTLED, drive_with_backup, back_up),
    "job.recount": Way(SETTLED, SETTLED, resume, give_up_and_forget),
    "job.retire": Way(SETTLED, SETTLED, drive),
    "job.forget": Way(SETTLED, SETTLED, drive),
    "job.scrub": Way(SETTLED, SETTLED, drive),
    "quarantine.retry": Way(SETTLED, SETTLED, retry, repair, mend=retry),
    "quarantine.abandon": Way(SETTLED, SETTLED, give_up, set_aside_and_arm, mend=decide),
    "settings.commit": Way(NEVER, NEVER, pause, arm, mend=resume_what_is_paused),
    "put.store": Way(SETTLED, SETTLED, begin, arm_keeper(2)),  # the first one fills it
    "fetch.answer": Way(SETTLED, SETTLED, begin, arm_keeper(1)),
    "drop.wipe": Way(SETTLED, SETTLED, begin, arm_keeper(1)),
    "mark.store": Way(SETTLED, SETTLED, begin, arm_keeper(2)),
}
