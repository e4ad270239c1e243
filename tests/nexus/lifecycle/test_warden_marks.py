"""The warden before a rollback mark that is newer than the store: blocked, ended, accepted."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from common.errors import ConflictError, DeniedError, RecoveringError, StoreUnavailableError, WrongStateError
from common.forms.mark import SignedMark
from common.keys.protected import ProtectedMemory
from nexus.access.gate import Caller
from nexus.keepers.seat import SeatStatus
from nexus.keys import records
from nexus.keys.root_key import RootKey
from nexus.lifecycle.states import State
from nexus.store.protocol import Meta, Writer
from tests.nexus.cluster import FoundCluster, FoundedCluster, is_wiped
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.core import APP, AUDITOR, OPERATOR, RECOVER, SUPERUSER, NexusCore
from tests.nexus.failing_store import FailingStore
from tests.nexus.played_keepers import PlayedKeeper


def no_entry(writer: Writer, key: RootKey) -> None:
    """For a change that is not audited."""


class Blocked:
    """A nexus whose store was put back: keepers remember more."""

    def __init__(self, cluster: FoundedCluster, start: StartNexus, wait_until: WaitUntil) -> None:
        self.cluster = cluster
        self.keepers = cluster.keepers()
        self.keepers[1].marks.append(cluster.sign_mark(1, 60, set_number=4))
        self.keepers[2].marks.append(cluster.sign_mark(1, 40, last_generation=2, set_number=6))
        self.store = FailingStore(cluster.store)
        self.core: NexusCore = start(self.keepers, store=self.store)
        wait_until(lambda: self.core.warden.find_newer_mark() is not None)

    @property
    def meta(self) -> Meta:
        return self.cluster.load()[0]

    def accept(self, caller: Caller = SUPERUSER) -> int:
        return self.core.seal.accept_older_store(caller, self.meta.timeline, self.meta.revision)

    def accept_when_held(self, wait_until: WaitUntil) -> int:
        """Accept as soon as there is a key."""
        timelines: list[int] = []

        def try_it() -> bool:
            try:
                timelines.append(self.accept())
            except WrongStateError:
                return False
            return True

        wait_until(try_it)
        return timelines[0]


@pytest.fixture
def blocked(found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil) -> Blocked:
    """By the mark of keeper-2, all keepers full."""
    return Blocked(found(), start_nexus, wait_until)


def test_a_newer_mark_blocks_what_keepers_bring_back(blocked: Blocked, wait_until: WaitUntil) -> None:
    """The block names keeper and both positions; the proved key goes nowhere, and no secret is served."""
    core = blocked.core
    wait_until(lambda: len(core.warden.list_obstacles()) == 1)
    (obstacle,) = core.warden.list_obstacles()
    assert obstacle == (
        f"the store is older than a rollback mark: it is at timeline 1, revision {blocked.meta.revision}, "
        "and keeper-2 remember timeline 1, revision 60"
    )
    assert core.states == []
    assert sum(keeper.count("put_shard") + keeper.count("put_mark") for keeper in blocked.keepers) == 0
    with pytest.raises(RecoveringError):
        core.vault.get(SUPERUSER, "a", 0)
    view = core.status.describe(AUDITOR)[1]
    assert view is not None
    assert view.newer is not None
    assert (view.newer.mark.position, view.newer.keepers) == ((1, 60), ("keeper-2",))
    assert view.blocked_by == [obstacle]


@pytest.mark.parametrize("state", [State.RECOVERING, State.SEALED])
def test_a_newer_mark_blocks_what_custodians_bring_back(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, state: State
) -> None:
    """Nothing is committed: after a restart the nexus is where it was."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers:
        keeper.sets.clear()
    keepers[1].marks.append(cluster.sign_mark(1, 60))
    if state is State.SEALED:
        cluster.store.write(lambda writer: writer.save_meta(replace(writer.load_meta(), sealed=True)))
    core = start_nexus(keepers)
    assert core.lifecycle.state is state
    wait_until(lambda: core.warden.find_newer_mark() is not None)
    before = cluster.load()
    assert not core.warden.admit(cluster.prove(), no_entry, asked_in=state)
    assert core.lifecycle.state is State.RECOVERING
    assert cluster.load() == before
    assert sum(keeper.count("put_shard") for keeper in keepers) == 0
    assert start_nexus(keepers).lifecycle.state is state


