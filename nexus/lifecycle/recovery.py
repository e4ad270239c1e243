"""Bring the root key back from the keepers.

- The store alone names the current set; keepers never vote.
- All keepers are asked at the same time, repeatedly and without limit. A shard that does not match its commitment is
  ignored, and its keeper is named.
- t shards give a candidate; `nexus.keys.opened.prove` says whether it is the root key. A candidate that fails is
  wiped, and the keepers are asked again.
"""

import threading

import structlog

from common.clock import Clock
from common.errors import IntegrityError, ShardholdError
from common.keys.protected import ProtectedMemory
from nexus.keepers.collection import Collection
from nexus.keepers.marks import MarkBook
from nexus.keepers.pool import KeeperPool
from nexus.keepers.seat import SeatStatus
from nexus.keys import manifest
from nexus.keys.opened import Serving, prove
from nexus.keys.shard_set import combine_points
from nexus.store.protocol import Store

_RETRY_S = 1.0  # before the next attempt, after a key that failed its proof or a store that could not be read
_LOOK_S = 0.1  # how often a change in what is missing is looked for

log = structlog.get_logger("recovery")


class KeeperRecovery:
    """One recovery, run by one thread; `missing` and `lacking` may be read by any."""

    def __init__(self, store: Store, pool: KeeperPool, book: MarkBook, memory: ProtectedMemory, clock: Clock) -> None:
        self._store = store
        self._pool = pool
        self._book = book
        self._memory = memory
        self._clock = clock
        self.missing = "no keeper was asked yet"  # what recovery still needs, in words
        self.lacking = 0  # shards still missing, once the set is known

    def run(self, stopping: threading.Event) -> Serving | None:
        """Return what the root key opens, once it is back; None when *stopping* was set first."""
        while not stopping.is_set():
            try:
                if (serving := self._attempt(stopping)) is not None:
                    return serving
            except IntegrityError as exc:
                self._say(f"what the keepers gave does not prove: {exc}")
                self._clock.wait(stopping, _RETRY_S)
            except ShardholdError as exc:
                self._say(str(exc))
                self._clock.wait(stopping, _RETRY_S)
        return None

    def _attempt(self, stopping: threading.Event) -> Serving | None:
        with self._store.read() as reader:
            meta, rows = reader.load_meta(), reader.load_controls()
        collection = Collection(manifest.find_current_set(meta.cluster_id, rows), meta.cluster_id)
        self._pool.collect(collection, self._book, stopping)
        self._wait(collection, stopping)
        points = collection.take()
        if stopping.is_set():
            for point in points:
                point.release()
            return None
        candidate = combine_points(points, collection.record.threshold, self._memory)
        return prove(candidate, points, meta=meta, rows=rows, memory=self._memory)

    def _wait(self, collection: Collection, stopping: threading.Event) -> None:
        self.lacking = collection.record.threshold
        while not (collection.wait(self._clock, _LOOK_S) or stopping.is_set()):
            gathered = collection.gathered  # one count for both: people read them together
            self.lacking = collection.record.threshold - gathered
            self._say(self._describe(collection, gathered))

    def _describe(self, collection: Collection, gathered: int) -> str:
        record = collection.record
        absent = [
            f"{seat.member.name} {_describe_absence(seat.status, is_asked=seat.member.name in collection.lacking)}"
            for seat in self._pool.seats
            if collection.find(seat.member) and not seat.status.holds_current_set
        ]
        have = f"{gathered} of {record.threshold} shards of set {record.set_number}"
        return f"{have}, generation {record.generation}: {'; '.join(absent)}"

    def _say(self, missing: str) -> None:
        if missing != self.missing:
            self.missing = missing
            log.warning("still recovering", missing=missing)


def _describe_absence(status: SeatStatus, *, is_asked: bool) -> str:
    if status.fault:
        return status.fault
    if not status.reachable:
        return "was not reached yet"
    return "is empty" if is_asked else "was not asked yet"
