"""One keeper: its rollback marks, sets that are not current any more, and how it is emptied."""

from dataclasses import replace

import pytest

from common.forms.delivery import SetLabel
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.forms.mark import SignedMark
from nexus.keepers.collection import Collection
from nexus.keepers.plan import Plan
from nexus.keepers.seat import Seat, SeatStatus
from nexus.keys.shard_set import ShardSet
from tests.kit.manual_clock import ManualClock
from tests.nexus.cluster import FoundCluster, FoundedCluster, is_wiped, members
from tests.nexus.keepers.sets import draw_next
from tests.nexus.played_keepers import PlayedKeeper

EPOCH = StoreEpoch(1, 5)


class Bench:
    """One seat of a cluster, its keeper, and the duties that it is given."""

    def __init__(self, cluster: FoundedCluster) -> None:
        self.cluster = cluster
        self.keeper = cluster.keepers()[0]
        self.notes: list[tuple[str, str, str]] = []
        self.clock = ManualClock()
        self.seat = Seat(members(1)[0], self.keeper, cluster.memory, self.clock, lambda *note: self.notes.append(note))
        self.shard_set = cluster.make_set()
        self.book = cluster.book()
        self.mark: SignedMark | None = None  # the newest one
        self.collection = Collection(cluster.record, cluster.cluster_id)

    def keep(self, shard_set: ShardSet | None = None) -> SeatStatus:
        """Take one step of the duty."""
        self.seat.keep(Plan(shard_set or self.shard_set), self.book, lambda: self.mark, EPOCH)
        return self.seat.status

    def collect(self) -> SeatStatus:
        """Take one step of the duty."""
        self.seat.collect(self.collection, self.book)
        return self.seat.status

    def empty(self) -> SeatStatus:
        """Take one step of the duty."""
        assert self.seat.empty(self.book, self.mark, EPOCH) == 1.0
        return self.seat.status

    def hold_also(self, *, timeline: int, set_number: int, cluster_id: bytes | None = None) -> bytes:
        """Let the keeper hold one more set; return its set_id."""
        set_id = bytes([len(self.keeper.sets)]) * 16
        label = replace(self.shard_set.label, timeline=timeline, set_number=set_number, set_id=set_id)
        self.keeper.sets[set_id] = (replace(label, cluster_id=cluster_id or label.cluster_id), bytes(33))
        return set_id


@pytest.fixture
def bench(found: FoundCluster) -> Bench:
    """The first of five keepers, honest and full."""
    return Bench(found())


def test_the_mark_that_a_keeper_took_is_known_until_it_restarts(bench: Bench) -> None:
    """What the boot before took is not counted: the keeper has forgotten it."""
    assert bench.keep().mark == b""
    bench.mark = bench.cluster.sign_mark(1, 500)
    assert bench.keep().mark == bench.mark.mark
    bench.keeper.boot_id = b"another boot".ljust(16)
    bench.mark = None
    assert bench.keep().mark == b""


@pytest.mark.parametrize("duty", ["keep", "collect", "empty"])
def test_a_keeper_is_asked_for_its_mark_once_for_each_boot(bench: Bench, duty: str) -> None:
    """In every duty that has a cluster."""
    bench.keeper.marks.append(bench.cluster.sign_mark(1, 500))
    for _ in range(3):
        getattr(bench, duty)()
    assert bench.keeper.count("fetch_mark") == 1
    newer = bench.book.find_newer(bench.cluster.load()[0], bench.cluster.chain)
    assert newer is not None
    assert newer.keepers == ("keeper-1",)
    bench.keeper.restart()
    for _ in range(3):
        getattr(bench, duty)()
    assert bench.keeper.count("fetch_mark") == 2


def test_a_keeper_that_could_not_be_asked_is_asked_again(bench: Bench) -> None:
    """It is late, and heard all the same."""
    bench.keeper.is_reachable = False
    bench.keep()
    bench.keeper.marks.append(bench.cluster.sign_mark(1, 500))
    bench.keeper.is_reachable = True
    bench.keep()
    assert bench.book.find_newer(bench.cluster.load()[0], bench.cluster.chain) is not None


def test_the_newest_mark_is_given_once_for_each_position(bench: Bench) -> None:
    """After the shard, without which a keeper believes no mark."""
    bench.keeper.sets.clear()
    first, second = bench.cluster.sign_mark(1, 1), bench.cluster.sign_mark(1, 2)
    for bench.mark in (first, first, second, second, None):
        assert bench.keep().holds_current_set
    assert bench.keeper.marks == [first, second]
    assert bench.keeper.calls.index("put_shard") < bench.keeper.calls.index("put_mark")


