"""When requests are forgotten: after a day, and never early because of a clock that was set."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from common.clock import to_micros
from nexus.store.requests import BATCH, KEPT_S, LOOK_S, MOST_BATCHES, SETTLED_S, RequestRetention
from nexus.store.sqlite.store import SqliteStore
from tests.kit.manual_clock import ManualClock
from tests.nexus.store.contract import CALLER, make_request, request, save

DAY_S = 24 * 3600.0
DAY = timedelta(days=1)
YEAR = timedelta(days=365)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An empty store."""
    with closing(SqliteStore.open(tmp_path / "nexus.db")) as store:
        yield store


@pytest.fixture
def clock() -> ManualClock:
    """A clock that the test turns."""
    return ManualClock()


def make(store: SqliteStore, clock: ManualClock, *numbers: int) -> None:
    """Save requests that are made now."""
    made_at = to_micros(clock.now())
    save(store, *(make_request(number, made_at=made_at) for number in numbers))


def list_left(store: SqliteStore, count: int) -> list[int]:
    """List which of the requests 1 to *count* are still found."""
    with store.read() as reader:
        return [number for number in range(1, count + 1) if reader.find_request(CALLER, request(number))]


def pass_time(clock: ManualClock, retention: RequestRetention, seconds: float) -> None:
    """Let time pass, as it does for a process that looks now and then."""
    for _ in range(24):
        clock.advance(seconds / 24)
        retention.look()


def test_a_request_is_kept_for_a_day_and_then_forgotten(store: SqliteStore, clock: ManualClock) -> None:
    """After 24 hours it is still found; soon afterwards it is not, while a younger one is."""
    retention = RequestRetention(store, clock)
    make(store, clock, 1)
    pass_time(clock, retention, DAY_S)
    make(store, clock, 2)
    assert list_left(store, 2) == [1, 2]
    pass_time(clock, retention, KEPT_S - DAY_S + LOOK_S + 1)
    assert list_left(store, 2) == [2]


def test_nothing_is_forgotten_in_the_first_hour(store: SqliteStore, clock: ManualClock) -> None:
    """A process that has just started does not know whether its clock was set while none ran."""
    make(store, clock, 1)
    clock.advance(365 * DAY_S)
    retention = RequestRetention(store, clock)
    pass_time(clock, retention, SETTLED_S - 1)
    assert list_left(store, 1) == [1]
    pass_time(clock, retention, LOOK_S)
    assert list_left(store, 1) == []


@pytest.mark.parametrize(
    "jump", [pytest.param(YEAR, id="ahead"), pytest.param(2 * DAY, id="by days"), pytest.param(-YEAR, id="behind")]
)
def test_a_clock_that_is_set_forgets_nothing_early_and_nothing_for_ever(
    store: SqliteStore, clock: ManualClock, jump: timedelta
) -> None:
    """A request from just before a jump is kept for a day of true time, and those after it are then forgotten too."""
    retention = RequestRetention(store, clock)
    pass_time(clock, retention, 2 * SETTLED_S)
    make(store, clock, 1)
    clock.offset = jump
    retention.look()
    make(store, clock, 2)
    pass_time(clock, retention, DAY_S)
    assert list_left(store, 2) == [1, 2]
    pass_time(clock, retention, KEPT_S - DAY_S + LOOK_S + 1)
    assert list_left(store, 2) == []


def test_a_jump_is_noticed_before_anything_is_forgotten_by_it(store: SqliteStore, clock: ManualClock) -> None:
    """The first look after a jump forgets nothing, however late it comes."""
    retention = RequestRetention(store, clock)
    clock.advance(2 * SETTLED_S)
    make(store, clock, 1)
    clock.advance(SETTLED_S)
    clock.offset = YEAR
    retention.look()
    assert list_left(store, 1) == [1]


def test_many_are_forgotten_in_small_commits(store: SqliteStore, clock: ManualClock) -> None:
    """One look removes a bounded number of them; the next goes on at once."""
    retention = RequestRetention(store, clock)
    count = BATCH * MOST_BATCHES + 1
    make(store, clock, *range(1, count + 1))
    clock.advance(KEPT_S + 1)
    retention.look()
    assert list_left(store, count) == [count]
    clock.advance(1)
    retention.look()
    assert list_left(store, count) == []
