"""One keeper: held to a plan with a current and a pending set, and let go when it is a member of neither."""

from dataclasses import replace

import msgspec
import pytest

from common.forms.delivery import PUT_FORMAT, UNBOUND_FORMAT
from common.forms.epoch import StoreEpoch
from common.forms.mark import SignedMark
from nexus.keepers.conduct import MAX_DROPPED
from nexus.keepers.link import KeeperReport
from nexus.keepers.plan import Holding, Plan
from nexus.keepers.seat import Seat, SeatStatus
from nexus.keys.shard_set import ShardSet
from tests.kit.manual_clock import ManualClock
from tests.nexus.cluster import FoundCluster, FoundedCluster, members
from tests.nexus.keepers.sets import draw_next
from tests.nexus.played_keepers import PlayedKeeper

EPOCH = StoreEpoch(1, 5)


class Bench:
    """The seat of the first of five keepers, and a set that is pending beside the current one."""

    def __init__(self, cluster: FoundedCluster) -> None:
        self.cluster = cluster
        self.clock = ManualClock()
        self.keeper = cluster.keepers()[0]
        self.notes: list[tuple[str, str, str]] = []
        self.seat = self.sit(self.keeper)
        self.current, self.pending = cluster.make_set(), draw_next(cluster)
        self.mark: SignedMark | None = cluster.sign_mark(1, 7)

    def sit(self, keeper: PlayedKeeper, number: int = 1) -> Seat:
        """Take the seat of a keeper."""
        member = members(number)[number - 1]
        return Seat(member, keeper, self.cluster.memory, self.clock, lambda *note: self.notes.append(note))

    def keep(self, plan: Plan | None = None, seat: Seat | None = None) -> SeatStatus:
        """Take one step; without *plan*, of both sets."""
        seat = seat or self.seat
        seat.keep(plan or Plan(self.current, self.pending), self.cluster.book(), lambda: self.mark, EPOCH)
        return seat.status

    @property
    def ids(self) -> tuple[bytes, bytes]:
        """Of the current set and the pending one."""
        return self.current.record.set_id, self.pending.record.set_id


@pytest.fixture
def bench(found: FoundCluster) -> Bench:
    return Bench(found())


def leave_out(shard_set: ShardSet, name: str) -> None:
    """Make a keeper no member of a set."""
    left = tuple(one for one in shard_set.record.members if one.name != name)
    shard_set.record = msgspec.structs.replace(shard_set.record, members=left)


def test_a_keeper_is_filled_in_the_order_of_the_plan(bench: Bench) -> None:
    """Current, pending, mark, where nothing is pinned; what it took of the pending set it has to show at once."""
    bench.keeper.restart()
    status = bench.keep()
    current, pending = bench.ids
    assert bench.keeper.puts == [(current, current, PUT_FORMAT), (pending, current, PUT_FORMAT)]
    calls = ["fetch_report", "fetch_mark", "put_shard", "put_shard", "fetch_shard", "put_mark"]
    assert bench.keeper.calls == calls
    assert (status.fault, status.holds_current_set, status.reported) == ("", True, frozenset(bench.ids))
    assert status.holdings == dict.fromkeys(bench.ids, Holding(bench.keeper.boot_id, 0.0))
    bench.keep()
    assert bench.keeper.calls[6:] == ["fetch_report"]


def test_a_keeper_that_is_pinned_takes_the_mark_first(bench: Bench) -> None:
    """Before it is filled, and before it drops the set that the mark makes an old one."""
    current, pending = bench.ids
    bench.keeper.sets[bytes(16)] = (replace(bench.current.label, set_id=bytes(16), set_number=0), bytes(33))
    assert bench.keep(Plan(bench.current)).fault == ""
    assert bench.keeper.calls == ["fetch_report", "fetch_mark", "put_mark", "fetch_shard", "drop_set"]
    del bench.keeper.sets[current], bench.keeper.calls[:]
    bench.keeper.serves = bench.cluster.cluster_id
    bench.mark = bench.cluster.sign_mark(1, 8)
    bench.keep()
    assert bench.keeper.calls == ["fetch_report", "put_mark", "put_shard", "put_shard", "fetch_shard"]
    assert set(bench.keeper.sets) == {current, pending}


