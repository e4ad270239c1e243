"""A shard set whose root key this nexus knows: it can give any keeper its shard."""

import hmac
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import BadShardError, SealedError
from common.forms.delivery import SetLabel
from common.keys import shamir
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from nexus.keys.records import MemberRecord, SetState, ShardSetRecord


@dataclass(frozen=True, slots=True)
class Member:
    """A keeper as configuration or a set names it."""

    name: str
    spiffe_id: str
    address: str

    @property
    def identity(self) -> tuple[str, str]:
        """What makes it the same keeper: a set may name one of the same name with another SPIFFE ID."""
        return self.name, self.spiffe_id


class ShardSet:
    """A set and t of its points in protected memory, from which any shard follows by interpolation."""

    def __init__(self, record: ShardSetRecord, label: SetLabel, points: Sequence[ProtectedBuffer]) -> None:
        """Take over *points*: as many shards of the set as its threshold, or none when only the record is known."""
        self._lock = threading.Lock()
        self.record = record
        self.label = label
        self._points = list(points)

    def derive_shard(self, x: int, into: ProtectedBuffer) -> None:
        """Write the shard at *x*, 33 bytes, into protected memory.

        Raises:
            SealedError: The points are wiped.
        """
        with self._lock:
            if not self._points:
                raise SealedError("the points of this set are wiped")
            views = [point.view for point in self._points]
            shamir.interpolate(views, threshold=self.record.threshold, x=x, into=into.view)

    def release(self) -> None:
        """Wipe the points."""
        with self._lock:
            for point in self._points:
                point.release()
            self._points.clear()


def draw_set(
    secret: memoryview,
    members: Sequence[Member],
    *,
    threshold: int,
    generation: int,
    set_number: int,
    timeline: int,
    cluster_id: bytes,
    memory: ProtectedMemory,
    state: SetState = SetState.CURRENT,
    drawn_at: int = 0,
) -> tuple[ShardSetRecord, list[ProtectedBuffer]]:
    """Draw new polynomials for *secret* and return the set's record and *threshold* points, which the caller owns."""
    set_id = os.urandom(16)
    shards = [memory.allocate(shamir.SHARD_SIZE) for _ in members]
    xs = range(1, len(members) + 1)
    shamir.split(secret, threshold=threshold, xs=xs, into=[shard.view for shard in shards])
    records = tuple(
        MemberRecord(
            member.name,
            member.spiffe_id,
            member.address,
            x,
            shamir.commitment(shard.view, cluster_id=cluster_id, set_id=set_id),
        )
        for member, x, shard in zip(members, xs, shards, strict=True)
    )
    for spare in shards[threshold:]:
        spare.release()
    record = ShardSetRecord(state, generation, set_id, set_number, timeline, threshold, records, drawn_at)
    return record, shards[:threshold]


def combine_points(points: Sequence[ProtectedBuffer], threshold: int, memory: ProtectedMemory) -> ProtectedBuffer:
    """Return the candidate for a root key that *points* give, 32 bytes, which nothing has proved yet.

    The caller owns it. On failure *points*, which stay the caller's otherwise, are wiped.
    """
    candidate = memory.allocate(shamir.SHARD_SIZE - 1)
    try:
        shamir.combine([point.view for point in points], threshold=threshold, into=candidate.view)
    except BaseException:
        for buffer in (candidate, *points):
            buffer.release()
        raise
    return candidate


def check_shard(shard: ProtectedBuffer, member: MemberRecord, cluster_id: bytes, set_id: bytes) -> None:
    """Hold a shard that a keeper gave back against its commitment.

    Raises:
        BadShardError: It is not what the keeper was given.
    """
    commitment = shamir.commitment(shard.view, cluster_id=cluster_id, set_id=set_id)
    if not hmac.compare_digest(commitment, member.commitment):
        raise BadShardError("lies: its shard does not match the commitment")
