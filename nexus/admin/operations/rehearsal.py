"""The recovery of a set, rehearsed: its shards come over new connections, and the code of a recovery proves the key."""

from collections.abc import Sequence

from common.errors import TooFewShardsError
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from nexus.keepers.collection import Collection
from nexus.keepers.pool import KeeperPool
from nexus.keys.opened import Serving, prove
from nexus.keys.operation.facts import Facts
from nexus.keys.shard_set import combine_points
from nexus.store.protocol import ControlRow, Meta


class Rehearsal:
    """Used by one thread. Owns the points between `gather` and `prove`."""

    def __init__(self, pool: KeeperPool, memory: ProtectedMemory) -> None:
        self._pool = pool
        self._memory = memory
        self._points: list[ProtectedBuffer] = []
        self._threshold = 0

    def gather(self, facts: Facts, set_number: int, *, seconds: float) -> None:
        """Fetch a threshold of the set's shards, at most *seconds*.

        Raises:
            TooFewShardsError: Not in time; the message names what is wrong with which keeper.
        """
        self.release()
        record = facts.sets[set_number]
        self._points = self._pool.gather(Collection(record, facts.meta.cluster_id), seconds=seconds)
        self._threshold = record.threshold

    def prove(self, meta: Meta, rows: Sequence[ControlRow]) -> Serving:
        """Combine what was gathered, and prove it on *rows*; the caller owns what it opens.

        Raises:
            TooFewShardsError: Nothing is gathered.
            WrongRootKeyError, CorruptRowError, DecryptionError: It does not prove.
        """
        points, self._points = self._points, []
        if not points:
            raise TooFewShardsError("no shards are gathered")
        return prove(
            combine_points(points, self._threshold, self._memory), points, meta=meta, rows=rows, memory=self._memory
        )

    def release(self) -> None:
        """Wipe what was gathered."""
        for point in self._points:
            point.release()
        self._points = []
