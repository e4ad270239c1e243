"""Epochs of a store: the next one."""

import pytest

from common.forms.epoch import MAX_STEP, StoreEpoch, next_epoch


@pytest.mark.parametrize(
    ("own", "reported", "wanted"),
    [
        pytest.param(0, 0, 1, id="the first one"),
        pytest.param(5, 5, 6, id="keepers have seen the same"),
        pytest.param(5, 3, 6, id="keepers have seen less"),
        pytest.param(5, 9, 10, id="the store was put back"),
        pytest.param(5, 2**64 - 1, 5 + MAX_STEP + 1, id="a keeper lies"),
    ],
)
def test_the_next_epoch_is_above_what_keepers_have_seen(own: int, reported: int, wanted: int) -> None:
    """So that a store that was put back can be sealed and accepted; a liar makes it leap only so far."""
    assert next_epoch(own, reported) == wanted


def test_epochs_are_ordered_by_timeline_first() -> None:
    """A store that was accepted counts on above the one that it replaced."""
    assert StoreEpoch(1, 9) < StoreEpoch(2, 1) < StoreEpoch(2, 2)