def test_custodians_wait_for_the_marks_of_keepers(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """They may be faster than keepers answer; those that never do are not waited for."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers[1:]:
        keeper.is_reachable = False
    keepers[0].sets.clear()
    keepers[0].marks.append(cluster.sign_mark(1, 60))
    assert not start_nexus(keepers).warden.admit(cluster.prove(), no_entry)


def test_accepting_after_custodians_clears_the_seal(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """Accepting clears the seal, and the next start recovers from the keepers."""
    cluster = found()
    keepers = cluster.keepers()
    keepers[1].marks.append(cluster.sign_mark(1, 60))
    cluster.store.write(lambda writer: writer.save_meta(replace(writer.load_meta(), sealed=True)))
    core = start_nexus(keepers)
    wait_until(lambda: core.warden.find_newer_mark() is not None)
    assert not core.warden.admit(cluster.prove(), no_entry, asked_in=State.SEALED)
    meta = cluster.load()[0]
    assert core.warden.accept(meta.timeline, meta.revision, no_entry, actor="") == 2
    assert core.states == [State.RECOVERING, State.READY]
    assert not cluster.load()[0].sealed
    assert core.pool.wait_holders(5, seconds=10) == 5
    core = start_nexus(keepers)
    wait_until(lambda: core.states == [State.READY])


def test_a_mark_that_comes_late_ends_ready(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, memory: ProtectedMemory
) -> None:
    """From a keeper that was away when the key came back; the keys are wiped, and recovered again to be held."""
    cluster = found()
    keepers = cluster.keepers()
    keepers[4].is_reachable = False
    keepers[4].marks.append(cluster.sign_mark(1, 60))
    core = start_nexus(keepers)
    wait_until(lambda: core.states == [State.READY])
    serving = core.lifecycle.require_serving()
    keepers[4].is_reachable = True
    wait_until(lambda: core.states == [State.READY, State.RECOVERING])
    with pytest.raises(ValueError, match="released"):
        wait_until(lambda: bytes(serving.root_key.view) == b"")
    assert "keeper-5 remember timeline 1, revision 60" in core.warden.list_obstacles()[-1]
    meta = cluster.load()[0]
    wait_until(lambda: len(core.warden.list_obstacles()) == 1)
    assert core.warden.accept(meta.timeline, meta.revision, no_entry, actor="") == 2
    assert core.states == [State.READY, State.RECOVERING, State.READY]
    core.close()
    assert is_wiped(memory)


def _bad_signature(cluster: FoundedCluster) -> SignedMark:
    return replace(cluster.sign_mark(9, 9), signature=bytes(64))


def _no_mark(cluster: FoundedCluster) -> SignedMark:
    return SignedMark(b"mark", bytes(64), (b"chain",))


def _of_another_cluster(cluster: FoundedCluster) -> SignedMark:
    genesis = replace(cluster.genesis_record, cluster_id=bytes(16))
    return replace(cluster.sign_mark(9, 9), chain=(genesis.encode(),))


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        pytest.param(_bad_signature, "broken signature", id="from the future, badly signed"),
        pytest.param(_of_another_cluster, "of another cluster", id="of another cluster"),
        pytest.param(_no_mark, "chain begins with no genesis record", id="no mark at all"),
    ],
)
def test_a_lying_mark_blocks_nothing_and_its_keeper_is_named(
    found: FoundCluster,
    start_nexus: StartNexus,
    wait_until: WaitUntil,
    forge: Callable[[FoundedCluster], SignedMark],
    why: str,
) -> None:
    """At the start and while ready."""
    cluster = found()
    keepers = cluster.keepers()
    keepers[0].marks.append(forge(cluster))
    core = start_nexus(keepers)
    wait_until(lambda: core.states == [State.READY])
    wait_until(lambda: core.pool.count_holders() == 4)

    def status(keeper: PlayedKeeper) -> SeatStatus:
        return next(seat.status for seat in core.pool.seats if seat.member.name == keeper.name)

    assert "lies" in status(keepers[0]).fault
    assert why in status(keepers[0]).fault
    keepers[1].restart(mark=forge(cluster))
    wait_until(lambda: why in status(keepers[1]).fault)
    wait_until(lambda: core.pool.count_holders() == 3)
    assert core.states == [State.READY]
    assert core.warden.find_newer_mark() is None


def test_accepting_begins_a_timeline_and_a_set_above_every_mark(blocked: Blocked, wait_until: WaitUntil) -> None:
    """One change, audited; then the keepers are given the new set and marks of the new timeline."""
    revision = blocked.meta.revision
    assert blocked.accept_when_held(wait_until) == 2
    core, meta = blocked.core, blocked.meta
    assert core.states == [State.READY]
    assert (meta.timeline, meta.revision, meta.sealed) == (2, revision + 1, False)
    assert (meta.last_generation, meta.last_set_number) == (3, 7)
    record = core.lifecycle.require_serving().shard_set.record
    assert (record.timeline, record.set_number, record.generation, record.threshold) == (2, 7, 3, 3)
    dead = records.decode(records.ShardSetRecord, _find_body(blocked.cluster, "1"))
    assert dead.state is records.SetState.DEAD
    wait_until(lambda: all(set(keeper.sets) == {record.set_id} for keeper in blocked.keepers))
    wait_until(lambda: all(keeper.marks for keeper in blocked.keepers))
    mark = blocked.cluster.book().take("keeper-2", blocked.keepers[1].marks[-1])
    assert mark is not None
    assert (mark.timeline, mark.set_number) == (2, 7)
    ((at, entry),) = core.list_change_entries()
    assert at == meta.revision
    assert (entry.action, entry.detail, entry.outcome) == (
        "store.accept-older",
        f"timeline 1 revision {revision}",
        "ok",
    )
    assert core.warden.find_newer_mark() is None


def _find_body(cluster: FoundedCluster, name: str) -> bytes:
    return next(row.body for row in cluster.load()[1] if (row.kind, row.name) == (records.SHARD_SET, name))


def test_an_accepted_store_stays_accepted(blocked: Blocked, start_nexus: StartNexus, wait_until: WaitUntil) -> None:
    """Keepers that come back and remember what was given up do not block an accepted store."""
    blocked.keepers[4].is_reachable = False
    blocked.keepers[4].marks.append(blocked.cluster.sign_mark(1, 90, set_number=9))
    blocked.accept_when_held(wait_until)
    blocked.core.pool.wait_holders(4, seconds=10)
    blocked.keepers[4].is_reachable = True
    core = start_nexus(blocked.keepers)
    wait_until(lambda: core.states == [State.READY])
    wait_until(lambda: core.pool.count_holders() == 5)
    assert core.warden.list_obstacles() == []


@pytest.mark.parametrize(("timeline", "revision"), [(0, 1), (1, 1), (1, -1), (2, 0)])
def test_only_the_present_position_is_accepted(
    blocked: Blocked, wait_until: WaitUntil, timeline: int, revision: int
) -> None:
    """An acceptance of another position was a decision on something else: the nexus stays blocked."""
    wait_until(lambda: len(blocked.core.warden.list_obstacles()) == 1)
    with pytest.raises(ConflictError, match=f"store is at timeline 1, revision {blocked.meta.revision}"):
        blocked.core.warden.accept(timeline, blocked.meta.revision + revision, no_entry, actor="")
    assert blocked.core.states == []
    assert blocked.accept() == 2


def test_there_is_nothing_to_accept_before_the_key_is_there(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """A new set needs it."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers[1:]:
        keeper.is_reachable = False
    keepers[0].marks.append(cluster.sign_mark(1, 60))
    core = start_nexus(keepers)
    wait_until(lambda: core.warden.find_newer_mark() is not None)
    meta = cluster.load()[0]
    with pytest.raises(WrongStateError, match="no root key yet"):
        core.warden.accept(meta.timeline, meta.revision, no_entry, actor="")
    obstacles = core.warden.list_obstacles()
    assert len(obstacles) == 2  # shards are missing, and the mark


def test_a_nexus_that_is_not_blocked_accepts_nothing(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """Recovering or not."""
    cluster = found()
    meta = cluster.load()[0]
    core = start_nexus([])
    with pytest.raises(WrongStateError, match="nothing to accept"):
        core.warden.accept(meta.timeline, meta.revision, no_entry, actor="")


@pytest.mark.parametrize("caller", [OPERATOR, RECOVER, AUDITOR, APP], ids=lambda caller: caller.role)
def test_only_a_superuser_accepts(blocked: Blocked, caller: Caller) -> None:
    """What was committed after the store's position is lost for good."""
    with pytest.raises(DeniedError, match="role superuser"):
        blocked.accept(caller)
    assert blocked.core.states == []


@pytest.mark.parametrize("flag", ["cannot_commit", "cannot_audit"])
def test_an_acceptance_that_is_not_committed_stays_blocked(
    blocked: Blocked, wait_until: WaitUntil, memory: ProtectedMemory, flag: str
) -> None:
    """The key is still held: the same call works later."""
    wait_until(lambda: len(blocked.core.warden.list_obstacles()) == 1)
    setattr(blocked.store, flag, True)
    with pytest.raises(StoreUnavailableError):
        blocked.accept()
    assert blocked.core.states == []
    assert len(blocked.core.warden.list_obstacles()) == 1
    setattr(blocked.store, flag, False)
    assert blocked.accept() == 2
    assert blocked.core.states == [State.READY]
    blocked.core.close()
    assert is_wiped(memory)


def test_what_was_accepted_is_told_although_the_store_cannot_be_read_any_more(
    blocked: Blocked, wait_until: WaitUntil
) -> None:
    """It is committed: an error would say that it is not."""
    wait_until(lambda: len(blocked.core.warden.list_obstacles()) == 1)

    def fail_reads(writer: Writer, key: RootKey) -> None:
        blocked.store.cannot_read = True

    meta = blocked.meta
    try:
        assert blocked.core.warden.accept(meta.timeline, meta.revision, fail_reads, actor="") == 2
    finally:
        blocked.store.cannot_read = False
    assert blocked.core.lifecycle.state is State.READY


def test_a_held_key_is_wiped_at_the_end(blocked: Blocked, wait_until: WaitUntil, memory: ProtectedMemory) -> None:
    """It was never served."""
    wait_until(lambda: len(blocked.core.warden.list_obstacles()) == 1)
    blocked.core.close()
    assert is_wiped(memory)


def test_a_blocked_nexus_can_be_sealed(
    blocked: Blocked, start_nexus: StartNexus, wait_until: WaitUntil, memory: ProtectedMemory
) -> None:
    """The held key is wiped, the keepers keep their marks: after an unseal it is blocked again."""
    wait_until(lambda: len(blocked.core.warden.list_obstacles()) == 1)
    core = blocked.core
    assert core.warden.seal(no_entry, seconds=10).keepers_emptied == 5
    with pytest.raises(WrongStateError, match="no root key yet"):
        core.warden.accept(1, blocked.meta.revision, no_entry, actor="")
    assert [len(keeper.marks) for keeper in blocked.keepers] == [0, 1, 1, 0, 0]
    assert not core.warden.admit(blocked.cluster.prove(), no_entry, asked_in=State.SEALED)
    core.close()
    assert is_wiped(memory)
