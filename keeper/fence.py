"""Which epoch a keeper has seen, so that a nexus that was stopped cannot act when it wakes. No I/O, no clock.

Order: epochs are ordered by (timeline, epoch).

1. PutShard, DropSet and PutMark name the epoch of the store; one that is lower than the highest seen here is refused:
   the store has been sealed, unsealed or accepted since.
2. Only a call that is taken raises the highest; it stays until the process ends.
3. Nothing is seen before a shard pins the cluster.
4. A call without an epoch comes from an older nexus, and is taken. The next release refuses it.

A refused call changes nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import WrongStateError
from common.forms.epoch import NO_EPOCH, StoreEpoch


class EpochFence:
    """Thread-safe: one call at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._highest = NO_EPOCH

    @property
    def highest(self) -> StoreEpoch:
        """The highest epoch seen since the start."""
        return self._highest

    @contextmanager
    def passing(self, epoch: StoreEpoch) -> Iterator[None]:
        """Let a call through; its block says by an error that it is refused. The caller sees to rule 3.

        Raises:
            WrongStateError: The epoch is lower than the highest (rule 1).
        """
        with self._lock:
            highest = self._highest
            if epoch.epoch and epoch < highest:
                raise WrongStateError(
                    f"call is of timeline {epoch.timeline}, epoch {epoch.epoch}, and this keeper has seen "
                    f"timeline {highest.timeline}, epoch {highest.epoch}"
                )
            yield
            if epoch.epoch:
                self._highest = max(highest, epoch)
