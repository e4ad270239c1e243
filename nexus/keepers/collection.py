"""The shards that a recovery has gathered so far."""

import threading

from common.clock import Clock
from common.keys.protected import ProtectedBuffer
from nexus.keepers.plan import find_record
from nexus.keys.records import MemberRecord, ShardSetRecord
from nexus.keys.shard_set import Member


class Collection:
    """Thread-safe. Every shard in it matched its commitment. Owns its buffers until `take` hands them over."""

    def __init__(self, record: ShardSetRecord, cluster_id: bytes) -> None:
        self.record = record
        self.cluster_id = cluster_id
        self.set_id = record.set_id
        self.lacking: set[str] = set()  # names of keepers that were asked, and hold no shard of this set
        self._shards: dict[int, ProtectedBuffer] = {}
        self._lock = threading.Lock()
        self._enough = threading.Event()

    def find(self, member: Member) -> MemberRecord | None:
        """Find the keeper in the set; None when it is not a member."""
        return find_record(self.record.members, member)

    def has(self, x: int) -> bool:
        """Whether the shard at *x* is here, or is not wanted any more."""
        with self._lock:
            return x in self._shards or self._enough.is_set()

    def offer(self, x: int, shard: ProtectedBuffer) -> None:
        """Take over a shard; one that is not wanted any more is wiped."""
        with self._lock:
            if x in self._shards or self._enough.is_set():
                shard.release()
                return
            self._shards[x] = shard
            if len(self._shards) == self.record.threshold:
                self._enough.set()

    @property
    def gathered(self) -> int:
        """How many shards are here."""
        with self._lock:
            return len(self._shards)

    def wait(self, clock: Clock, seconds: float) -> bool:
        """Wait until a threshold is here; say whether it is."""
        return clock.wait(self._enough, seconds)

    def take(self) -> list[ProtectedBuffer]:
        """Hand the gathered shards over to the caller."""
        with self._lock:
            self._enough.set()
            shards, self._shards = list(self._shards.values()), {}
            return shards
