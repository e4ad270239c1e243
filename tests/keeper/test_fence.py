"""`keeper.fence`: a nexus that missed a seal is not let through."""

import pytest

from common.errors import ConflictError, WrongStateError
from common.forms.epoch import NO_EPOCH, StoreEpoch
from keeper.fence import EpochFence


def let_through(fence: EpochFence, *epochs: tuple[int, int]) -> None:
    for epoch in epochs:
        with fence.passing(StoreEpoch(*epoch)):
            pass


def test_a_lower_epoch_is_refused() -> None:
    """Ordered by timeline first; the same epoch goes on."""
    fence = EpochFence()
    assert fence.highest == NO_EPOCH
    let_through(fence, (1, 3), (1, 3), (2, 1))
    for lower in [(1, 9), (1, 3)]:
        with pytest.raises(WrongStateError, match="has seen timeline 2, epoch 1"), fence.passing(StoreEpoch(*lower)):
            pytest.fail("was let through")
    let_through(fence, (2, 1), (2, 5))
    assert fence.highest == StoreEpoch(2, 5)


def test_a_refused_call_raises_nothing() -> None:
    """Whatever refuses it: else a wrong call could shut the true nexus out."""
    fence = EpochFence()
    let_through(fence, (1, 3))
    with pytest.raises(ConflictError), fence.passing(StoreEpoch(1, 99)):
        raise ConflictError("refused")
    assert fence.highest == StoreEpoch(1, 3)
    let_through(fence, (1, 3))


def test_a_call_without_an_epoch_is_taken() -> None:
    """It comes from an older nexus: keepers are upgraded first."""
    fence = EpochFence()
    let_through(fence, (1, 3), (0, 0), (1, 0))
    assert fence.highest == StoreEpoch(1, 3)
