"""What both kinds of `Cached` share: the last good value of a secret, its age, and when to ask for it again. Rules:

1. A refresh that fails takes nothing away: the last good value stays, `error` says why it is not renewed, and its age
   grows. That goes for an outage as well as for a denial or a deletion.
2. The age counts from the moment at which the question was sent, also while the machine is suspended. Above *max_age*
   the value is no longer given out.
3. What the nexus answers counts, even if its version is lower than before: then an older store was accepted. After that
   the same version number may come with other fields, so a change is any difference in incarnation, version, time of
   writing or fields.
4. The next question comes after three quarters of the interval up to all of it, by chance, so that processes that were
   started together drift apart. After an outage it comes sooner, after a second, two, four and so on up to the
   interval; after a refusal, which time alone does not change, later: up to eight intervals.

Nothing here waits. `Cached` and `AsyncCached` differ only in how they wait and call.
"""

import logging
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shardhold._errors import (
    DeadlineError,
    Error,
    IdentityUnavailableError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from shardhold._results import Secret

INTERVAL_S: Final = 60.0
START_TIMEOUT_S: Final = 30.0

_SHORTEST_INTERVAL_S, _A_DAY_S = 0.1, 24 * 3600.0
_FIRST_PAUSE_S = 1.0  # after the first failure of an outage
_MOST_INTERVALS = 8  # that a refusal puts the next question off
_MOST_DOUBLINGS = 17  # of a second: more than a day
_MAY_PASS = (UnavailableError, DeadlineError, IdentityUnavailableError)
_CHANCE = random.SystemRandom()

_logger = logging.getLogger(__name__)


def read_clock() -> float:
    """Return seconds that go on while the machine is suspended, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


@dataclass(frozen=True, slots=True)
class _Held:
    """The last good value, and when it was asked for."""

    secret: Secret
    asked_at: float


class LastGood:
    """The last good value of the secret at *path*. One thread may change it while others read.

    Raises:
        InvalidArgumentError: A number of seconds is not usable.
    """

    def __init__(
        self,
        path: str,
        *,
        interval: float,
        max_age: float | None,
        start_timeout: float,
        now: Callable[[], float] = read_clock,
        chance: Callable[[], float] = _CHANCE.random,
    ) -> None:
        if not _SHORTEST_INTERVAL_S <= interval <= _A_DAY_S:
            raise InvalidArgumentError(
                f"interval: got {interval!r}, want seconds from {_SHORTEST_INTERVAL_S:g} to a day"
            )
        if max_age is not None and not max_age > interval:
            raise InvalidArgumentError(f"max_age: got {max_age!r}, want more seconds than the interval, {interval:g}")
        if not 0 < start_timeout <= _A_DAY_S:
            raise InvalidArgumentError(f"start_timeout: got {start_timeout!r}, want seconds above 0 and at most a day")
        self.path = path
        self.start_timeout = start_timeout
        self.error: Error | None = None
        self._interval = interval
        self._max_age = max_age
        self._now = now
        self._chance = chance
        self._held: _Held | None = None
        self._failures = 0  # since the last good answer

    @property
    def current(self) -> Secret:
        """The last good value.

        Raises:
            UnavailableError: It is older than *max_age*; the cause is what the last refresh met.
        """
        age = self.age
        if self._max_age is not None and age > self._max_age:
            error = self.error
            raise UnavailableError(
                f"{self.path}: the value was confirmed {age:.0f} s ago, max_age is {self._max_age:g} s",
                hint="" if error is None else str(error),
            ) from error
        return self._get_held().secret

    @property
    def age(self) -> float:
        """Seconds since the value was asked for that is current."""
        return self._now() - self._get_held().asked_at

    def take(self, secret: Secret, *, asked_at: float) -> bool:
        """Make *secret* the last good value; return whether it replaced another one."""
        before = self._held
        if self.error is not None:
            _logger.info("%s: refreshed again", self.path)
        self._held = _Held(secret, asked_at)
        self.error = None
        self._failures = 0
        return before is not None and _differs(before.secret, secret)

    def fail(self, error: Exception) -> None:
        """Note that a refresh failed; one outage is logged once."""
        if not isinstance(error, Error):
            _logger.error("%s: a refresh failed unexpectedly", self.path, exc_info=error)
            error = InternalError(f"the refresh failed with {type(error).__name__}")
        if type(error) is not type(self.error):
            why = str(error).removeprefix(f"{self.path}: ")  # which some name, and others do not
            _logger.warning("%s: not refreshed, the last value stays: %s", self.path, why)
        self.error = error
        self._failures += 1

    def choose_pause(self) -> float:
        """Return the seconds until the next question, by rule 4."""
        if self.error is None:
            longest = self._interval
        elif isinstance(self.error, _MAY_PASS):
            longest = self._pause_in_outage()
        else:
            longest = min(self._interval * self._doubled(), self._interval * _MOST_INTERVALS)
        return self._shorten(longest)

    def choose_start_pause(self, error: Error, *, left: float) -> float:
        """Return the seconds until the next try for a first value, *left* seconds before the end of the start.

        Raises:
            Error: It is *error*, which time does not change, or has hardly any left to change.
        """
        if not isinstance(error, _MAY_PASS) or left < _FIRST_PAUSE_S:
            raise error
        self._failures += 1
        return min(self._shorten(self._pause_in_outage()), left / 2)

    def _pause_in_outage(self) -> float:
        return min(_FIRST_PAUSE_S * self._doubled(), self._interval)

    def _doubled(self) -> float:
        """Return 1 after the first failure, 2 after the second, 4 after the third and so on."""
        return math.ldexp(1.0, min(self._failures - 1, _MOST_DOUBLINGS))

    def _shorten(self, pause: float) -> float:
        return pause * (0.75 + self._chance() / 4)

    def _get_held(self) -> _Held:
        if self._held is None:
            raise RuntimeError("not started: there is no value yet")
        return self._held


class Start:
    """The time within which the first value has to come, from now on."""

    def __init__(self, last_good: LastGood) -> None:
        self._last_good = last_good
        self._end = time.monotonic() + last_good.start_timeout

    def left(self) -> float:
        """Return the seconds that the next try may take, always above 0."""
        return max(self._end - time.monotonic(), 0.001)

    def choose_pause(self, error: Error) -> float:
        """Return the seconds until the next try after *error*, or raise it."""
        return self._last_good.choose_start_pause(error, left=self.left())


def _differs(one: Secret, other: Secret) -> bool:  # rule 3
    return (one.incarnation, one.version, one.created_at, one.fields) != (
        other.incarnation,
        other.version,
        other.created_at,
        other.fields,
    )