@pytest.mark.parametrize("answer", ["refused", "newer"])
def test_nothing_is_dropped_by_who_does_not_follow_the_mark(bench: Bench, answer: str) -> None:
    """The store of this nexus may be behind; the keeper holds its shard all the same, and drops once it follows."""
    bench.keeper.sets[bytes(16)] = (replace(bench.current.label, set_id=bytes(16), set_number=0), bytes(33))
    match answer:
        case "refused":
            bench.keeper.mark_refusal = "has seen a higher control revision"
        case "newer":
            bench.keeper.answers_newer = bench.cluster.sign_mark(1, 500)
    for _ in range(2):
        assert bench.keep(Plan(bench.current)).holds_current_set
    assert bytes(16) in bench.keeper.sets
    bench.keeper.mark_refusal, bench.keeper.answers_newer = "", None
    bench.mark = bench.cluster.sign_mark(1, 501)
    assert bench.keep(Plan(bench.current)).fault == ""
    assert list(bench.keeper.sets) == [bench.ids[0]]


def test_a_keeper_that_joins_is_told_that_it_is_no_member(bench: Bench) -> None:
    """It holds the pending set alone, and does not count as a holder of the current one."""
    leave_out(bench.current, "keeper-1")
    bench.keeper.restart()
    status = bench.keep()
    pending = bench.ids[1]
    assert bench.keeper.puts == [(pending, b"", PUT_FORMAT)]
    assert (status.fault, status.holds_current_set, list(status.holdings)) == ("", False, [pending])
    assert bench.keeper.marks == [bench.mark]


def test_a_keeper_that_is_too_old_to_join_is_named(bench: Bench) -> None:
    """One that is a member of the current set too takes the pending one, in the format of its release."""
    bench.keeper.put_format = UNBOUND_FORMAT
    assert (bench.keep().fault, len(bench.keeper.sets)) == ("", 2)
    assert {put_format for _, _, put_format in bench.keeper.puts} == {UNBOUND_FORMAT}
    leave_out(bench.current, "keeper-1")
    bench.keeper.restart()
    status = bench.keep()
    assert "too old" in status.fault
    assert (status.put_format, bench.keeper.sets) == (UNBOUND_FORMAT, {})


@pytest.mark.parametrize("is_pending_known", [True, False])
def test_a_refused_pending_set_takes_nothing_from_the_current_one(bench: Bench, is_pending_known: bool) -> None:
    """The keeper is named, and goes on holding and dropping."""
    bench.keep(Plan(bench.current))
    if is_pending_known:
        bench.keeper.pretends = True
        bench.keeper.sets[bench.ids[1]] = (bench.pending.label, bytes(33))
    bench.keeper.refusal = "is full"
    status = bench.keep()
    assert status.holds_current_set
    assert ("holds no such set" if is_pending_known else "is full") in status.fault
    assert not status.refuses_current_set
    assert list(status.holdings) == [bench.ids[0]]


def test_a_pending_set_counts_only_once_it_is_shown(bench: Bench) -> None:
    """A keeper that takes a shard and gives back another one lies; it counts for no set any more."""
    bench.keep(Plan(bench.current))
    bench.keeper.lies = True
    status = bench.keep()
    assert "lies" in status.fault
    assert (status.holds_current_set, dict(status.holdings)) == (False, {})


def test_a_flip_changes_nothing_at_the_keeper_but_what_counts_as_current(bench: Bench) -> None:
    """What was pending is current at once, without another proof; the replaced set is dropped when that is settled."""
    bench.keep()
    calls = len(bench.keeper.calls)
    current, pending = bench.ids
    flipped = Plan(bench.pending, droppable=frozenset({current}), kept=frozenset({current}))
    assert bench.keep(flipped).holds_current_set
    assert bench.keeper.calls[calls:] == ["fetch_report"]
    assert set(bench.keeper.sets) == {current, pending}
    settled = Plan(bench.pending, droppable=frozenset({current}))
    assert bench.keep(settled).reported == frozenset({pending})
    assert list(bench.keeper.sets) == [pending]


def test_a_seat_says_all_the_time_that_its_keeper_holds_the_current_set(bench: Bench) -> None:
    """Also while it asks the keeper for the first time after a flip."""
    seen: list[bool] = []

    class Watched(PlayedKeeper):
        def fetch_report(self, *, timeout: float) -> KeeperReport:
            seen.append(seat.status.holds_current_set)
            return super().fetch_report(timeout=timeout)

    seat = bench.sit(Watched("keeper-1"))
    for plan in (Plan(bench.current, bench.pending), Plan(bench.pending)):
        bench.keep(plan, seat)
    bench.keep(Plan(draw_next(bench.cluster, set_number=3)), seat)
    assert seen == [False, True, False]


def test_an_aborted_set_is_dropped_although_it_is_newer(bench: Bench) -> None:
    """Only when the plan says that it is dead."""
    bench.keep()
    current, pending = bench.ids
    bench.keep(Plan(bench.current))
    assert set(bench.keeper.sets) == {current, pending}
    status = bench.keep(Plan(bench.current, droppable=frozenset({pending})))
    assert (list(bench.keeper.sets), status.reported) == ([current], frozenset({current}))
    assert list(status.holdings) == [current]


