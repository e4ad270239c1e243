"""One keeper: watched, asked for its shard, and held to it."""

import os
from dataclasses import replace

import msgspec
import pytest

from common.clock import SystemClock
from common.forms.delivery import PUT_FORMAT
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.forms.mark import SignedMark
from common.keys.protected import ProtectedMemory
from nexus.keepers.collection import Collection
from nexus.keepers.conduct import MAX_DROPPED
from nexus.keepers.plan import Plan
from nexus.keepers.seat import ACCUSED, RETRY_PAUSE, Seat, SeatStatus
from tests.nexus.cluster import FoundCluster, FoundedCluster, is_wiped, members
from tests.nexus.played_keepers import PlayedKeeper

EPOCH = StoreEpoch(1, 5)


class Bench:
    """One seat of a cluster, its keeper, and the set that it is to hold."""

    def __init__(self, cluster: FoundedCluster) -> None:
        self.cluster = cluster
        self.keeper = cluster.keepers()[0]
        self.notes: list[tuple[str, str, str]] = []
        self.seat = Seat(
            members(1)[0], self.keeper, cluster.memory, SystemClock(), lambda *note: self.notes.append(note)
        )
        self.shard_set = cluster.make_set()
        self.book = cluster.book()
        self.mark: SignedMark | None = None  # the newest one
        self.collection = Collection(cluster.record, cluster.cluster_id)

    def keep(self) -> SeatStatus:
        """Take one step of the duty."""
        assert self.seat.keep(Plan(self.shard_set), self.book, lambda: self.mark, EPOCH) == 1.0
        return self.seat.status

    def collect(self) -> SeatStatus:
        """Take one step of the duty."""
        assert RETRY_PAUSE[0] <= self.seat.collect(self.collection, self.book) <= RETRY_PAUSE[1]
        return self.seat.status


@pytest.fixture
def bench(found: FoundCluster) -> Bench:
    """The first of five keepers, honest and full."""
    return Bench(found())


def test_watching_tells_how_a_keeper_is(memory: ProtectedMemory) -> None:
    """A keeper is asked for nothing but its report before there is a set."""
    keeper = PlayedKeeper("keeper-1")
    seat = Seat(members(1)[0], keeper, memory, SystemClock())
    assert seat.status == SeatStatus()
    assert seat.watch() == 1.0
    assert seat.status == SeatStatus(
        reachable=True, version="1.2.3", memory_protection=3, put_format=PUT_FORMAT, reported=frozenset()
    )
    keeper.is_reachable = False
    seat.watch()
    assert not seat.status.reachable
    assert "does not answer" in seat.status.fault
    keeper.is_reachable = True
    seat.watch()
    assert (seat.status.reachable, seat.status.fault) == (True, "")
    assert set(keeper.calls) == {"fetch_report"}


def test_an_empty_keeper_is_filled_once(bench: Bench) -> None:
    """An empty keeper gets its own shard once, and is then left alone."""
    bench.keeper.sets.clear()
    assert bench.keep().holds_current_set
    label, shard = bench.keeper.sets[bench.cluster.record.set_id]
    assert shard == bench.cluster.shards["keeper-1"]
    assert label == bench.shard_set.label
    for _ in range(3):
        assert bench.keep().holds_current_set
    assert bench.keeper.count("put_shard") == 1
    assert bench.keeper.count("fetch_shard") == 0
    assert bench.notes == [("keeper.fill", "keeper-1", "set 1")]


@pytest.mark.parametrize("is_pending", [False, True], ids=["a seal", "an abort"])
def test_points_that_are_wiped_are_no_fault_of_a_keeper(bench: Bench, is_pending: bool) -> None:
    """They were withdrawn while a seat had its shard to give; nothing is said of the keeper, nor noted in the audit."""
    wiped = bench.cluster.make_set()
    wiped.release()
    if is_pending:
        bench.keep()
        wiped.record = msgspec.structs.replace(wiped.record, set_id=os.urandom(16))
        plan = Plan(bench.shard_set, wiped)
    else:
        bench.keeper.sets.clear()
        plan = Plan(wiped)
    bench.seat.keep(plan, bench.book, lambda: bench.mark, EPOCH)
    assert bench.seat.status.fault == ""
    assert bench.notes == []


def test_a_keeper_that_restarted_is_filled_again(bench: Bench) -> None:
    """It comes back with nothing in memory and another boot id."""
    bench.keep()
    bench.keeper.restart()
    assert bench.keep().holds_current_set
    assert bench.keeper.sets[bench.cluster.record.set_id][1] == bench.cluster.shards["keeper-1"]


def test_a_keeper_that_holds_another_set_only_is_given_the_current_one(bench: Bench) -> None:
    """What counts is the set_id, not that it holds something."""
    label, shard = bench.keeper.sets.pop(bench.cluster.record.set_id)
    bench.keeper.sets[os.urandom(16)] = (None, shard)
    assert bench.keep().holds_current_set
    assert bench.keeper.sets[bench.cluster.record.set_id] == (label, shard)


