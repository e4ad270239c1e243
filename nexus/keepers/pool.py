"""All keepers of the cluster, each with a thread of its own, so that a slow keeper does not delay the others."""

import threading
from collections.abc import Callable, Sequence

from common.clock import Clock
from common.forms.epoch import StoreEpoch
from common.forms.mark import SignedMark
from common.keys.protected import ProtectedMemory
from nexus.keepers.collection import Collection
from nexus.keepers.link import KeeperLink
from nexus.keepers.marks import MarkBook
from nexus.keepers.notes import LimitedNotes, Note, note_nothing
from nexus.keepers.seat import Seat
from nexus.keys.shard_set import Member, ShardSet

Duty = Callable[[Seat], float]


class KeeperPool:
    """Gives every keeper the same duty, and changes it at once when it is told to."""

    def __init__(
        self,
        members: Sequence[Member],
        connect: Callable[[Member], KeeperLink],
        *,
        clock: Clock,
        memory: ProtectedMemory,
        note: Note = note_nothing,
    ) -> None:
        self.seats = tuple(Seat(member, connect(member), memory, LimitedNotes(note, clock)) for member in members)
        self._clock = clock
        self._duty: Duty = Seat.watch
        self._lock = threading.Lock()  # of the duty
        self._stopped = False
        self._nudges = [threading.Event() for _ in self.seats]
        self._threads = [
            threading.Thread(target=self._serve, args=pair, name=f"keeper-{pair[0].member.name}", daemon=True)
            for pair in zip(self.seats, self._nudges, strict=True)
        ]
        self._progress = threading.Event()
        self._emptied: set[str] = set()

    def start(self) -> None:
        """Start to watch."""
        for thread in self._threads:
            thread.start()

    def watch(self, stopping: threading.Event) -> None:
        """Only ask keepers how they are, from here on; does nothing once *stopping* is set, as `collect`."""
        self._set_duty(Seat.watch, unless=stopping)

    def collect(self, collection: Collection, book: MarkBook, stopping: threading.Event) -> None:
        """Ask all keepers for their shards and marks, until told otherwise.

        Does nothing once *stopping* is set, so that it never overrules a duty given after that.
        """
        self._set_duty(lambda seat: seat.collect(collection, book), unless=stopping)

    def keep(
        self,
        shard_set: ShardSet,
        book: MarkBook,
        find_mark: Callable[[], SignedMark | None],
        epoch: StoreEpoch,
    ) -> None:
        """Fill empty keepers, check full ones and give them marks, from here on. *epoch* is the store's."""
        self._set_duty(lambda seat: seat.keep(shard_set, book, find_mark, epoch))

    def empty(self, book: MarkBook, last_mark: SignedMark | None, epoch: StoreEpoch) -> None:
        """Make all keepers drop what they hold, from here on, once they took *last_mark*. *epoch* is the store's."""
        emptied: set[str] = set()

        def duty(seat: Seat) -> float:
            pause = seat.empty(book, last_mark, epoch)
            if seat.status.is_empty:
                emptied.add(seat.member.name)
            return pause

        self._emptied = emptied
        self._set_duty(duty)

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
        return sum(seat.status.holds_current_set for seat in self.seats)

    def count_emptied(self) -> int:
        """Count the keepers that dropped what they held since they were told to."""
        return len(self._emptied)

    def wait_heard(self, *, seconds: float) -> None:
        """Wait until something is known of every keeper, at most *seconds*."""
        self._wait_count(self.count_heard, len(self.seats), seconds)

    def wait_holders(self, wanted: int, *, seconds: float) -> int:
        """Wait until *wanted* keepers hold their shards, at most *seconds*; return how many do."""
        return self._wait_count(self.count_holders, wanted, seconds)

    def wait_emptied(self, *, seconds: float) -> int:
        """Wait until all keepers dropped what they held, at most *seconds*; return how many did."""
        return self._wait_count(self.count_emptied, len(self.seats), seconds)

    def _wait_count(self, count: Callable[[], int], wanted: int, seconds: float) -> int:
        deadline = self._clock.monotonic() + seconds
        while (reached := count()) < wanted:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                break
            self._progress.clear()
            self._clock.wait(self._progress, min(left, 0.1))
        return reached

    def stop(self) -> None:
        """Stop all threads and close all links."""
        self._stopped = True
        for nudge in self._nudges:
            nudge.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=3)
        for seat in self.seats:
            seat.link.close()

    def _set_duty(self, duty: Duty, *, unless: threading.Event | None = None) -> None:
        with self._lock:
            if unless is not None and unless.is_set():
                return
            self._duty = duty
        for nudge in self._nudges:
            nudge.set()

    def _serve(self, seat: Seat, nudge: threading.Event) -> None:
        while not self._stopped:
            nudge.clear()
            pause = self._duty(seat)
            self._progress.set()
            self._clock.wait(nudge, pause)