def test_a_keeper_may_drop_any_number_of_sets_that_it_had_a_true_shard_of(bench: Bench) -> None:
    """There may be a reshare every day until it is restarted. One that it says it holds again is a lie."""
    dead = bench.current
    for number in range(2, MAX_DROPPED + 4):
        new = draw_next(bench.cluster, set_number=number)
        bench.keep(Plan(dead, new))
        assert bench.keep(Plan(new, droppable=frozenset({dead.record.set_id}))).fault == ""
        assert list(bench.keeper.sets) == [new.record.set_id]
        dead, replaced = new, dead
    assert [action for action, _, _ in bench.notes].count("keeper.drop") == MAX_DROPPED + 2
    bench.keeper.sets[replaced.record.set_id] = (replaced.label, bytes(33))
    lie = f"lies: it says that it holds set {replaced.record.set_number}, which it has dropped"
    assert bench.keep(Plan(new)).fault == lie


def test_a_leaving_keeper_takes_its_mark_and_drops_what_is_dead(bench: Bench) -> None:
    """It keeps a set that the last flip replaced until that is settled, and is given no shard."""
    leave_out(bench.pending, "keeper-1")
    current = bench.ids[0]
    status = bench.keep(Plan(bench.pending, kept=frozenset({current})))
    assert (status.is_empty, status.holds_current_set, list(bench.keeper.sets)) == (False, False, [current])
    status = bench.keep(Plan(bench.pending))
    assert (status.is_empty, status.fault, bench.keeper.sets) == (True, "", {})
    assert (bench.keeper.marks, bench.keeper.puts) == ([bench.mark], [])


def test_a_leaving_keeper_that_starts_anew_has_left(bench: Bench) -> None:
    """It remembers no cluster, and nothing but its report is asked for."""
    leave_out(bench.pending, "keeper-1")
    bench.keeper.restart()
    assert bench.keep(Plan(bench.pending)).is_empty
    assert bench.keeper.calls == ["fetch_report"]


def test_a_proof_is_as_old_as_its_fetch(bench: Bench) -> None:
    """It is made anew only when that is demanded, and once for each demand."""
    bench.keep()
    current, pending = bench.ids
    bench.clock.advance(10)
    assert {one.proved_at for one in bench.keep().holdings.values()} == {0.0}
    bench.seat.demand_proof(pending, bench.clock.monotonic())
    for _ in range(2):
        holdings = bench.keep().holdings
        assert (holdings[current].proved_at, holdings[pending].proved_at) == (0.0, 10.0)
    assert bench.keeper.count("fetch_shard") == 3


def test_a_demanded_proof_that_fails_ends_what_counted(bench: Bench) -> None:
    """A keeper may have lost its shard, or begun to lie, since it showed it."""
    bench.keep()
    bench.keeper.lies = True
    assert bench.keep().fault == ""
    bench.seat.demand_proof(bench.ids[1], bench.clock.monotonic() + 1)
    assert "lies" in bench.keep().fault
    assert not bench.seat.status.holdings


def test_a_shard_that_was_only_given_is_no_demanded_proof(bench: Bench) -> None:
    """A keeper that is filled after the demand has to show its shard as well."""
    bench.keeper.restart()
    bench.seat.demand_proof(bench.ids[0], bench.clock.monotonic())
    bench.keep(Plan(bench.current))
    assert bench.keeper.count("fetch_shard") == 1


def test_a_keeper_that_does_not_answer_proves_nothing_until_it_does(bench: Bench) -> None:
    """In the same boot the last proof then counts again, with its age; after a restart there is none."""
    bench.keep()
    bench.keeper.is_reachable = False
    assert not bench.keep().holdings
    bench.keeper.is_reachable = True
    bench.clock.advance(3)
    assert bench.keep().holdings[bench.ids[1]] == Holding(bench.keeper.boot_id, 0.0)
    bench.keeper.restart()
    assert bench.keep().holdings[bench.ids[1]] == Holding(bench.keeper.boot_id, 3.0)


def test_a_keeper_that_held_a_newer_set_refuses_the_current_one(bench: Bench) -> None:
    """It says so until it holds the set, or the plan has another one."""
    bench.keeper.restart()
    bench.keeper.is_newer_held = True
    for _ in range(2):
        status = bench.keep(Plan(bench.current))
        assert (status.refuses_current_set, status.fault) == (True, "is not newer")
    bench.keeper.is_newer_held = False
    assert not bench.keep(Plan(bench.pending)).refuses_current_set
