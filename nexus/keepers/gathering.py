"""Gather a threshold of shards as a recovery does, over connections of their own: a rehearsal proves the recovery."""

import threading
from collections.abc import Sequence

from common.clock import Clock
from common.errors import TooFewShardsError
from common.keys.protected import ProtectedBuffer
from nexus.keepers.collection import Collection
from nexus.keepers.link import CALL_TIMEOUT
from nexus.keepers.seat import Seat


def gather(seats: Sequence[Seat], collection: Collection, clock: Clock, *, seconds: float) -> list[ProtectedBuffer]:
    """Ask all *seats* at once for their shards, at most *seconds*, and return a threshold of them.

    The caller owns what it gets. Closes the links of *seats*.

    Raises:
        TooFewShardsError: Not in time; the message names what is wrong with which keeper.
    """
    stopping = threading.Event()
    threads = [
        threading.Thread(
            target=_ask, args=(seat, collection, clock, stopping), name=f"gather-{seat.member.name}", daemon=True
        )
        for seat in seats
    ]
    for thread in threads:
        thread.start()
    try:
        collection.wait(clock, seconds)
    finally:
        shards = collection.take()
        stopping.set()
        for seat in seats:
            seat.retire()
        for thread in threads:
            thread.join(timeout=CALL_TIMEOUT)
    if len(shards) < collection.record.threshold:
        for shard in shards:
            shard.release()
        raise TooFewShardsError(_describe(seats, collection, len(shards)))
    return shards


def watch_once(seats: Sequence[Seat], *, seconds: float) -> Sequence[Seat]:
    """Ask all *seats* at once how their keepers are, at most *seconds*; close their links, and return them."""
    threads = [threading.Thread(target=seat.watch, name=f"probe-{seat.member.name}", daemon=True) for seat in seats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=seconds)
    for seat in seats:
        seat.retire()
    return seats


def _ask(seat: Seat, collection: Collection, clock: Clock, stopping: threading.Event) -> None:
    while not stopping.is_set():
        pause = seat.offer(collection)
        if seat.status.holdings:
            return
        clock.wait(stopping, pause)


def _describe(seats: Sequence[Seat], collection: Collection, gathered: int) -> str:
    record = collection.record
    absent = [f"{seat.member.name} {seat.status.fault or 'is empty'}" for seat in seats if not seat.status.holdings]
    return f"{gathered} of {record.threshold} shards of set {record.set_number} in time: {'; '.join(absent)}"