def test_a_keeper_shows_since_when_it_lacks_the_newest_mark(bench: Bench) -> None:
    """With each step that it has it, also of a store that stands still; not without a mark, nor one that is refused."""
    assert bench.keep().marked_at is None
    bench.mark = bench.cluster.sign_mark(1, 1)
    for moment in (0.0, 7.0):
        bench.clock.advance(moment)
        assert bench.keep().marked_at == moment
    bench.clock.advance(5)
    bench.mark, bench.keeper.mark_refusal = bench.cluster.sign_mark(1, 2), "has seen a newer store"
    assert (bench.keep().marked_at, bench.seat.status.fault_reason) == (7.0, "INVALID_ARGUMENT")
    bench.keeper.mark_refusal = ""
    assert bench.keep().marked_at == 12.0


def test_a_keeper_that_restarted_is_given_the_same_mark_again(bench: Bench) -> None:
    """It forgot it; on a store that stands still all keepers would forget one by one."""
    bench.mark = bench.cluster.sign_mark(1, 1)
    bench.keep()
    bench.keeper.restart()
    bench.keep()
    bench.keep()
    assert bench.keeper.marks == [bench.mark]
    assert bench.keeper.count("put_mark") == 2


def test_a_keeper_is_given_the_same_mark_again_at_a_higher_epoch(bench: Bench) -> None:
    """A mark of the change that raised the epoch may come first, and the keeper would not hear of the epoch."""
    bench.mark = bench.cluster.sign_mark(1, 1)
    for number in (5, 5, 6, 6):
        epoch = StoreEpoch(1, number)
        bench.seat.keep(Plan(bench.shard_set), bench.book, lambda: bench.mark, epoch)
        assert bench.keeper.epoch == epoch
    assert bench.keeper.count("put_mark") == 2


def test_a_keeper_that_refuses_a_mark_is_named_and_holds_its_shard_all_the_same(bench: Bench) -> None:
    """It is tried again, and says so once only."""
    bench.keeper.mark_refusal = "is of another cluster"
    bench.mark = bench.cluster.sign_mark(1, 1)
    for _ in range(3):
        assert bench.keep() == replace(bench.seat.status, holds_current_set=True, fault="is of another cluster")
    bench.keeper.mark_refusal = ""
    assert bench.keep().fault == ""
    assert [action for action, _, _ in bench.notes] == ["keeper.fault", "keeper.well"]


@pytest.mark.parametrize("duty", ["keep", "collect"])
def test_a_lie_about_its_mark_is_named_until_the_keeper_restarts(bench: Bench, duty: str) -> None:
    """Once: it is neither asked nor accused again, and not trusted with a shard."""
    true = bench.cluster.sign_mark(9, 9)
    bench.keeper.marks.append(replace(true, signature=bytes(64)))
    bench.keeper.sets.clear()
    for _ in range(3):
        status = getattr(bench, duty)()
        assert status.fault == "lies: rollback mark has a broken signature"
        assert (status.reachable, status.holds_current_set) == (True, False)
    assert bench.book.find_newer(bench.cluster.load()[0], bench.cluster.chain) is None
    assert bench.keeper.count("fetch_mark") == 1
    assert bench.keeper.count("put_shard") == 0
    assert [action for action, _, _ in bench.notes] == ["keeper.fault"]
    bench.keeper.restart()
    assert getattr(bench, duty)().fault == ""


def test_a_liar_about_marks_gives_its_true_shard(bench: Bench) -> None:
    """A recovery takes whatever matches its commitment; the keeper is named."""
    bench.keeper.marks.append(replace(bench.cluster.sign_mark(9, 9), chain=()))
    assert "lies" in bench.collect().fault
    assert bench.collection.gathered == 1


