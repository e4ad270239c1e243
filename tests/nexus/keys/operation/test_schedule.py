"""What is due, when the next operation begins, and what is told ahead, by case and by property."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.keys import records
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.record import Depth, Step
from nexus.keys.operation.schedule import (
    MAX_WRAPS,
    Scheduled,
    Seen,
    Subject,
    Terms,
    find_due,
    find_next,
    find_notices,
    find_overdue,
    note_people,
)
from nexus.keys.operation.settings import SETTINGS, Hold, pause
from nexus.keys.operation.windows import parse_window
from tests.nexus.keys.operation.made import (
    DAY,
    NOW,
    bring_to,
    damage,
    distribute,
    do,
    edit_row,
    flip,
    make_facts,
    prepare,
)

YEARLY = Terms()
BOTH = Terms(reshare_interval=30 * DAY)
BY_HAND = Terms(interval=0)
NIGHTS = Terms(windows=(parse_window("daily 01:00-05:00 UTC"),))
NEVER = None  # as an age: it is not known


def make(
    key_days: float | None = 10, set_days: float | None = 10, *, kek_days: float | None = None, people: float = -1
) -> Facts:
    """A cluster whose key, set and KEK are so many days old at NOW; custodians had the key *people* days ago."""
    facts = make_facts()
    generation = msgspec.structs.replace(
        facts.generations[1],
        created_at=0,
        activated_at=0 if key_days is None else int(NOW - key_days * DAY),
        people_had_it_at=0 if people < 0 else int(NOW - people * DAY),
    )
    facts = edit_row(facts, (records.GENERATION, "1"), generation)
    drawn_at = 0 if set_days is None else int(NOW - set_days * DAY)
    facts = edit_row(facts, (records.SHARD_SET, "1"), msgspec.structs.replace(facts.current_set, drawn_at=drawn_at))
    made_at = 0 if kek_days is None else int(NOW - kek_days * DAY)
    kek = msgspec.structs.replace(facts.keyring.keks["2"], made_at=made_at)
    return edit_row(facts, (records.KEYRING, "1"), records.KeyringRecord({"2": kek}))


def list_due(facts: Facts, terms: Terms = YEARLY, now: int = NOW, seen: Seen = Seen()) -> str:  # noqa: B008 — frozen
    return " ".join(due.depth for due in find_due(facts, terms, now, seen))


def list_notices(facts: Facts, terms: Terms = YEARLY, now: int = NOW) -> list[tuple[Subject, int]]:
    return [(notice.subject, notice.days) for notice in find_notices(facts, terms, now)]


@pytest.mark.parametrize(
    ("facts", "terms", "expected"),
    [
        pytest.param(make(364.9), YEARLY, "", id="not quite"),
        pytest.param(make(365), YEARLY, "rotate", id="as old as its interval"),
        pytest.param(make(365), BY_HAND, "", id="by hand only"),
        pytest.param(make(365), replace(YEARLY, is_enabled=False), "", id="off"),
        pytest.param(make(NEVER), YEARLY, "", id="of unknown age: it may be inside the minimum age"),
        pytest.param(make(-3650), YEARLY, "", id="of the future"),
        pytest.param(make(40), replace(YEARLY, interval=20 * DAY, minimum_age=50 * DAY), "", id="minimum age is above"),
        pytest.param(make(10, 30), YEARLY, "", id="no reshare unless it is wanted"),
        pytest.param(make(10, 29.9), BOTH, "", id="a set that is young"),
        pytest.param(make(10, 30), BOTH, "reshare", id="a set that is old"),
        pytest.param(make(29, NEVER), BOTH, "", id="a set of unknown age is as old as its key"),
        pytest.param(make(30, NEVER), BOTH, "reshare", id="a set of unknown age, and a key that is old"),
        pytest.param(make(NEVER, NEVER), BOTH, "reshare", id="a set and a key of unknown age"),
        pytest.param(make(365, 30), BOTH, "rotate reshare", id="both: if the first is refused, the other begins"),
        pytest.param(make(365, 30), replace(BOTH, interval=0), "reshare", id="a reshare by itself, a rotation by hand"),
        pytest.param(make(40, people=0.9), YEARLY, "", id="custodians had it today"),
        pytest.param(make(40, people=1), YEARLY, "rotate", id="custodians had it yesterday"),
        pytest.param(make(29, people=5), YEARLY, "", id="custodians had it, inside the minimum age"),
        pytest.param(make(40, people=5), BY_HAND, "", id="custodians had it, and rotation is by hand"),
    ],
)
def test_what_the_schedule_begins(facts: Facts, terms: Terms, expected: str) -> None:
    """Rules 1 and 2."""
    assert list_due(facts, terms) == expected


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(bring_to(Step.PREPARED), id="prepared"),
        pytest.param(bring_to(Step.DISTRIBUTED), id="distributed"),
        pytest.param(bring_to(Step.FLIPPED), id="flipped"),
        pytest.param(damage(bring_to(Step.PREPARED), records.OPERATION), id="an operation that cannot be read"),
        pytest.param(damage(bring_to(Step.FLIPPED), records.OPERATION), id="one that is flipped, and cannot be read"),
        pytest.param(make_facts(sealed=True), id="sealed"),
        pytest.param(do(make_facts(), pause(make_facts(), Hold("freeze", "eve", NOW))), id="on hold"),
        pytest.param(damage(do(make_facts(), pause(make_facts(), Hold("x", "eve", 1))), SETTINGS), id="maybe on hold"),
    ],
)
def test_nothing_begins_while_something_stands_in_the_way(facts: Facts) -> None:
    """Rule 3: after so long everything would be due."""
    later = NOW + 4000 * DAY
    assert "reshare" in find_overdue(facts, BOTH, later)
    assert list_due(facts, BOTH, later) == ""


def test_nothing_begins_outside_its_windows() -> None:
    """Nor does the moment pass: it begins when the next one opens."""
    midnight = NOW - NOW % DAY
    facts = make(400)
    assert list_due(facts, NIGHTS, midnight) == ""
    assert find_next(facts, NIGHTS, midnight) == Scheduled(Depth.ROTATE, midnight + DAY // 24)
    assert list_due(facts, NIGHTS, midnight + DAY // 24) == "rotate"


@pytest.mark.parametrize(
    ("facts", "terms", "days"),
    [
        pytest.param(make(10), YEARLY, {Depth.ROTATE: 355}, id="the key"),
        pytest.param(make(10, 5), BOTH, {Depth.RESHARE: 25}, id="the set is sooner"),
        pytest.param(make(360, 0), BOTH, {Depth.ROTATE: 5}, id="the key is sooner"),
        pytest.param(make(400, 99), BOTH, {Depth.ROTATE: 0}, id="both are due"),
        pytest.param(make(10, people=0), YEARLY, {Depth.ROTATE: 20}, id="custodians had it: after the minimum age"),
        pytest.param(make(100, people=0), YEARLY, {Depth.ROTATE: 1}, id="custodians had it: a day after"),
        pytest.param(make(10), BY_HAND, {}, id="by hand only"),
        pytest.param(make(10), replace(YEARLY, is_enabled=False), {}, id="off"),
        pytest.param(make(NEVER), YEARLY, {}, id="of unknown age"),
    ],
)
def test_when_the_next_begins(facts: Facts, terms: Terms, days: dict[Depth, int]) -> None:
    """The sooner one, if it begins by itself at all."""
    expected = [Scheduled(depth, NOW + count * DAY) for depth, count in days.items()]
    assert find_next(facts, terms, NOW) == (expected[0] if expected else None)


def test_nothing_is_next_on_hold() -> None:
    """Until somebody ends it."""
    facts = make(10)
    assert find_next(do(facts, pause(facts, Hold("freeze", "eve", NOW))), YEARLY, NOW) is None


@pytest.mark.parametrize(
    ("facts", "terms", "expected"),
    [
        pytest.param(make(334), YEARLY, [], id="31 days ahead"),
        pytest.param(make(335), YEARLY, [(Subject.KEY_AGE, 30)], id="30 days ahead"),
        pytest.param(make(357), YEARLY, [(Subject.KEY_AGE, 30)], id="8 days ahead"),
        pytest.param(make(358), YEARLY, [(Subject.KEY_AGE, 7)], id="7 days ahead"),
        pytest.param(make(364), YEARLY, [(Subject.KEY_AGE, 1)], id="a day ahead"),
        pytest.param(make(365), YEARLY, [(Subject.KEY_AGE, 0)], id="due"),
        pytest.param(make(365), replace(YEARLY, is_enabled=False), [(Subject.KEY_AGE, 0)], id="due, off"),
        pytest.param(make(365), BY_HAND, [], id="by hand only"),
        pytest.param(make(0), replace(YEARLY, interval=30 * DAY), [], id="nothing is told of a new key"),
        pytest.param(make(0), replace(YEARLY, interval=DAY, minimum_age=0), [], id="nor of one that is short-lived"),
        pytest.param(make(NEVER), YEARLY, [(Subject.KEY_AGE_UNKNOWN, 0)], id="of unknown age"),
        pytest.param(make(-0.9), YEARLY, [], id="the clock is hours behind"),
        pytest.param(make(-1), YEARLY, [(Subject.KEY_FROM_FUTURE, 0)], id="of the future"),
        pytest.param(make(10, people=0), YEARLY, [(Subject.PEOPLE, 0)], id="custodians had it"),
        pytest.param(make(10, people=0), BY_HAND, [(Subject.PEOPLE, 0)], id="custodians had it, by hand"),
        pytest.param(make(366, kek_days=366), YEARLY, [(Subject.KEY_AGE, 0)], id="one notice for key and KEK"),
        pytest.param(make(10, kek_days=364), YEARLY, [(Subject.KEK_AGE, 1)], id="a KEK that is older than its key"),
    ],
)
def test_what_is_told(facts: Facts, terms: Terms, expected: list[tuple[Subject, int]]) -> None:
    """Rule 5."""
    assert list_notices(facts, terms) == expected


def test_a_kek_with_too_many_wraps_is_told() -> None:
    """Every version that was ever written took a revision, so there are no more wraps than that."""
    for revision, expected in ((MAX_WRAPS - 1, []), (MAX_WRAPS, [(Subject.KEK_WRAPS, 0)])):
        facts = make(10)
        assert list_notices(replace(facts, meta=replace(facts.meta, revision=revision))) == expected


def test_notices_name_the_key_and_its_days() -> None:
    """Somebody who reads one knows what to do."""
    facts = make(366, people=2)
    assert [notice.text for notice in find_notices(facts, YEARLY, NOW)] == [
        "root key 1 is 366 days old, its interval is 365 days",
        "custodians brought root key 1 back: replace it soon",
    ]
    (due,) = find_due(facts, YEARLY, NOW)
    assert due.why == "scheduled: the root key is 366 days old, and custodians had it"


def test_an_unseal_is_remembered_until_the_key_is_replaced() -> None:
    """With the generation, so that history tells it; the next one knows nothing of it."""
    facts = make(40)
    facts = read_facts(facts.meta, {**facts.bodies, **note_people(facts, at=NOW)})
    assert list_notices(facts) == [(Subject.PEOPLE, 0)]
    assert find_next(facts, YEARLY, NOW) == Scheduled(Depth.ROTATE, NOW + DAY)
    flipped = flip(distribute(prepare(facts)))
    assert (list_notices(flipped), flipped.generations[1].people_had_it_at) == ([], NOW)
    assert note_people(damage(facts, (records.GENERATION, "1")), at=NOW) == {}


@pytest.mark.parametrize(
    ("facts", "seen", "expected"),
    [
        pytest.param(make(400, 400), Seen(key=0, shard_set=0), "", id="everything began just now"),
        pytest.param(make(400, 400), Seen(key=182 * DAY, shard_set=20 * DAY), "reshare", id="not half an interval"),
        pytest.param(make(400, 400), Seen(key=183 * DAY, shard_set=20 * DAY), "rotate reshare", id="half an interval"),
        pytest.param(make(400, 400), Seen(shard_set=DAY - 1), "", id="a new set today"),
        pytest.param(make(400, 400), Seen(shard_set=DAY), "rotate", id="a new set yesterday"),
        pytest.param(make(400, 400, people=2), Seen(29 * DAY, 5 * DAY), "", id="custodians had a key that is young"),
        pytest.param(make(400, 400, people=2), Seen(30 * DAY, 5 * DAY), "rotate", id="custodians had one since"),
    ],
)
def test_what_a_process_saw_begin_is_not_older(facts: Facts, seen: Seen, expected: str) -> None:
    """Rule 4: whatever the wall time says."""
    assert list_due(facts, BOTH, NOW, seen) == expected


TERMS = st.builds(
    Terms,
    interval=st.integers(0, 800 * DAY),
    minimum_age=st.integers(0, 100 * DAY),
    reshare_interval=st.integers(0, 100 * DAY),
)
AGES = st.none() | st.floats(-3000, 999)  # NOW is day 1000


@given(TERMS, AGES, AGES, st.floats(-1, 999), st.integers(0, 3000 * DAY))
def test_no_rotation_begins_inside_the_minimum_age(
    terms: Terms, key_days: Any, set_days: Any, people: float, now: int
) -> None:
    """Whatever the clock says, and whoever had the key; nor does one without an interval."""
    facts = make(key_days, set_days, people=people)
    if Depth.ROTATE in find_overdue(facts, terms, now):
        assert terms.interval
        assert facts.generations[1].activated_at
        assert now - facts.generations[1].activated_at >= terms.minimum_age


@given(TERMS, AGES, AGES, st.floats(-1, 999), st.integers(1, 3000 * DAY))
def test_what_is_next_is_what_begins_then(terms: Terms, key_days: Any, set_days: Any, people: float, now: int) -> None:
    """And nothing is due before."""
    facts = make(key_days, set_days, people=people)
    scheduled = find_next(facts, terms, now)
    if scheduled is None:
        assert not find_due(facts, terms, now)
    else:
        assert scheduled.depth in [due.depth for due in find_due(facts, terms, scheduled.at)]
        assert bool(find_due(facts, terms, now)) is (scheduled.at == now)
