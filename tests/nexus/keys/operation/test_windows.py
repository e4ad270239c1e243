"""Windows of the schedule: how they are written, when they are open, and when they open next."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import to_micros
from nexus.keys.operation.windows import DAY, Window, find_opening, is_open, parse_window

HOUR = DAY // 24
MINUTE = HOUR // 60
WINDOWS = st.builds(
    Window,
    weekday=st.none() | st.integers(0, 6),
    opens=st.integers(0, 24 * 60 - 1).map(lambda minutes: minutes * MINUTE),
    length=st.integers(1, 24 * 60).map(lambda minutes: minutes * MINUTE),
)
MOMENTS = st.integers(10_000 * DAY, 40_000 * DAY)


def at(text: str) -> int:
    """Return the microseconds of a time such as 2026-11-28 01:00."""
    return to_micros(datetime.fromisoformat(text).replace(tzinfo=UTC))


@pytest.mark.parametrize(
    ("text", "window"),
    [
        pytest.param("Sat 01:00-05:00 UTC", Window(5, HOUR, 4 * HOUR), id="a weekday"),
        pytest.param("daily 01:30-05:00 UTC", Window(None, 90 * MINUTE, 210 * MINUTE), id="every day"),
        pytest.param("Mon 22:00-02:00 UTC", Window(0, 22 * HOUR, 4 * HOUR), id="over midnight"),
        pytest.param("Sun 22:00-24:00 UTC", Window(6, 22 * HOUR, 2 * HOUR), id="until midnight"),
        pytest.param("Sun 22:00-00:00 UTC", Window(6, 22 * HOUR, 2 * HOUR), id="until midnight, as the next day"),
        pytest.param("daily 00:00-24:00 UTC", Window(None, 0, DAY), id="a whole day"),
    ],
)
def test_a_window_is_read(text: str, window: Window) -> None:
    """Weekday or daily, from and until, in UTC."""
    assert parse_window(text) == window


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sat 01:00-05:00",
        "Sat 01:00-05:00 CET",
        "sat 01:00-05:00 UTC",
        "Saturday 01:00-05:00 UTC",
        "Sat 1:00-5:00 UTC",
        "Sat 01:00 - 05:00 UTC",
        "Sat 01:60-05:00 UTC",
        "Sat 01:00-24:01 UTC",
        "Sat 25:00-05:00 UTC",
        "Sat 24:00-05:00 UTC",
        "Sat 01:00-01:00 UTC",
        "Sat 01:00-05:00 UTC\n",
        "Sat ٠١:٠٠-٠٥:٠٠ UTC",
    ],
)
def test_another_form_is_refused(text: str) -> None:
    """Nothing is guessed, and no window is empty."""
    with pytest.raises(ValueError, match="form|empty|no time"):
        parse_window(text)


@pytest.mark.parametrize(
    ("text", "moment", "is_open_then", "opening"),
    [
        # 2026-11-28 is a Saturday.
        pytest.param("Sat 01:00-05:00 UTC", "2026-11-28 00:59", False, "2026-11-28 01:00", id="before"),
        pytest.param("Sat 01:00-05:00 UTC", "2026-11-28 01:00", True, "2026-11-28 01:00", id="as it opens"),
        pytest.param("Sat 01:00-05:00 UTC", "2026-11-28 05:00", False, "2026-12-05 01:00", id="as it closes"),
        pytest.param("Sat 01:00-05:00 UTC", "2026-11-29 02:00", False, "2026-12-05 01:00", id="the day after"),
        pytest.param("Sat 22:00-02:00 UTC", "2026-11-29 01:59", True, "2026-11-29 01:59", id="past midnight"),
        pytest.param("Sat 22:00-02:00 UTC", "2026-11-28 01:00", False, "2026-11-28 22:00", id="midnight before"),
        pytest.param("daily 22:00-02:00 UTC", "2026-11-28 01:00", True, "2026-11-28 01:00", id="daily, over midnight"),
        pytest.param("daily 22:00-02:00 UTC", "2026-11-28 03:00", False, "2026-11-28 22:00", id="daily, between"),
    ],
)
def test_a_window_belongs_to_the_day_on_which_it_opens(
    text: str, moment: str, is_open_then: bool, opening: str
) -> None:
    """It is open from its first minute to before its last, past midnight too."""
    windows = [parse_window(text)]
    assert is_open(windows, at(moment)) is is_open_then
    assert find_opening(windows, at(moment)) == at(opening)


@given(WINDOWS, MOMENTS)
def test_days_are_counted_as_the_calendar_does(window: Window, now: int) -> None:
    """By another way to count: from the calendar's midnights and weekdays."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    begins = [
        day + timedelta(microseconds=window.opens)
        for day in (midnight, midnight - timedelta(days=1))
        if window.weekday in (None, day.weekday())
    ]
    expected = any(begin <= moment < begin + timedelta(microseconds=window.length) for begin in begins)
    assert is_open([window], now) is expected


@given(st.lists(WINDOWS, max_size=3), MOMENTS)
def test_the_next_opening_is_open_and_the_first(windows: list[Window], now: int) -> None:
    """No minute between now and then is in a window."""
    opening = find_opening(windows, now)
    assert now <= opening <= now + 7 * DAY
    assert is_open(windows, opening)
    step = max((opening - now) // 50, 1)
    assert not any(is_open(windows, moment) for moment in range(now, opening, step))
