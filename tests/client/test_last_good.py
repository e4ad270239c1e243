"""The rules of `Cached`, without waiting: what is a change, how old a value is, and when the next question comes."""

from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest

from shardhold import (
    DeadlineError,
    DeniedError,
    Error,
    IdentityUnavailableError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    SealedError,
    Secret,
    UnavailableError,
)
from shardhold._last_good import LastGood, read_clock
from tests.kit.manual_clock import ManualClock
from tests.kit.waiting import wait_until

WRITTEN = datetime(2026, 1, 2, tzinfo=UTC)


def make_secret(
    version: int = 3, *, incarnation: bytes = b"i" * 16, value: bytes = b"one", created_at: datetime = WRITTEN
) -> Secret:
    return Secret("team/app/db", version, incarnation, MappingProxyType({"password": value}), created_at)


def make(
    clock: ManualClock,
    *,
    interval: float = 60.0,
    max_age: float | None = None,
    start_timeout: float = 30.0,
    chance: float = 0.5,
) -> LastGood:
    return LastGood(
        "team/app/db",
        interval=interval,
        max_age=max_age,
        start_timeout=start_timeout,
        now=clock.monotonic,
        chance=lambda: chance,
    )


@pytest.mark.parametrize(
    ("fresh", "is_change"),
    [
        pytest.param(make_secret(), False, id="the same"),
        pytest.param(make_secret(4), True, id="a later version"),
        pytest.param(make_secret(2), True, id="an earlier version: an older store was accepted"),
        pytest.param(make_secret(1, incarnation=b"j" * 16), True, id="deleted and written anew"),
        pytest.param(make_secret(3, incarnation=b"j" * 16), True, id="the same number of another incarnation"),
        pytest.param(make_secret(value=b"two"), True, id="the same number with other fields, after an older store"),
        pytest.param(make_secret(created_at=WRITTEN + timedelta(1)), True, id="the same number, written again"),
    ],
)
def test_change(fresh: Secret, is_change: bool) -> None:
    """Every difference is a change, and the newest answer is the value."""
    last_good = make(ManualClock())
    assert not last_good.take(make_secret(), asked_at=1.0)
    assert last_good.take(fresh, asked_at=2.0) is is_change
    assert last_good.current is fresh


def test_age_counts_from_the_question() -> None:
    """The age begins when the question is sent; a refresh that fails leaves it as it is, a good one begins it anew."""
    clock = ManualClock()
    last_good = make(clock)
    last_good.take(make_secret(), asked_at=clock.monotonic() - 2)
    assert last_good.age == 2
    clock.advance(100)
    last_good.fail(DeniedError("not allowed"))
    assert last_good.age == 102
    last_good.take(make_secret(), asked_at=clock.monotonic())
    assert last_good.age == 0


def test_real_clock_goes_on() -> None:
    """The clock that is used when none is given counts seconds."""
    first = read_clock()
    assert wait_until(lambda: read_clock() > first)


@pytest.mark.parametrize("error", [DeniedError("not allowed"), NotFoundError("no secret"), SealedError("sealed")])
def test_errors_take_nothing_away(error: Error) -> None:
    """The last good value stays, and the error says why it is old, until a refresh succeeds."""
    last_good = make(ManualClock())
    last_good.take(make_secret(), asked_at=1.0)
    last_good.fail(error)
    assert last_good.current == make_secret()
    assert last_good.error is error
    last_good.take(make_secret(), asked_at=2.0)
    assert last_good.error is None


def test_max_age() -> None:
    """Above the age the value is refused, with the reason as cause; a refresh brings it back."""
    clock = ManualClock()
    last_good = make(clock, max_age=90)
    last_good.take(make_secret(), asked_at=clock.monotonic())
    denied = DeniedError("not allowed")
    last_good.fail(denied)
    clock.advance(90)
    assert last_good.current == make_secret()
    clock.advance(1)
    with pytest.raises(UnavailableError, match="was confirmed 91 s ago, max_age is 90 s.*not allowed") as caught:
        _ = last_good.current
    assert caught.value.__cause__ is denied
    last_good.take(make_secret(), asked_at=clock.monotonic())
    assert last_good.current == make_secret()


def test_max_age_without_an_error() -> None:
    """What never refreshes, such as a forked child, has no error and is refused all the same."""
    clock = ManualClock()
    last_good = make(clock, max_age=90)
    last_good.take(make_secret(), asked_at=clock.monotonic())
    clock.advance(91)
    with pytest.raises(UnavailableError, match="max_age is 90 s$"):
        _ = last_good.current


