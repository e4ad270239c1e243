"""No test is left to luck for long: what `tests/flakes.toml` may hold."""

from datetime import UTC, date, datetime

import pytest

from tests.kit.flakes import FILE, Flake, find_faults, read_flakes

TODAY = date(2026, 11, 30)


def make_flake(day: int, test: str = "tests/test_a.py::test_a") -> Flake:
    return Flake(date(2026, 11, day), test, "AssertionError: not within 30 s")


def test_flakes_are_mended_in_time() -> None:
    """Each stands in the file for two weeks at most, and no test stands there twice."""
    assert find_faults(read_flakes(FILE.read_text()), today=datetime.now(UTC).date()) == []


@pytest.mark.parametrize(
    ("flakes", "named"),
    [
        pytest.param([], 0, id="none"),
        pytest.param([make_flake(16)], 0, id="14 days old"),
        pytest.param([make_flake(15)], 1, id="15 days old"),
        pytest.param([make_flake(29), make_flake(30)], 1, id="the same test twice"),
        pytest.param([make_flake(29), make_flake(30, "tests/test_b.py::test_b")], 0, id="two tests"),
    ],
)
def test_faults_of_the_list(flakes: list[Flake], named: int) -> None:
    """What is too old, or stands there twice, is named."""
    faults = find_faults(flakes, today=TODAY)
    assert len(faults) == named
    assert all("tests/test_a.py::test_a" in fault for fault in faults)


@pytest.mark.parametrize(
    "error", ["", 'said "no" \\ twice', "a\nb\x00\x7f\u2028", "\N{GRINNING FACE} µ", "x" * 1000], ids=ascii
)
def test_an_entry_is_read_as_it_was_written(error: str) -> None:
    """Whatever an error says, the file stays TOML; what cannot be printed becomes a space."""
    (read,) = read_flakes(Flake(TODAY, 'tests/test_a.py::test_a[x-"y"]', error).to_toml())
    assert (read.date, read.test) == (TODAY, 'tests/test_a.py::test_a[x-"y"]')
    assert read.error == "".join(sign if sign.isprintable() else " " for sign in error)[:200]
