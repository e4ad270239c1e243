"""How fast the keyring job goes."""

import pytest

from nexus.admin.operations.pace import BATCH, find_batch, find_rest


@pytest.mark.parametrize(
    ("rate", "rows"), [(0, BATCH), (0.5, 1), (1, 1), (40, 40), (100, 100), (1_000_000, BATCH)], ids=str
)
def test_a_batch_is_what_a_second_may_bring_at_most(rate: float, rows: int) -> None:
    assert find_batch(rate) == rows


@pytest.mark.parametrize(
    ("has_callers", "rate", "rest"),
    [
        pytest.param(False, 0, 0, id="nobody calls"),
        pytest.param(True, 0, 0.2, id="as long as the batch took"),
        pytest.param(False, 100, 0.8, id="what is left of the second"),
        pytest.param(True, 100, 0.8, id="the longer of both"),
        pytest.param(True, 1000, 0.2, id="calls ask for more than the limit"),
        pytest.param(False, 1000, 0, id="slower than the limit by itself"),
    ],
)
def test_the_rest_after_a_batch(has_callers: bool, rate: float, rest: float) -> None:
    assert find_rest(100, 0.2, has_callers=has_callers, rows_per_second=rate) == pytest.approx(rest)