@pytest.mark.parametrize(
    ("failures", "pauses"),
    [
        pytest.param([], [], id="no failure"),
        pytest.param([SealedError("x")] * 8, [1, 2, 4, 8, 16, 32, 60, 60], id="sealed: sooner, up to the interval"),
        pytest.param([DeadlineError("x")] * 2, [1, 2], id="no answer"),
        pytest.param([IdentityUnavailableError("x")] * 2, [1, 2], id="no SVID"),
        pytest.param([DeniedError("x")] * 6, [60, 120, 240, 480, 480, 480], id="denied: up to eight intervals"),
        pytest.param([NotFoundError("x")] * 2, [60, 120], id="deleted"),
        pytest.param([RuntimeError("x")] * 2, [60, 120], id="a bug"),
    ],
)
def test_pauses(failures: list[Exception], pauses: list[float]) -> None:
    """How long the pause after each failure is at most, and that a refresh ends it."""
    last_good = make(ManualClock(), chance=1.0)
    last_good.take(make_secret(), asked_at=1.0)
    chosen = []
    for failure in failures:
        last_good.fail(failure)
        chosen.append(last_good.choose_pause())
    assert chosen == pauses
    last_good.take(make_secret(), asked_at=2.0)
    assert last_good.choose_pause() == 60
    last_good.fail(SealedError("the next outage"))
    assert last_good.choose_pause() == 1


def test_a_long_outage() -> None:
    """After however many failures the pause is the interval."""
    last_good = make(ManualClock(), chance=1.0, interval=24 * 3600)
    last_good.take(make_secret(), asked_at=1.0)
    for _ in range(2000):
        last_good.fail(SealedError("sealed"))
    assert last_good.choose_pause() == 24 * 3600


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 45.0), (0.5, 52.5), (1.0, 60.0)])
def test_pauses_are_spread(chance: float, pause: float) -> None:
    """Chance takes up to a quarter of the interval off."""
    last_good = make(ManualClock(), chance=chance)
    last_good.take(make_secret(), asked_at=1.0)
    assert last_good.choose_pause() == pause


@pytest.mark.parametrize(
    ("left", "pause"),
    [
        pytest.param(30.0, 1.0, id="much time left"),
        pytest.param(1.5, 0.75, id="half of what is left"),
        pytest.param(0.9, None, id="less than a second left"),
    ],
)
def test_start_pauses(left: float, pause: float | None) -> None:
    """A start tries again after an outage as long as there is time; then the error is raised."""
    last_good, error = make(ManualClock(), chance=1.0), SealedError("sealed")
    if pause is None:
        with pytest.raises(SealedError):
            last_good.choose_start_pause(error, left=left)
    else:
        assert last_good.choose_start_pause(error, left=left) == pause


def test_start_gives_up_on_refusals() -> None:
    """What time does not change ends a start at once."""
    with pytest.raises(DeniedError):
        make(ManualClock()).choose_start_pause(DeniedError("not allowed"), left=30.0)


def test_an_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line when it begins, one when the reason changes, one when it is over."""
    caplog.set_level("INFO")
    last_good = make(ManualClock())
    last_good.take(make_secret(), asked_at=1.0)
    for error in (SealedError("sealed"), SealedError("sealed"), DeniedError("not allowed")):
        last_good.fail(error)
    last_good.take(make_secret(), asked_at=1.0)
    last_good.take(make_secret(), asked_at=1.0)
    assert [record.getMessage() for record in caplog.records] == [
        "team/app/db: not refreshed, the last value stays: sealed",
        "team/app/db: not refreshed, the last value stays: not allowed",
        "team/app/db: refreshed again",
    ]


def test_a_bug_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    """What is no error of the SDK is logged with its traceback, and readers get an error of the SDK."""
    last_good = make(ManualClock())
    last_good.take(make_secret(), asked_at=1.0)
    last_good.fail(RuntimeError("no new thread"))
    assert isinstance(last_good.error, InternalError)
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        pytest.param({"interval": 0.05}, "interval: got 0.05", id="busy polling"),
        pytest.param({"interval": float("nan")}, "interval: got nan", id="no number"),
        pytest.param({"interval": 90_000}, "interval: got 90000", id="more than a day"),
        pytest.param({"max_age": 60}, "max_age: got 60, want more seconds than the interval, 60", id="never fresh"),
        pytest.param({"max_age": float("nan")}, "max_age: got nan", id="no age"),
        pytest.param({"start_timeout": 0}, "start_timeout: got 0", id="no time to start"),
    ],
)
def test_unusable_numbers(numbers: dict[str, float], said: str) -> None:
    """A number of seconds that makes no sense is refused, and named."""
    with pytest.raises(InvalidArgumentError, match=said):
        make(ManualClock(), **numbers)


def test_nothing_yet() -> None:
    """Without a first value there is nothing to give out."""
    with pytest.raises(RuntimeError, match="not started"):
        _ = make(ManualClock()).current