def test_a_shard_that_this_nexus_did_not_give_is_checked_once_for_each_boot(bench: Bench) -> None:
    """It is not believed until it matched its commitment, and then until the next boot."""
    for _ in range(3):
        assert bench.keep().holds_current_set
    assert bench.keeper.count("fetch_shard") == 1
    bench.keeper.boot_id = os.urandom(16)
    bench.keep()
    assert bench.keeper.count("fetch_shard") == 2
    assert bench.keeper.count("put_shard") == 0


def test_a_liar_is_named_until_its_boot_id_changes(bench: Bench) -> None:
    """A liar stays named when it stops lying or was away in between, and is asked for its shard only once."""
    bench.keeper.lies = True
    status = bench.keep()
    assert (status.reachable, status.holds_current_set) == (True, False)
    assert "lies" in (accusation := status.fault)
    assert status.fault_reason == "BAD_SHARD"
    bench.keeper.lies = False
    assert bench.keep().fault == accusation
    assert bench.keep().fault_reason == ACCUSED
    bench.keeper.is_reachable = False
    assert "does not answer" in bench.keep().fault
    bench.keeper.is_reachable = True
    status = bench.keep()
    assert (status.reachable, status.holds_current_set, status.fault) == (True, False, accusation)
    assert bench.keeper.count("fetch_shard") == 1
    bench.keeper.restart()
    status = bench.keep()
    assert (status.holds_current_set, status.fault) == (True, "")


def test_a_liar_that_names_another_boot_with_its_shard_is_named_all_the_time(bench: Bench) -> None:
    """Its fault does not come and go with each poll, which would fill log and audit."""

    class Doubtful(PlayedKeeper):
        def fetch_shard(self, *args: object, **kwargs: object) -> bytes:
            super().fetch_shard(*args, **kwargs)  # type: ignore[arg-type]
            return os.urandom(16)

    keeper = Doubtful("keeper-1")
    keeper.sets, keeper.lies = bench.keeper.sets, True
    bench.seat = Seat(
        members(1)[0], keeper, bench.cluster.memory, SystemClock(), lambda *note: bench.notes.append(note)
    )
    for _ in range(5):
        status = bench.keep()
        assert "lies" in status.fault
        assert not status.holds_current_set
    assert [action for action, _, _ in bench.notes] == ["keeper.fault"]


def test_a_keeper_that_pretends_to_hold_its_shard_is_named(bench: Bench) -> None:
    """It says that it holds the set, and has nothing to show."""
    bench.keeper.pretends = True
    status = bench.keep()
    assert (status.reachable, status.holds_current_set) == (True, False)
    assert "holds no such set" in status.fault


@pytest.mark.parametrize(
    ("change", "reachable", "fault", "reason"),
    [
        pytest.param({"is_reachable": False}, False, "does not answer", "KEEPER_UNREACHABLE", id="unreachable"),
        pytest.param({"accepts": False}, True, "does not accept this nexus", "DENIED", id="denies"),
        pytest.param({"refusal": "serves another"}, True, "serves another", "WRONG_STATE", id="of another cluster"),
    ],
)
def test_a_keeper_that_cannot_be_filled_is_named_and_filled_as_soon_as_it_can(
    bench: Bench, change: dict[str, object], reachable: bool, fault: str, reason: str
) -> None:
    """The fault is said in words, with a stable reason, and goes away with its cause."""
    bench.keeper.sets.clear()
    before = {name: getattr(bench.keeper, name) for name in change}
    for name, value in change.items():
        setattr(bench.keeper, name, value)
    status = bench.keep()
    assert (status.reachable, status.holds_current_set) == (reachable, False)
    assert fault in status.fault
    assert status.fault_reason == reason
    for name, value in before.items():
        setattr(bench.keeper, name, value)
    status = bench.keep()
    assert (status.reachable, status.holds_current_set, status.fault) == (True, True, "")
    assert status.fault_reason == ""


def test_a_keeper_that_is_not_in_the_set_is_watched_only(bench: Bench) -> None:
    """Configuration may name one that the set does not: it gets no shard."""
    stranger = PlayedKeeper("stranger")
    seat = Seat(members(9)[8], stranger, bench.cluster.memory, SystemClock())
    seat.keep(Plan(bench.shard_set), bench.book, lambda: None, EPOCH)
    assert stranger.calls == ["fetch_report"]
    assert seat.status.reachable


def test_a_shard_is_offered_once(bench: Bench) -> None:
    """A keeper that took its shard counts as holding its set without being asked again."""
    for _ in range(3):
        assert bench.collect().holds_current_set
    assert bench.collection.gathered == 1
    assert bench.keeper.count("fetch_shard") == 1
    bench.keep()
    assert bench.keeper.count("fetch_shard") == 1


