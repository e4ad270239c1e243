"""The epoch of a store: it goes up with every init, seal, unseal and accepted store, and fences off who missed one.

A nexus that was stopped, and wakes after the cluster was sealed, still has its keys: the epoch that it names to the
keepers is lower than what they have seen, and they refuse it.
"""

from typing import NamedTuple

MAX_STEP = 1 << 32  # a keeper that lies may make the epoch of a store leap so far at once


class StoreEpoch(NamedTuple):
    """Epochs are ordered by timeline, then by their number."""

    timeline: int
    epoch: int  # 0: none is known


NO_EPOCH = StoreEpoch(0, 0)


def next_epoch(own: int, reported: int) -> int:
    """Return the next epoch of a store at *own*, above what keepers *reported*: a store that was put back can go on."""
    return max(own, min(reported, own + MAX_STEP)) + 1
