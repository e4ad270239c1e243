"""Seats that come and go while the pool runs: no link and no thread is left behind, and nobody else is disturbed."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from common.clock import SystemClock
from common.errors import KeeperUnreachableError, TooFewShardsError
from common.forms.epoch import StoreEpoch
from nexus.keepers.collection import Collection
from nexus.keepers.plan import Plan, list_members
from nexus.keepers.pool import KeeperPool
from nexus.keys.shard_set import Member, ShardSet
from tests.kit.patience import at_most
from tests.kit.waiting import wait_until
from tests.nexus.cluster import FoundCluster, FoundedCluster, count_free, members
from tests.nexus.keepers.sets import draw_next
from tests.nexus.played_keepers import PlayedKeeper


class Link:
    """One of several links to a played keeper; it is closed alone."""

    def __init__(self, member: Member, keeper: PlayedKeeper) -> None:
        self.member = member
        self.is_closed = False
        self._keeper = keeper

    def __getattr__(self, name: str) -> Any:
        if self.is_closed:
            raise KeeperUnreachableError("link is closed")
        return getattr(self._keeper, name)

    def close(self) -> None:
        self.is_closed = True
        self._keeper.go.set()  # ends the call in flight


class Net:
    """A pool, the keepers that it can reach, by name, and every link that it ever opened."""

    def __init__(self, cluster: FoundedCluster) -> None:
        self.cluster = cluster
        self.keepers = {keeper.name: keeper for keeper in cluster.keepers()}
        self.links: list[Link] = []
        self.moved: dict[str, str] = {}  # by name: where configuration has a keeper
        self.notes: list[tuple[str, str, str]] = []
        self.pool = KeeperPool(
            members(5),
            self.connect,
            clock=SystemClock(),
            memory=cluster.memory,
            note=lambda *note: self.notes.append(note),
            locate=lambda member: replace(member, address=self.moved.get(member.name, member.address)),
        )

    def connect(self, member: Member) -> Any:
        """Open a link."""
        self.links.append(Link(member, self.keepers.setdefault(member.name, PlayedKeeper(member.name))))
        return self.links[-1]

    def list_open(self) -> list[Member]:
        """Name whom there is an open link to."""
        return [link.member for link in self.links if not link.is_closed]

    def keep(self, plan: Plan) -> None:
        """Give the duty."""
        self.pool.keep(plan, self.cluster.book(), lambda: None, StoreEpoch(1, 1))

    def wait_threads(self, *names: str) -> None:
        """Wait until there is a thread for each of these keepers and for no other."""
        wanted = sorted(f"keeper-{name}" for name in names)
        wait_until(lambda: sorted(list_threads()) == wanted, what=f"threads {wanted}")


def list_threads() -> list[str]:
    """Name the threads of keepers that are alive, and of what is gathered from them."""
    return [one.name for one in threading.enumerate() if one.name.startswith(("keeper-", "gather-"))]


def choose(shard_set: ShardSet, *names: str) -> ShardSet:
    """Let a set have these members only."""
    left = tuple(one for one in shard_set.record.members if one.name in names)
    shard_set.record = msgspec.structs.replace(shard_set.record, members=left)
    return shard_set


@pytest.fixture
def net(found: FoundCluster) -> Iterator[Net]:
    """3 of 5, watched."""
    net = Net(found())
    net.pool.start()
    try:
        yield net
    finally:
        net.pool.stop()
    assert not net.list_open()
    net.wait_threads()


ALL = [f"keeper-{i}" for i in range(1, 6)]


def test_seats_follow_the_members(net: Net) -> None:
    """Whoever stays is not disturbed: its link is the same."""
    kept = net.links[1]
    net.pool.follow([*members(2)[1:], Member("keeper-9", "spiffe://example.org/k9", "k9:1")])
    assert [seat.member.name for seat in net.pool.seats] == ["keeper-2", "keeper-9"]
    assert [one.name for one in net.list_open()] == ["keeper-2", "keeper-9"]
    assert not kept.is_closed
    net.wait_threads("keeper-2", "keeper-9")
    net.pool.wait_heard(seconds=10)
    assert net.pool.count_heard() == 2


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"spiffe_id": "spiffe://example.org/other"}, id="another SPIFFE ID"),
        pytest.param({"address": "elsewhere:1"}, id="another address"),
    ],
)
def test_a_keeper_that_is_replaced_gets_a_new_link(net: Net, other: dict[str, str]) -> None:
    """Its name alone does not make it the same one."""
    first, *rest = members(5)
    replaced = replace(first, **other)
    net.pool.follow([replaced, *rest])
    assert net.links[0].is_closed
    assert net.list_open() == [*rest, replaced]
    net.wait_threads(*ALL)


def test_a_hundred_changes_leave_nothing_behind(net: Net) -> None:
    """Also while keepers are slow, and when the same one comes back."""
    free = threading.active_count()
    for number in range(100):
        net.keepers["keeper-3"].go.clear()
        net.pool.follow(members(1 + number % 4))
    net.keepers["keeper-3"].go.set()
    net.pool.follow(members(5))
    net.wait_threads(*ALL)
    assert (net.list_open(), threading.active_count()) == (members(5), free)


def test_nothing_opens_once_the_pool_has_stopped(net: Net) -> None:
    """A warden that is about to end may still give a duty."""
    net.pool.stop()
    net.keep(Plan(draw_next(net.cluster, names=["keeper-5", "keeper-6", "keeper-7"])))
    net.pool.follow([*members(3), *members(8)[7:]])
    assert not net.list_open()


def test_configuration_moves_a_keeper_of_a_set(net: Net) -> None:
    """Whichever way it gets its seat."""
    net.moved["keeper-2"] = "moved:1"
    net.keep(Plan(net.cluster.make_set()))
    assert [seat.member.address for seat in net.pool.seats][1] == "moved:1"
    net.keep(Plan(net.cluster.make_set()))
    assert len(net.list_open()) == 5
    assert len(net.links) == 6


def test_a_plan_brings_its_keepers_and_lets_the_others_go(net: Net) -> None:
    """Members of both sets; then, at the flip, who leaves, until it says that it holds nothing."""
    current, pending = net.cluster.make_set(), draw_next(net.cluster, names=[*ALL[1:], "keeper-6"])
    net.keep(Plan(current, pending))
    wait_until(lambda: len(net.pool.find_holders(pending.record.set_id)) == 5)
    assert net.pool.count_holders() == 5
    assert sorted(net.pool.find_holders(pending.record.set_id)) == [*ALL[1:], "keeper-6"]
    assert not net.pool.find_left()

    leaving = (members(1)[0],)
    old = current.record.set_id
    net.keep(Plan(pending, droppable=frozenset({old}), kept=frozenset({old}), leaving=leaving))
    wait_until(lambda: net.pool.count_holders() == 5)
    assert net.pool.count_dropped(old) == 1  # keeper-6 never held it
    net.keep(Plan(pending, droppable=frozenset({old}), leaving=leaving))
    wait_until(lambda: net.pool.find_left() == list(leaving))
    wait_until(lambda: net.pool.count_dropped(old) == 6)
    net.keep(Plan(pending, droppable=frozenset({old})))
    assert net.links[0].is_closed
    assert {name: list(keeper.sets) for name, keeper in net.keepers.items()} == {
        "keeper-1": [],
        **{name: [pending.record.set_id] for name in (*ALL[1:], "keeper-6")},
    }


def test_who_holds_the_current_set_is_known_as_soon_as_there_is_a_plan(net: Net) -> None:
    """After a flip all do that proved the pending set; of a new set nobody does, however slow the keepers are."""
    current, pending = net.cluster.make_set(), draw_next(net.cluster)
    net.keep(Plan(current, pending))
    wait_until(lambda: len(net.pool.find_holders(pending.record.set_id)) == 5)
    for keeper in net.keepers.values():
        keeper.go.clear()
    net.keep(Plan(pending))
    assert net.pool.count_holders() == 5
    net.keep(Plan(draw_next(net.cluster, set_number=3)))
    assert net.pool.count_holders() == 0
    for keeper in net.keepers.values():
        keeper.go.set()
    assert net.pool.wait_holders(5, seconds=10) == 5


def test_a_keeper_that_is_replaced_by_one_of_its_name_has_a_seat_beside_it(net: Net) -> None:
    """As long as both sets name it: each gets its own shard only."""
    current = net.cluster.make_set()
    first, *rest = list_members(current.record)
    pending = draw_next(
        net.cluster, members=[replace(first, spiffe_id="spiffe://example.org/new", address="n:1"), *rest]
    )
    net.keep(Plan(current, pending))
    assert len(net.list_open()) == 6
    wait_until(lambda: len(net.pool.find_holders(pending.record.set_id)) == 5)
    by_id = {seat.member.spiffe_id: set(seat.status.holdings) for seat in net.pool.seats}
    assert by_id[first.spiffe_id] == {current.record.set_id}
    assert by_id["spiffe://example.org/new"] == {pending.record.set_id}


def test_a_recovery_asks_the_keepers_that_the_set_names(net: Net) -> None:
    """A store that was repaired may name others than were known at the start; nobody is let go by an unproved row."""
    net.pool.follow(members(2))
    collection = Collection(net.cluster.record, net.cluster.cluster_id)
    net.pool.collect(collection, net.cluster.book(), threading.Event())
    assert collection.wait(SystemClock(), 10)
    for point in collection.take():
        point.release()
    net.pool.collect(
        Collection(choose(net.cluster.make_set(), "keeper-1").record, bytes(16)), net.cluster.book(), threading.Event()
    )
    assert len(net.list_open()) == 5


def test_holders_prove_again_what_they_hold(net: Net) -> None:
    """At once, and only those that still can: a keeper that lost its shard, or is slow, is not among them."""
    current, pending = net.cluster.make_set(), draw_next(net.cluster)
    net.keep(Plan(current, pending))
    set_id = pending.record.set_id
    wait_until(lambda: len(net.pool.find_holders(set_id)) == 5)
    first = net.pool.find_holders(set_id)
    again = net.pool.prove_again(set_id, seconds=10)
    assert again.keys() == first.keys()
    assert all(again[name].proved_at > first[name].proved_at for name in again)
    net.keepers["keeper-2"].is_reachable = False
    net.keepers["keeper-4"].lies = True
    assert sorted(net.pool.prove_again(set_id, seconds=at_most(1))) == ["keeper-1", "keeper-3", "keeper-5"]
    assert net.pool.prove_again(bytes(16), seconds=10) == {}


def test_a_set_is_gathered_on_new_links_beside_the_duty(net: Net) -> None:
    """As a recovery would; then they are closed, and keepers are held to the plan all the time."""
    current, pending = net.cluster.make_set(), draw_next(net.cluster)
    net.keep(Plan(current, pending))
    wait_until(lambda: len(net.pool.find_holders(pending.record.set_id)) == 5)
    opened = len(net.links)
    net.keepers["keeper-1"].is_reachable = False
    points = net.pool.gather(Collection(pending.record, net.cluster.cluster_id), seconds=10)
    assert len(points) == 3
    for point in points:
        point.release()
    assert [link.member.name for link in net.links[opened:]] == ALL
    assert all(link.is_closed for link in net.links[opened:])
    assert len(net.list_open()) == 5
    net.wait_threads(*ALL)
    net.keepers["keeper-2"].restart()
    wait_until(lambda: len(net.keepers["keeper-2"].sets) == 2)


def test_too_few_shards_are_said_and_wiped(net: Net) -> None:
    """The message names each keeper that gave none, and why."""
    record = net.cluster.record
    net.pool.stop()
    net.keepers["keeper-1"].sets.clear()
    net.keepers["keeper-2"].lies = True
    net.keepers["keeper-3"].is_reachable = False
    free = count_free(net.cluster.memory)
    with pytest.raises(TooFewShardsError) as failure:
        net.pool.gather(Collection(record, net.cluster.cluster_id), seconds=0.3)
    assert str(failure.value) == (
        "2 of 3 shards of set 1 in time: keeper-1 is empty; "
        "keeper-2 lies: its shard does not match the commitment; keeper-3 does not answer"
    )
    assert count_free(net.cluster.memory) == free


@pytest.mark.parametrize(("refusing", "is_refused"), [(2, False), (3, True)])
def test_a_current_set_that_too_many_refuse_is_lost(net: Net, refusing: int, is_refused: bool) -> None:
    """With n − t of them it can still be recovered; and it is no longer said when there is another set."""
    for keeper in net.keepers.values():
        keeper.restart()
    for name in ALL[:refusing]:
        net.keepers[name].is_newer_held = True
    assert not net.pool.is_current_refused
    net.keep(Plan(net.cluster.make_set()))
    wait_until(lambda: sum(seat.status.refuses_current_set for seat in net.pool.seats) == refusing)
    assert net.pool.wait_holders(5 - refusing, seconds=10) == 5 - refusing
    assert net.pool.is_current_refused == is_refused
    for keeper in net.keepers.values():
        keeper.is_newer_held = False
    net.keep(Plan(draw_next(net.cluster)))
    assert net.pool.wait_holders(5, seconds=10) == 5
    assert not net.pool.is_current_refused
