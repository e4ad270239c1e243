"""The times of a week at which the schedule may begin something. All of them are in UTC.

Times are microseconds since 1970. A window belongs to the day on which it opens, and may close on the next one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

DAY = 86_400_000_000  # microseconds
FORM = '"Sat 01:00-05:00 UTC" or "daily 01:00-05:00 UTC"'

_MINUTE = 60_000_000
_MINUTES_OF_DAY = 24 * 60
_WEEK = 7  # days
_FIRST_WEEKDAY = 3  # 1970 began on a Thursday, counted from Monday as 0
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_TIME = r"([0-9]{2}):([0-9]{2})"
_WINDOW = re.compile(rf"(daily|{'|'.join(_WEEKDAYS)}) {_TIME}-{_TIME} UTC")


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a day."""

    weekday: int | None  # 0: Monday, None: every day
    opens: int  # microseconds after midnight
    length: int  # microseconds, at most a day

    def opens_on(self, day: int) -> bool:
        """Whether it opens on a day, counted from 1970."""
        return self.weekday in (None, (day + _FIRST_WEEKDAY) % _WEEK)

    def is_open(self, now: int) -> bool:
        """Whether it is open: it opened today, or yesterday."""
        today = now // DAY
        starts = (day * DAY + self.opens for day in (today - 1, today) if self.opens_on(day))
        return any(start <= now < start + self.length for start in starts)

    def next_opening(self, after: int) -> int:
        """Return when it opens next, later than *after*."""
        today = after // DAY
        starts = (day * DAY + self.opens for day in range(today, today + _WEEK + 1) if self.opens_on(day))
        return next(start for start in starts if start > after)


def parse_window(text: str) -> Window:
    """Read one window.

    Raises:
        ValueError: It has not the form of `FORM`, or is empty.
    """
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError("another form")
    day, *numbers = match.groups()
    opens, closes = (_read_time(*map(int, numbers[at : at + 2])) for at in (0, 2))
    if opens in (closes, _MINUTES_OF_DAY):
        raise ValueError("an empty window")
    length = closes - opens if closes > opens else closes - opens + _MINUTES_OF_DAY
    return Window(None if day == "daily" else _WEEKDAYS.index(day), opens * _MINUTE, length * _MINUTE)


def is_open(windows: Sequence[Window], now: int) -> bool:
    """Whether one of *windows* is open; without any, every moment is good."""
    return not windows or any(window.is_open(now) for window in windows)


def find_opening(windows: Sequence[Window], at: int) -> int:
    """Return the first moment from *at* on at which one is open."""
    return at if is_open(windows, at) else min(window.next_opening(at) for window in windows)


def _read_time(hour: int, minute: int) -> int:
    """Return minutes after midnight; 24:00 is the end of the day."""
    if minute > 59 or hour * 60 + minute > _MINUTES_OF_DAY:
        raise ValueError("no time of a day")
    return hour * 60 + minute