@pytest.mark.parametrize(
    ("timeline", "set_number", "dropped"),
    [
        pytest.param(2, 4, True, id="the set before"),
        pytest.param(1, 9, True, id="of an earlier timeline, with a number that is out again"),
        pytest.param(2, 6, False, id="a newer one"),
        pytest.param(3, 1, False, id="of a later timeline"),
    ],
)
def test_older_sets_are_dropped_once_the_keeper_holds_the_current_one(
    bench: Bench, timeline: int, set_number: int, dropped: bool
) -> None:
    """What is newer stays: this store may be the one that was put back."""
    bench.keeper.sets.clear()
    other = bench.hold_also(timeline=timeline, set_number=set_number)
    current = draw_next(bench.cluster, timeline=2, set_number=5)
    assert bench.keep(current).holds_current_set
    assert (other not in bench.keeper.sets) == dropped
    assert current.record.set_id in bench.keeper.sets
    assert (("keeper.drop", "keeper-1", f"set {set_number}") in bench.notes) == dropped
    if dropped:
        assert bench.keeper.calls.index("put_shard") < bench.keeper.calls.index("drop_set")


@pytest.mark.parametrize("duty", ["keep", "empty"])
def test_sets_of_another_cluster_are_left_alone(bench: Bench, duty: str) -> None:
    """They are somebody's."""
    other = bench.hold_also(timeline=1, set_number=0, cluster_id=b"x" * 16)
    getattr(bench, duty)()
    assert other in bench.keeper.sets


def test_a_keeper_that_cannot_be_given_the_current_set_keeps_the_one_before(bench: Bench) -> None:
    """Nothing is dropped before the current set is there."""
    bench.keep()
    bench.keeper.refusal = "is full"
    status = bench.keep(draw_next(bench.cluster))
    assert (status.holds_current_set, status.fault) == (False, "is full")
    assert bench.cluster.record.set_id in bench.keeper.sets


def test_what_was_proved_for_one_set_says_nothing_of_the_next(bench: Bench) -> None:
    """A keeper that pretends to hold the new set has to show it."""
    assert bench.keep().holds_current_set
    current = draw_next(bench.cluster)
    label: SetLabel = current.label
    bench.keeper.sets[current.record.set_id] = (label, bytes(32) + b"\1")
    status = bench.keep(current)
    assert not status.holds_current_set
    assert "lies" in status.fault


def test_a_sealed_keeper_takes_the_last_mark_and_drops_every_set(bench: Bench) -> None:
    """In this order, and once; then nothing more is asked of it than how it is."""
    bench.hold_also(timeline=1, set_number=2)
    bench.mark = bench.cluster.sign_mark(1, 7)
    status = bench.empty()
    assert (status.is_empty, status.holds_current_set, status.fault) == (True, False, "")
    assert bench.keeper.sets == {}
    assert bench.keeper.calls == ["fetch_report", "fetch_mark", "put_mark", "drop_set", "drop_set"]
    assert bench.keeper.marks == [bench.mark]
    bench.empty()
    assert bench.keeper.calls[5:] == ["fetch_report"]
    assert bench.notes == [("keeper.drop", "keeper-1", "set 1"), ("keeper.drop", "keeper-1", "set 2")]


def test_a_keeper_that_restarted_is_empty(bench: Bench) -> None:
    """It forgot everything; there is nothing to mark or drop."""
    bench.keeper.restart()
    bench.mark = bench.cluster.sign_mark(1, 7)
    assert bench.empty().is_empty
    assert bench.keeper.calls == ["fetch_report", "fetch_mark"]


def test_a_late_keeper_is_emptied_when_it_answers(bench: Bench) -> None:
    """It still gets the last mark first."""
    bench.mark = bench.cluster.sign_mark(1, 7)
    bench.keeper.is_reachable = False
    status = bench.empty()
    assert not status.is_empty
    assert "does not answer" in status.fault
    bench.keeper.is_reachable = True
    assert bench.empty().is_empty
    assert (bench.keeper.sets, bench.keeper.marks) == ({}, [bench.mark])


def test_a_set_that_comes_back_is_dropped_again(bench: Bench) -> None:
    """A shard that was still on its way when the keeper was emptied."""
    held = dict(bench.keeper.sets)
    bench.empty()
    bench.keeper.sets.update(held)
    assert bench.empty().is_empty
    assert bench.keeper.sets == {}


@pytest.mark.parametrize("lie", ["mark", "refusal", "shard"])
def test_nothing_that_is_wrong_with_a_keeper_keeps_it_from_being_emptied(bench: Bench, lie: str) -> None:
    """It is named, and holds nothing any more."""
    bench.mark = bench.cluster.sign_mark(1, 7)
    match lie:
        case "mark":
            bench.keeper.marks.append(replace(bench.mark, signature=bytes(64)))
        case "refusal":
            bench.keeper.mark_refusal = "takes no mark"
        case "shard":
            bench.keeper.lies = True
            bench.keep()
    status = bench.empty()
    assert (status.is_empty, bench.keeper.sets) == (True, {})
    assert status.fault
    bench.shard_set.release()
    assert is_wiped(bench.cluster.memory)


