"""What the table of `make bench` says about its rounds."""

import pytest

from tests.bench.rounds import Spread, compare, interleave
from tests.bench.row import Target, at_least, at_most
from tests.bench.table import show_ratio


def test_rounds_take_turns() -> None:
    """Rounds of both sides alternate, so that disturbances of the machine affect both."""
    order: list[str] = []
    interleave(lambda: order.append("a"), lambda: order.append("b"), rounds=3)
    assert order == ["a", "b"] * 3


def test_a_ratio_is_of_two_numbers_of_one_round() -> None:
    """A machine that became three times slower for one round changes no ratio."""
    found = compare([(60, 100), (20, 33.3), (61, 100), (59, 100), (60, 100)], lambda number: number)
    assert (found.measured, found.baseline) == (60, 100)
    assert found.ratio.median == pytest.approx(0.6)
    assert found.ratio.highest - found.ratio.lowest < 0.03


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param(at_least(0.6, 0.6), Target("≥ 60%", True), id="a share that is just reached"),
        pytest.param(at_least(2, 1.99), Target("≥ 2 ×", False), id="a multiple that is missed"),
        pytest.param(at_most(150, "µs", 150), Target("≤ 150 µs", True), id="a limit that is just kept"),
        pytest.param(at_most(65, "MB", 65.1), Target("≤ 65 MB", False), id="a limit that is passed"),
    ],
)
def test_a_target_says_whether_it_is_reached(target: Target, expected: Target) -> None:
    """The table says in words what the target is and whether it is reached."""
    assert target == expected


def test_a_ratio_shows_how_far_its_rounds_lie_apart() -> None:
    """A ratio shows the range of its rounds; one round alone has no range."""
    assert show_ratio(Spread.of([0.5, 0.7, 0.6])) == "0.60 (0.50–0.70)"
    assert show_ratio(Spread.of([1.01])) == "1.01"
