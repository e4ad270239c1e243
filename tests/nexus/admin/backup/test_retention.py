"""Which backups may go: the newest of each period stay, and what must never go."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import to_micros
from nexus.admin.backup.directory import BackupFile
from nexus.admin.backup.retention import ALL, Retention, find_outdated

BEGIN = datetime(2025, 1, 6, 3, tzinfo=UTC)  # a Monday


def make_files(hours: Sequence[float], *, held: Sequence[int] = ()) -> list[BackupFile]:
    """Make backups at these hours after the begin, each named by its place; the newest first."""
    files = [
        BackupFile(str(at), 1, "c", 1, 1, at, to_micros(BEGIN + timedelta(hours=hour)), is_held=at in held)
        for at, hour in enumerate(hours)
    ]
    return files[::-1]


def find_kept(files: Sequence[BackupFile], retention: Retention, verified: str = "") -> list[int]:
    """Return which are kept, by their places, ascending."""
    outdated = find_outdated(files, retention, verified=verified)
    return sorted(int(file.name) for file in files if file not in outdated)


DAILY = [day * 24 for day in range(21)]  # three weeks, of which each begins on a Monday
TWICE_A_DAY = [hour for day in range(5) for hour in (day * 24, day * 24 + 12)]


@pytest.mark.parametrize(
    ("hours", "retention", "kept"),
    [
        pytest.param(DAILY, ALL, list(range(21)), id="nothing is said: all stay"),
        pytest.param(DAILY, Retention(last=5), [16, 17, 18, 19, 20], id="the last five"),
        pytest.param(DAILY, Retention(last=1, minimum=3), [18, 19, 20], id="never fewer than the minimum"),
        pytest.param(DAILY, Retention(daily=4, minimum=1), [17, 18, 19, 20], id="one a day"),
        pytest.param(TWICE_A_DAY, Retention(daily=3, minimum=1), [5, 7, 9], id="the newest of each day"),
        pytest.param(DAILY, Retention(weekly=3, minimum=1), [6, 13, 20], id="the newest of each week"),
        pytest.param(DAILY, Retention(weekly=9, minimum=1), [6, 13, 20], id="no more weeks than there are"),
        pytest.param(DAILY, Retention(last=2, daily=3, weekly=2, minimum=1), [13, 18, 19, 20], id="all rules together"),
        pytest.param([0, 24 * 40, 24 * 80], Retention(daily=2, minimum=1), [1, 2], id="days without one do not count"),
        pytest.param([], Retention(last=1), [], id="there are none"),
    ],
)
def test_what_stays(hours: list[float], retention: Retention, kept: list[int]) -> None:
    """By place; the highest is the newest."""
    assert find_kept(make_files(hours), retention) == kept


def test_the_last_verified_one_stays() -> None:
    """However old it is: the newer ones may not open."""
    assert find_kept(make_files(DAILY), Retention(last=1, minimum=1), verified="2") == [2, 20]


def test_what_is_held_stays() -> None:
    """Until somebody removes the hold."""
    assert find_kept(make_files(DAILY, held=[0, 7]), Retention(last=1, minimum=1)) == [0, 7, 20]


@given(
    hours=st.lists(st.integers(0, 5_000), max_size=40).map(sorted),
    numbers=st.tuples(*[st.integers(0, 5)] * 3, st.integers(1, 4)),
    verified=st.integers(0, 39),
)
def test_no_retention_takes_what_must_stay(hours: list[int], numbers: tuple[int, int, int, int], verified: int) -> None:
    """The verified one, the minimum, and with nothing said all; a second look finds nothing more."""
    files, retention = make_files(hours), Retention(*numbers)
    kept = find_kept(files, retention, str(verified))
    assert len(kept) >= min(retention.minimum, len(files))
    assert verified in kept or verified >= len(files)
    assert retention.is_on or len(kept) == len(files)
    left = [file for file in files if int(file.name) in kept]
    assert find_kept(left, retention, str(verified)) == kept