def test_a_keeper_of_no_set_is_emptied_too(bench: Bench) -> None:
    """One that configuration names and the current set does not."""
    stranger = PlayedKeeper("keeper-9")
    stranger.sets = dict(bench.keeper.sets)
    Seat(members(9)[8], stranger, bench.cluster.memory, bench.clock).empty(bench.book, None, EPOCH)
    assert stranger.sets == {}


def test_a_keeper_that_answers_with_a_newer_mark_is_heard(bench: Bench) -> None:
    """The store of this nexus is behind, as when a snapshot of its machine woke up; a lie is named all the same."""
    bench.mark = bench.cluster.sign_mark(1, 1)
    bench.keeper.answers_newer = bench.cluster.sign_mark(1, 500)
    assert bench.keep().fault == ""
    newer = bench.book.find_newer(bench.cluster.load()[0], bench.cluster.chain)
    assert newer is not None
    assert (newer.mark.revision, newer.keepers) == (500, ("keeper-1",))
    bench.mark = bench.cluster.sign_mark(1, 2)
    bench.keeper.answers_newer = replace(bench.cluster.sign_mark(1, 501), signature=bytes(64))
    assert "lies: rollback mark has a broken signature" in bench.keep().fault


def test_a_keeper_that_refuses_a_mark_is_asked_for_its_own(bench: Bench) -> None:
    """It has seen a higher control revision, which another mark of this boot told of."""
    bench.mark = bench.cluster.sign_mark(1, 400, control_revision=1)
    bench.keep()
    assert bench.keeper.count("fetch_mark") == 1
    bench.keeper.remembers = bench.cluster.sign_mark(1, 2, control_revision=9)
    bench.keeper.epoch = StoreEpoch(1, 9)
    bench.mark = bench.cluster.sign_mark(1, 401, control_revision=1)
    assert "has seen epoch 9" in bench.keep().fault
    asked = bench.keeper.count("fetch_mark")
    bench.keep()
    assert bench.keeper.count("fetch_mark") == asked + 1
    assert bench.book.find_newer(bench.cluster.load()[0], bench.cluster.chain) is not None


def test_whatever_changes_a_keeper_names_the_epoch(bench: Bench) -> None:
    """A keeper that has seen a higher one keeps what it holds, and is given nothing; it is named."""
    bench.keeper.epoch = StoreEpoch(1, 6)
    bench.keeper.sets.clear()
    assert "has seen epoch 6" in bench.keep().fault
    assert not bench.keeper.sets
    bench.hold_also(timeline=1, set_number=1)
    status = bench.empty()
    assert ("has seen epoch 6" in status.fault, status.is_empty) == (True, False)
    assert len(bench.keeper.sets) == 1
    bench.keeper.epoch = NO_EPOCH
    assert bench.empty().is_empty
    assert bench.keeper.epoch == EPOCH


def test_a_keeper_that_holds_nothing_is_told_of_a_seal_all_the_same(bench: Bench) -> None:
    """By the last mark: else a nexus that missed the seal could fill it."""
    bench.keep()
    bench.keeper.sets.clear()
    bench.keeper.serves = bench.cluster.cluster_id
    bench.mark = bench.cluster.sign_mark(1, 70)
    assert bench.empty().is_empty
    assert (bench.keeper.marks, bench.keeper.epoch) == ([bench.mark], EPOCH)


def test_a_keeper_that_has_seen_a_higher_epoch_is_asked_for_its_mark_again(bench: Bench) -> None:
    """Once for each: this nexus may have slept while another one sealed the cluster, and believe that it is ready."""
    for epoch, asked in [(3, 1), (5, 1), (6, 2), (6, 2), (7, 3)]:
        bench.keeper.epoch = StoreEpoch(1, epoch)
        bench.keep()
        assert bench.keeper.count("fetch_mark") == asked


def test_what_a_keeper_verified_of_the_chain_is_not_given_again(bench: Bench) -> None:
    """It says so in its report; after a restart it knows nothing."""
    for revision in (20, 21):
        bench.mark = bench.cluster.sign_mark(1, revision)
        bench.keep()
    bench.keeper.restart()
    bench.mark = bench.cluster.sign_mark(1, 22)
    bench.keep()
    assert bench.keeper.known == [b"", bench.cluster.genesis, b""]
