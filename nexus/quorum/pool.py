"""All keepers of the cluster, each with a thread of its own, so that a slow one slows nobody."""

import threading
from collections.abc import Callable, Sequence

from common.clock import Clock
from common.protected import ProtectedMemory
from nexus.ports import KeeperLink
from nexus.quorum.collection import Collection
from nexus.quorum.seat import Note, Seat, note_nothing
from nexus.quorum.shard_set import Member, ShardSet

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
        self.seats = tuple(Seat(member, connect(member), memory, note) for member in members)
        self._clock = clock
        self._duty: Duty = Seat.watch
        self._stopped = False
        self._nudges = [threading.Event() for _ in self.seats]
        self._threads = [
            threading.Thread(target=self._serve, args=pair, name=f"keeper-{pair[0].member.name}", daemon=True)
            for pair in zip(self.seats, self._nudges, strict=True)
        ]
        self._progress = threading.Event()

    def start(self) -> None:
        """Start to watch."""
        for thread in self._threads:
            thread.start()

    def collect(self, collection: Collection) -> None:
        """Ask all keepers for their shards, until told otherwise."""
        self._set_duty(lambda seat: seat.collect(collection))

    def keep(self, shard_set: ShardSet) -> None:
        """Fill empty keepers and check full ones, from here on."""
        self._set_duty(lambda seat: seat.keep(shard_set))

    def count_holders(self) -> int:
        """Count the keepers that are known to hold their shard of the current set."""
        return sum(seat.status.holds_current_set for seat in self.seats)

    def wait_holders(self, wanted: int, *, seconds: float) -> int:
        """Wait until *wanted* keepers hold their shards, at most *seconds*; return how many do."""
        deadline = self._clock.monotonic() + seconds
        while (holders := self.count_holders()) < wanted:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                break
            self._progress.clear()
            self._clock.wait(self._progress, min(left, 0.1))
        return holders

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

    def _set_duty(self, duty: Duty) -> None:
        self._duty = duty
        for nudge in self._nudges:
            nudge.set()

    def _serve(self, seat: Seat, nudge: threading.Event) -> None:
        while not self._stopped:
            nudge.clear()
            pause = self._duty(seat)
            self._progress.set()
            self._clock.wait(nudge, pause)
