"""All keepers of the cluster, each with a thread of its own, so that a slow keeper does not delay the others.

There is a seat for each keeper that has something to do: members of the current set and of the pending one, and those
of earlier sets until they have dropped their shards. Seats come and go while the nexus runs. A keeper is the same as
long as its name and SPIFFE ID are; one that moved to another address gets a new seat.
"""

import threading
from collections.abc import Callable, Iterable, Sequence

from common.clock import Clock
from common.forms.epoch import StoreEpoch
from common.forms.mark import SignedMark
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from nexus.keepers.collection import Collection
from nexus.keepers.gathering import gather, watch_once
from nexus.keepers.link import KeeperLink
from nexus.keepers.marks import MarkBook
from nexus.keepers.notes import LimitedNotes, Note, note_nothing
from nexus.keepers.plan import Holding, Plan, list_members
from nexus.keepers.seat import FindMark, Seat, SeatStatus
from nexus.keepers.seat_thread import Duty, SeatThread
from nexus.keys.shard_set import Member

_JOIN_S = 3.0  # for a thread whose link is closed
_LOOK_S = 0.1  # how often what is waited for is looked at, beside after each step

Locate = Callable[[Member], Member]  # says where configuration has a keeper


class KeeperPool:
    """Gives every keeper the same duty, and changes it at once when it is told to. Thread-safe."""

    def __init__(
        self,
        members: Sequence[Member],
        connect: Callable[[Member], KeeperLink],
        *,
        clock: Clock,
        memory: ProtectedMemory,
        note: Note = note_nothing,
        locate: Locate = lambda member: member,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._memory = memory
        self._note = note
        self._locate = locate
        self._lock = threading.Lock()  # of the duty and the threads
        self._duty: Duty = Seat.watch
        self._plan: Plan | None = None  # of the duty
        self._is_running = False
        self._is_stopped = False
        self._progress = threading.Event()
        self._emptied: set[Member] = set()
        self._threads: tuple[SeatThread, ...] = ()
        self.follow(members)

    @property
    def seats(self) -> tuple[Seat, ...]:
        """One for each keeper, in the order of the current set."""
        return tuple(thread.seat for thread in self._threads)

    def start(self) -> None:
        """Start to watch."""
        with self._lock:
            self._is_running = True
            for thread in self._threads:
                thread.start()

    def follow(self, members: Iterable[Member]) -> None:
        """Have a seat for each of *members* and for nobody else; other links are closed, and their threads ended."""
        with self._lock:
            ended = self._reseat(members)
        for thread in ended:
            thread.join(seconds=_JOIN_S)

    def watch(self, stopping: threading.Event) -> None:
        """Only ask keepers how they are, from here on; does nothing once *stopping* is set, as `collect`."""
        self._set_duty(Seat.watch, unless=stopping)

    def collect(self, collection: Collection, book: MarkBook, stopping: threading.Event) -> None:
        """Ask all keepers for their shards and marks, until told otherwise; there is a seat for each member.

        Does nothing once *stopping* is set, so that it never overrules a duty given after that.
        """
        members = self._join(list_members(collection.record))
        self._set_duty(lambda seat: seat.collect(collection, book), unless=stopping, members=members)

    def keep(self, plan: Plan, book: MarkBook, find_mark: FindMark, epoch: StoreEpoch) -> None:
        """Make keepers hold what *plan* says and give them marks, from here on. *epoch* is the store's.

        There is a seat for each keeper that the plan names, and for nobody else.
        """
        self._set_duty(lambda seat: seat.keep(plan, book, find_mark, epoch), members=plan.list_members(), plan=plan)

    def empty(
        self, book: MarkBook, last_mark: SignedMark | None, epoch: StoreEpoch, members: Iterable[Member] = ()
    ) -> None:
        """Make all keepers drop what they hold, from here on, once they took *last_mark*. *epoch* is the store's.

        There is a seat for each of *members* too, whom the duty before may not have known.
        """
        emptied: set[Member] = set()

        def duty(seat: Seat) -> float:
            pause = seat.empty(book, last_mark, epoch)
            if seat.status.is_empty:
                emptied.add(seat.member)
            return pause

        self._emptied = emptied
        self._set_duty(duty, members=self._join(members))

    def gather(self, collection: Collection, *, seconds: float) -> list[ProtectedBuffer]:
        """Fetch a threshold of shards as a recovery does, on new connections, at most *seconds*. The duty goes on.

        Returns the shards of *collection*, which the caller owns.

        Raises:
            TooFewShardsError: Not in time; the message names what is wrong with which keeper.
        """
        members = [self._locate(member) for member in list_members(collection.record)]
        seats = [Seat(member, self._connect(member), self._memory, self._clock) for member in members]
        return gather(seats, collection, self._clock, seconds=seconds)

    def probe(self, members: Sequence[Member], *, seconds: float) -> dict[str, SeatStatus]:
        """Ask *members*, who may be new, how they are, at most *seconds*; return what is known by name."""
        known = {seat.member.identity: seat.status for seat in self.seats}
        new = [member for member in members if member.identity not in known]
        seats = [Seat(one, self._connect(one), self._memory, self._clock) for one in map(self._locate, new)]
        known |= {seat.member.identity: seat.status for seat in watch_once(seats, seconds=seconds)}
        return {member.name: known[member.identity] for member in members}

    def find_holders(self, set_id: bytes) -> dict[str, Holding]:
        """Return the keepers that are known to hold their shard of a set, by name, with the proof."""
        found = ((seat.member.name, seat.status.holdings.get(set_id)) for seat in self.seats)
        return {name: holding for name, holding in found if holding is not None}

    def prove_again(self, set_id: bytes, *, seconds: float) -> dict[str, Holding]:
        """Let every holder of a set of the plan show its shard anew, at most *seconds*; return those that did."""
        asked_at = self._clock.monotonic()
        asked = self.find_holders(set_id).keys()
        with self._lock:
            for thread in self._threads:
                thread.seat.demand_proof(set_id, asked_at)
                thread.nudge()

        def find_fresh() -> dict[str, Holding]:
            return {name: one for name, one in self.find_holders(set_id).items() if one.proved_at >= asked_at}

        self._wait_count(lambda: len(asked & find_fresh().keys()), lambda: len(asked), seconds)
        return find_fresh()

    def count_dropped(self, set_id: bytes) -> int:
        """Count the keepers that say that they hold no shard of a set any more, or never did."""
        reports = (seat.status.reported for seat in self.seats)
        return sum(reported is not None and set_id not in reported for reported in reports)

    def find_left(self) -> list[Member]:
        """Return the keepers of the plan that are leaving, and say that they hold nothing any more."""
        plan = self._plan
        if plan is None:
            return []
        return [seat.member for seat in self.seats if seat.status.is_empty and not plan.is_member(seat.member)]

    @property
    def is_current_refused(self) -> bool:
        """Whether so many keepers refuse the plan's current set, as not newer than one they held, that it is lost."""
        plan = self._plan
        if plan is None:
            return False
        record = plan.current.record
        refusing = sum(seat.status.refuses_current_set for seat in self.seats)
        return refusing > len(record.members) - record.threshold

    def find_serving(self) -> dict[str, bytes]:
        """Return the keepers that serve a cluster, by name, and its id."""
        return {seat.member.name: seat.status.cluster_id for seat in self.seats if seat.status.cluster_id}

    def find_epoch(self, timeline: int) -> int:
        """Return the highest epoch of *timeline* that a keeper says it has seen, 0 when none does."""
        seen = (seat.status.epoch for seat in self.seats)
        return max((epoch.epoch for epoch in seen if epoch.timeline == timeline), default=0)

    def describe_serving(self) -> str:
        """Say which keepers serve a cluster, and which; empty: none does."""
        serving = self.find_serving()
        if not serving:
            return ""
        clusters = ", ".join(sorted({cluster_id.hex() for cluster_id in serving.values()}))
        return f"{', '.join(serving)} of the keepers serve cluster {clusters}, of which this store knows nothing"

    def count_heard(self) -> int:
        """Count the keepers of which anything is known: that they answer, or that they do not."""
        return sum(bool(seat.status.reachable or seat.status.fault) for seat in self.seats)

    def count_holders(self) -> int:
        """Count the keepers that are known to hold their shard of the current set."""
        if (plan := self._plan) is not None:  # its seats may not have heard of it yet
            return len(self.find_holders(plan.current.record.set_id))
        return sum(seat.status.holds_current_set for seat in self.seats)

    def count_emptied(self) -> int:
        """Count the keepers that dropped what they held since they were told to."""
        return len(self._emptied.intersection(seat.member for seat in self.seats))

    def wait_heard(self, *, seconds: float) -> None:
        """Wait until something is known of every keeper, at most *seconds*."""
        self._wait_count(self.count_heard, lambda: len(self._threads), seconds)

    def wait_holders(self, wanted: int, *, seconds: float) -> int:
        """Wait until *wanted* keepers hold their shards, at most *seconds*; return how many do."""
        return self._wait_count(self.count_holders, lambda: wanted, seconds)

    def wait_marked(self, epoch: int, *, seconds: float) -> None:
        """Wait until every keeper that answers took a mark at *epoch* or later, at most *seconds*."""

        def list_answering() -> list[SeatStatus]:
            return [seat.status for seat in self.seats if seat.status.reachable and not seat.status.fault]

        self._wait_count(
            lambda: sum(status.marked.epoch >= epoch for status in list_answering()),
            lambda: len(list_answering()),
            seconds,
        )

    def wait_emptied(self, *, seconds: float) -> int:
        """Wait until all keepers dropped what they held, at most *seconds*; return how many did."""
        return self._wait_count(self.count_emptied, lambda: len(self._threads), seconds)

    def _wait_count(self, count: Callable[[], int], find_wanted: Callable[[], int], seconds: float) -> int:
        deadline = self._clock.monotonic() + seconds
        while (reached := count()) < find_wanted():
            left = deadline - self._clock.monotonic()
            if left <= 0:
                break
            self._progress.clear()
            self._clock.wait(self._progress, min(left, _LOOK_S))
        return reached

    def stop(self) -> None:
        """Stop all threads and close all links; no seat comes any more."""
        with self._lock:
            self._is_stopped = True
            threads = self._threads
        for thread in threads:
            thread.end()
        for thread in threads:
            thread.join(seconds=_JOIN_S)

    def _join(self, members: Iterable[Member]) -> Iterable[Member]:
        """Return the keepers that have a seat, and *members*, each once: where these are, if both know it."""
        present = {seat.member.identity: seat.member for seat in self.seats}
        return (present | {member.identity: member for member in members}).values()

    def _set_duty(
        self,
        duty: Duty,
        *,
        unless: threading.Event | None = None,
        members: Iterable[Member] | None = None,
        plan: Plan | None = None,
    ) -> None:
        ended: Sequence[SeatThread] = ()
        with self._lock:
            if unless is not None and unless.is_set():
                return
            self._duty, self._plan = duty, plan
            if members is not None:
                ended = self._reseat(members)
            for thread in self._threads:
                thread.nudge()
        for thread in ended:
            thread.join(seconds=_JOIN_S)

    def _reseat(self, members: Iterable[Member]) -> Sequence[SeatThread]:
        """Open and close seats; return the threads that are about to end. The caller has the lock."""
        if self._is_stopped:
            return ()
        former = {thread.seat.member: thread for thread in self._threads}
        wanted = dict.fromkeys(self._locate(member) for member in members)
        ended = [thread for member, thread in former.items() if member not in wanted]
        for thread in ended:
            thread.end()
        self._threads = tuple(former.get(member) or self._open_seat(member) for member in wanted)
        return ended

    def _open_seat(self, member: Member) -> SeatThread:
        note = LimitedNotes(self._note, self._clock)
        seat = Seat(member, self._connect(member), self._memory, self._clock, note)
        thread = SeatThread(seat, lambda: self._duty, self._clock, self._progress.set)
        if self._is_running:
            thread.start()
        return thread
