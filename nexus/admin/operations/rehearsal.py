"""The recovery of a set, rehearsed: its shards come over new connections, and the code of a recovery proves the key."""

import threading
from collections.abc import Sequence

from common.errors import CorruptRowError, TooFewShardsError
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from nexus.keepers.collection import Collection
from nexus.keepers.pool import KeeperPool
from nexus.keys.opened import Serving, prove
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.root_key import ROOT_KEY_SIZE, RootKey
from nexus.keys.ruled_change import rehearse
from nexus.keys.shard_set import combine_points
from nexus.store.protocol import ControlRow, Meta


class Rehearsal:
    """Used by one thread, but for `release`. Owns the points between `gather` and `prove`."""

    def __init__(self, pool: KeeperPool, memory: ProtectedMemory) -> None:
        self._pool = pool
        self._memory = memory
        self._lock = threading.Lock()
        self._collection: Collection | None = None  # None: there is none, or it was released
        self._points: list[ProtectedBuffer] = []

    def gather(self, facts: Facts, set_number: int, *, seconds: float) -> None:
        """Fetch a threshold of the set's shards, at most *seconds*.

        Raises:
            TooFewShardsError: Not in time, or released meanwhile; the message names what is wrong with which keeper.
        """
        self.release()
        collection = Collection(facts.sets[set_number], facts.meta.cluster_id)
        with self._lock:
            self._collection = collection
        points = self._pool.gather(collection, seconds=seconds)
        with self._lock:
            if self._collection is collection:
                self._points = points
                return
        _wipe(points)
        raise TooFewShardsError("the shards were released meanwhile")

    def prove(self, meta: Meta, rows: Sequence[ControlRow]) -> Serving:
        """Combine what was gathered, and prove it on *rows*; the caller owns what it opens.

        Raises:
            TooFewShardsError: Nothing is gathered.
            WrongRootKeyError, CorruptRowError, DecryptionError: It does not prove.
        """
        candidate, points = self._combine()
        return prove(candidate, points, meta=meta, rows=rows, memory=self._memory)

    def prove_flip(self, facts: Facts, flip: Change) -> Serving:
        """Combine what was gathered, and prove it on the rows as *flip* would leave them; otherwise as `prove`.

        The manifest over these rows is made in memory, with the candidate itself once it matches its key check value.
        """
        candidate, points = self._combine()
        try:
            with self._memory.allocate(ROOT_KEY_SIZE) as copy:
                copy.view[:] = candidate.view
                meta, rows = self._compose(facts, flip, copy)
        except BaseException:
            _wipe([candidate, *points])
            raise
        return prove(candidate, points, meta=meta, rows=rows, memory=self._memory)

    def _combine(self) -> tuple[ProtectedBuffer, list[ProtectedBuffer]]:
        with self._lock:
            collection, points, self._points = self._collection, self._points, []
        if collection is None or not points:
            raise TooFewShardsError("no shards are gathered")
        return combine_points(points, collection.record.threshold, self._memory), points

    def _compose(self, facts: Facts, flip: Change, key: ProtectedBuffer) -> tuple[Meta, list[ControlRow]]:
        """Return the rows of the flip under a manifest by *key*, which is wiped."""
        generation = facts.generations.get(flip.current.generation)
        if generation is None:
            raise CorruptRowError(f"control row generation/{flip.current.generation} does not verify")
        root_key = RootKey(
            key, cluster_id=facts.meta.cluster_id, generation=flip.current.generation, memory=self._memory
        )
        try:
            root_key.check(generation.kcv)
            return rehearse(facts, flip, root_key)
        finally:
            root_key.release()

    def release(self) -> None:
        """Wipe what was gathered, and end a gathering that is under way."""
        with self._lock:
            collection, self._collection = self._collection, None
            points, self._points = self._points, []
        _wipe(points)
        if collection is not None:
            _wipe(collection.take())


def _wipe(points: Sequence[ProtectedBuffer]) -> None:
    for point in points:
        point.release()