@pytest.mark.parametrize(
    ("change", "reachable", "fault"),
    [
        pytest.param({"sets": {}}, True, "", id="empty"),
        pytest.param({"lies": True}, True, "lies", id="lies"),
        pytest.param({"gives_garbage": True}, True, "does not open", id="garbage"),
        pytest.param({"is_reachable": False}, False, "does not answer", id="unreachable"),
        pytest.param({"accepts": False}, True, "does not accept this nexus", id="denies"),
    ],
)
def test_a_keeper_without_a_true_shard_adds_nothing_and_is_named(
    bench: Bench, change: dict[str, object], reachable: bool, fault: str
) -> None:
    """What it sent is wiped."""
    for name, value in change.items():
        setattr(bench.keeper, name, value)
    status = bench.collect()
    assert bench.collection.gathered == 0
    assert (status.reachable, status.holds_current_set) == (reachable, False)
    assert fault in status.fault
    assert bool(status.fault) == bool(fault)
    bench.shard_set.release()
    assert is_wiped(bench.cluster.memory)


def test_a_keeper_that_lied_in_a_recovery_stays_named_after_it(bench: Bench) -> None:
    """The accusation goes from one duty to the next, without a second audit entry."""
    bench.keeper.lies = True
    accusation = bench.collect().fault
    bench.keeper.lies = False
    assert bench.keep().fault == accusation
    assert bench.notes == [("keeper.fault", "keeper-1", accusation)]


def hold_older(bench: Bench, count: int) -> None:
    """Let the keeper say that it holds older sets as well."""
    label, shard = bench.keeper.sets[bench.cluster.record.set_id]
    assert label is not None
    for number in range(count):
        set_id = bytes([number]) * 16
        bench.keeper.sets[set_id] = (replace(label, set_id=set_id, set_number=0), shard)


def test_more_sets_than_a_keeper_can_hold_are_a_lie(bench: Bench) -> None:
    """The keeper is accused once in each duty that needs it true, and a seal drops what it claims to hold."""
    hold_older(bench, 2)
    accusation = "lies: it says that it holds 3 sets, and can hold 2"
    for _ in range(3):
        assert (bench.keep().fault, bench.seat.status.holds_current_set) == (accusation, False)
    assert bench.collect().fault == accusation
    assert bench.keeper.count("drop_set") == 0
    assert bench.notes == [("keeper.fault", "keeper-1", accusation)]
    bench.seat.empty(bench.book, None, NO_EPOCH)
    assert (bench.seat.status.is_empty, bench.keeper.sets) == (True, {})


def test_a_keeper_that_invents_sets_is_accused(bench: Bench) -> None:
    """It is accused after as many as no true keeper drops in one boot; what is remembered of them is bounded."""
    label, shard = bench.keeper.sets[bench.cluster.record.set_id]
    assert label is not None

    def invent(number: int) -> None:
        set_id = number.to_bytes(16)
        bench.keeper.sets = {**held, set_id: (replace(label, set_id=set_id, set_number=0), shard)}

    def empty() -> SeatStatus:
        bench.seat.empty(bench.book, None, EPOCH)
        return bench.seat.status

    for duty, held in ((bench.keep, dict(bench.keeper.sets)), (empty, {})):
        bench.keeper.boot_id, bench.keeper.sets = os.urandom(16), held
        duty()
        bench.notes.clear()
        for number in range(MAX_DROPPED + 1):
            invent(number)
            assert duty().fault == ""
        for number in range(MAX_DROPPED + 1, 3 * MAX_DROPPED):
            invent(number)
            assert "lies: it says that it holds ever new sets" in duty().fault
        assert len(bench.seat._conduct._dropped) == MAX_DROPPED + 1
        assert [action for action, _, _ in bench.notes] == ["keeper.drop"] * (MAX_DROPPED + 1) + ["keeper.fault"]
    assert bench.keeper.sets == {}


def test_a_set_that_was_dropped_and_is_still_held_is_a_lie(bench: Bench) -> None:
    """One entry says that it was dropped, and one that the keeper lies, however long it goes on."""
    hold_older(bench, 1)
    assert bench.keep().fault == ""
    hold_older(bench, 1)
    for _ in range(3):
        assert bench.keep().fault == "lies: it says that it holds set 0, which it has dropped"
    assert [action for action, _, _ in bench.notes] == ["keeper.drop", "keeper.fault"]
    bench.keeper.boot_id = bytes(16)
    assert bench.keep().fault == ""


def test_a_seat_that_is_closed_accuses_nobody(bench: Bench) -> None:
    """The call in flight fails because its link is closed: each gathering of shards would be two false alarms."""
    bench.keep()
    bench.notes.clear()
    bench.seat.retire()
    bench.keeper.is_reachable = False
    assert bench.keeper.is_closed
    assert bench.keep().fault == ""
    assert bench.notes == []
