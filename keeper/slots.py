"""Which shards a keeper takes, holds and drops. No I/O, no clock; shards are in protected memory only.

Order: sets are ordered by (timeline, set_number), across generations and reshares.

1. The first shard pins cluster and genesis until the process ends. What is of another cluster or genesis is refused.
2. At most two sets are held, each by its set_id. Nothing is activated: the store alone says which set is current.
3. Putting a shard names the store's current set, or says by an empty id that this keeper is no member of it. One for
   another set than a named current one is refused while the current set is not held: that comes first.
4. A set that is not held is taken if it is newer than every set that was ever held here, or is the newest of them once
   more. A set that was dropped therefore never comes back after a newer one.
5. With two sets held, a third one takes the place of the older one that is not the store's current set; where this
   keeper is no member of that, of the older one.
6. A set that is held: the same shard is accepted and changes nothing; another shard, point or label is refused.
7. A shard is taken only if it has the right size, its x is the one named, and its commitment is the one named.
8. Dropping a set that is not held changes nothing. The pin and what is newest stay.

A refused call changes nothing.
"""

import hmac
import threading
from dataclasses import dataclass

from common.errors import InvalidArgumentError, NotFoundError, SetNotNewerError, WrongStateError
from common.forms.delivery import SetLabel
from common.keys import shamir
from common.keys.protected import ProtectedBuffer, ProtectedMemory

MAX_SETS = 2


@dataclass(frozen=True, slots=True)
class HeldSet:
    """A set that is held: its label and the keeper's point."""

    label: SetLabel
    x: int


@dataclass(frozen=True, slots=True)
class Pin:
    """The one cluster that this keeper serves until it ends."""

    cluster_id: bytes
    genesis: bytes


class ShardSlots:
    """The two slots of a keeper. Thread-safe."""

    def __init__(self, memory: ProtectedMemory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._pin: Pin | None = None
        self._newest: SetLabel | None = None
        self._held: dict[bytes, tuple[HeldSet, ProtectedBuffer]] = {}

    @property
    def pin(self) -> Pin | None:
        """The cluster that the first shard pinned; None before."""
        return self._pin

    def list_held(self) -> tuple[HeldSet, ...]:
        """Return what is held, oldest first."""
        with self._lock:
            return tuple(sorted((held for held, _ in self._held.values()), key=lambda held: held.label.order))

    def put(self, label: SetLabel, shard: memoryview, *, x: int, commitment: bytes, current_set_id: bytes) -> None:
        """Take a copy of *shard*, y ‖ x, 33 bytes, into protected memory, if the rules allow it.

        An empty *current_set_id* says that this keeper is no member of the store's current set.

        Raises:
            InvalidArgumentError: The shard has the wrong size, x or commitment.
            SetNotNewerError: A newer set was held here (rule 4).
            WrongStateError: A rule refuses it; the message says which.
            ProtectionError: There is no protected memory left.
        """
        _check_shard(label, shard, x, commitment)
        with self._lock:
            self._check_pin(label.cluster_id, label.genesis)
            if label.set_id in self._held:
                self._compare(label, shard, x)
                return
            self._check_order(label)
            victim = self._choose_victim(label, current_set_id)
            buffer = self._memory.allocate(len(shard))
            buffer.view[:] = shard
            if victim is not None:
                self._release(victim)
            self._pin = Pin(label.cluster_id, label.genesis)
            self._newest = label
            self._held[label.set_id] = (HeldSet(label, x), buffer)

    def copy_shard(self, cluster_id: bytes, set_id: bytes, *, into: memoryview) -> HeldSet:
        """Copy the shard of a set into *into*, 33 bytes of protected memory.

        Raises:
            NotFoundError: No such set is held.
            WrongStateError: The keeper serves another cluster.
        """
        with self._lock:
            self._check_cluster(cluster_id)
            if set_id not in self._held:
                raise NotFoundError(f"set {set_id.hex()} is not held")
            held, buffer = self._held[set_id]
            into[:] = buffer.view
            return held

    def drop(self, cluster_id: bytes, set_id: bytes) -> bool:
        """Wipe and forget a set; return whether it was held.

        Raises:
            WrongStateError: The keeper serves another cluster.
        """
        with self._lock:
            self._check_cluster(cluster_id)
            if set_id not in self._held:
                return False
            self._release(set_id)
            return True

    def wipe(self) -> None:
        """Wipe and forget all sets, at the end of the process."""
        with self._lock:
            for set_id in list(self._held):
                self._release(set_id)

    def _check_cluster(self, cluster_id: bytes) -> None:
        if self._pin is not None and cluster_id != self._pin.cluster_id:
            raise WrongStateError(f"cluster is {cluster_id.hex()}, this keeper serves {self._pin.cluster_id.hex()}")

    def _check_pin(self, cluster_id: bytes, genesis: bytes) -> None:
        self._check_cluster(cluster_id)
        if self._pin is not None and genesis != self._pin.genesis:
            raise WrongStateError(f"genesis is {genesis.hex()}, this keeper serves {self._pin.genesis.hex()}")

    def _compare(self, label: SetLabel, shard: memoryview, x: int) -> None:
        held, buffer = self._held[label.set_id]
        if held != HeldSet(label, x) or not hmac.compare_digest(buffer.view, shard):
            raise WrongStateError(f"set {label.set_number}: another shard or label of this set is held")

    def _check_order(self, label: SetLabel) -> None:
        newest = self._newest
        if newest is None or label.order > newest.order or label == newest:
            return
        raise SetNotNewerError(
            f"set {label.set_number} of timeline {label.timeline} is not newer than "
            f"set {newest.set_number} of timeline {newest.timeline}, which was held here"
        )

    def _choose_victim(self, label: SetLabel, current_set_id: bytes) -> bytes | None:
        is_member = bool(current_set_id)
        if is_member and current_set_id != label.set_id and current_set_id not in self._held:
            raise WrongStateError(f"set {label.set_number}: the store's current set is not held, put that first")
        if len(self._held) < MAX_SETS:
            return None
        others = [held.label for held, _ in self._held.values() if held.label.set_id != current_set_id]
        return min(others, key=lambda other: other.order).set_id

    def _release(self, set_id: bytes) -> None:
        _, buffer = self._held.pop(set_id)
        buffer.release()


def _check_shard(label: SetLabel, shard: memoryview, x: int, commitment: bytes) -> None:
    if len(shard) != shamir.SHARD_SIZE:
        raise InvalidArgumentError(f"shard is {len(shard)} bytes, want {shamir.SHARD_SIZE}")
    if not 1 <= x <= shamir.MAX_SHARDS or shard[-1] != x:
        raise InvalidArgumentError(f"x is {x}, the shard is at {shard[-1]}")
    actual = shamir.commitment(shard, cluster_id=label.cluster_id, set_id=label.set_id)
    if not hmac.compare_digest(actual, commitment):
        raise InvalidArgumentError("commitment is not the shard's")
