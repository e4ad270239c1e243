"""The schedule: begins what is due once, tells it once, and shows why it could not."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from common.clock import to_micros
from common.errors import OperationRefusedError, OutcomeUnknownError, ShardholdError, StoreUnavailableError
from nexus.admin.operations.schedule import CHANGED_S, RETRY_S, Schedule, ScheduleView
from nexus.keys import records
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.record import Depth, Numbers
from nexus.keys.operation.schedule import Scheduled, Terms
from nexus.keys.operation.settings import Hold, pause, resume
from tests.kit.manual_clock import ManualClock
from tests.nexus.keys.operation.made import DAY, do, edit_row, first_bodies, make_meta, make_set, token

DAY_S = 86_400.0
BOTH = Terms(reshare_interval=30 * DAY)
REFUSED = OperationRefusedError("keepers: 3 of 5 reachable, want 4", reason="KEEPERS_SHORT")


class World:
    """A cluster of tokens whose operations end at once, and a schedule that looks at it."""

    def __init__(self, terms: Terms = BOTH, *, key_days: float = 0, set_days: float = 0) -> None:
        self.clock = ManualClock()
        self.facts = self._make(Numbers(1, 1, 2), key_days, set_days)
        self.error: ShardholdError | None = None
        self.takes_back = False  # operations begin, and are taken back
        self.begun: list[tuple[Depth, str]] = []
        self.tries = 0
        self.notes: list[tuple[str, str, str]] = []
        self.schedule = self.make_schedule(terms)

    def make_schedule(self, terms: Terms) -> Schedule:
        """Make the schedule of a new process."""
        return Schedule(terms=terms, clock=self.clock, begin=self._begin, note=lambda *note: self.notes.append(note))

    def look(self, *, days: float = 0.0) -> list[Depth]:
        """Let real time pass, and look; return the operations that begin."""
        self.clock.advance(days * DAY_S)
        before = len(self.begun)
        self.schedule.look(self.facts)
        return [depth for depth, _ in self.begun[before:]]

    def change_rows(self) -> None:
        """Let somebody change a control row."""
        meta = self.facts.meta
        self.facts = replace(self.facts, meta=replace(meta, control_revision=meta.control_revision + 1))

    def _begin(self, depth: Depth, why: str) -> None:
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.begun.append((depth, why))
        self.change_rows()
        if not self.takes_back:
            now, step = self.facts.current, 1 if depth is Depth.ROTATE else 0
            target = Numbers(now.generation + step, now.set_number + 1, now.kek_id + step)
            age = 0.0 if depth is Depth.ROTATE else (self._now - self.facts.generations[now.generation].activated_at)
            self.facts = self._make(target, age / DAY, 0)

    @property
    def _now(self) -> int:
        return to_micros(self.clock.now())

    def _make(self, numbers: Numbers, key_days: float, set_days: float) -> Facts:
        """A cluster in which *numbers* are current, and so many days old."""
        bodies = first_bodies(token("root", numbers.generation), token("kek", numbers.kek_id))
        generation = str(numbers.generation)
        shard_set = msgspec.structs.replace(
            make_set(numbers, state=records.SetState.CURRENT), drawn_at=int(self._now - set_days * DAY)
        )
        kept = {key: body for key, body in bodies.items() if key[0] not in (records.SHARD_SET, records.GENERATION)}
        keyring = kept.pop((records.KEYRING, "1"))
        facts = read_facts(
            make_meta(generation=numbers.generation),
            kept
            | {
                (records.SHARD_SET, str(numbers.set_number)): records.encode(shard_set),
                (records.KEYRING, generation): keyring,
            },
        )
        record = records.GenerationRecord(
            records.GenerationState.ACTIVE, bytes(32), activated_at=int(self._now - key_days * DAY)
        )
        return edit_row(facts, (records.GENERATION, generation), record)


def test_what_is_due_begins_once() -> None:
    """Then the key is new, and nothing is due until it is as old again."""
    world = World(key_days=364)
    assert world.look() == []
    tomorrow = to_micros(world.clock.now()) + DAY
    assert world.schedule.view.next == Scheduled(Depth.ROTATE, tomorrow)
    assert world.look(days=1) == [Depth.ROTATE]
    assert world.begun[0][1] == "scheduled: the root key is 365 days old"
    assert [world.look(days=1) for _ in range(29)] == [[]] * 29
    assert world.look(days=1) == [Depth.RESHARE]
    assert world.schedule.list_alarms() == []


def test_only_one_operation_begins_at_a_look() -> None:
    """A rotation draws a new set as well."""
    world = World(key_days=400, set_days=400)
    assert world.look() == [Depth.ROTATE]
    assert world.look() == []


@pytest.mark.parametrize("terms", [replace(BOTH, is_enabled=False), replace(BOTH, interval=0, reshare_interval=0)])
def test_a_schedule_that_is_off_begins_nothing(terms: Terms) -> None:
    """Neither does one without intervals."""
    world = World(terms, key_days=4000, set_days=4000)
    assert world.look() == []
    assert world.schedule.view.next is None


def test_a_hold_keeps_everything_until_it_ends() -> None:
    """What is due is told all the same; why it is on hold is for people only."""
    world = World(key_days=400)
    paused = do(world.facts, pause(world.facts, Hold("freeze", "eve", 1)))
    world.schedule.look(paused)
    assert (world.tries, world.schedule.view.hold, world.schedule.view.next) == (0, "freeze (eve)", None)
    assert world.schedule.list_alarms() == [
        "rotation due: root key 1 is 400 days old, its interval is 365 days",
        "rotation is paused",
    ]
    world.facts = do(paused, resume(paused))
    assert world.look() == [Depth.ROTATE]


def test_a_refusal_is_logged_once_and_stays_an_alarm() -> None:
    """However often it is tried, until it begins."""
    world = World(key_days=400)
    world.error = REFUSED
    with capture_logs() as logs:
        for _ in range(5):
            world.look(days=0.5)
        world.error = OperationRefusedError("backup: none", reason="BACKUP_OLD")
        world.look(days=0.5)
    assert world.tries == 6
    assert [line["reason"] for line in logs if "refused" in line["event"]] == ["KEEPERS_SHORT", "BACKUP_OLD"]
    assert "scheduled rotate refused: backup: none" in world.schedule.list_alarms()
    world.error = None
    assert world.look(days=0.5) == [Depth.ROTATE]
    assert world.schedule.list_alarms() == ["rotation due: root key 1 is 403 days old, its interval is 365 days"]
    assert world.look() == []
    assert world.schedule.list_alarms() == []


def test_a_refusal_is_forgotten_when_it_is_due_no_more() -> None:
    """Somebody rotated by hand."""
    world = World(key_days=400)
    world.error = REFUSED
    world.look()
    assert len(world.schedule.list_alarms()) == 2
    world.facts = World(key_days=0).facts
    world.look()
    assert world.schedule.list_alarms() == []


def test_what_is_refused_is_tried_again_after_an_hour_or_a_change() -> None:
    """Each try asks the keepers, so rows that change all the time do not make it more than one a minute."""
    world = World(key_days=400)
    world.error = REFUSED
    looks: Sequence[tuple[float, bool, int]] = [
        (0, False, 1),
        (RETRY_S - 1, False, 1),
        (1, False, 2),
        (1, True, 2),
        (CHANGED_S - 2, True, 2),
        (1, False, 3),
        (CHANGED_S, False, 3),
        (CHANGED_S, True, 4),
    ]
    for seconds, changes, tries in looks:
        if changes:
            world.change_rows()
        world.look(days=seconds / DAY_S)
        assert world.tries == tries


def test_what_is_begun_and_taken_back_is_begun_again_after_an_hour() -> None:
    """Although rows have changed: each one uses up numbers of sets."""
    world = World(key_days=400)
    world.takes_back = True
    assert world.look() == [Depth.ROTATE]
    assert world.look(days=(RETRY_S - 1) / DAY_S) == []
    assert world.look(days=1 / DAY_S) == [Depth.ROTATE]


@pytest.mark.parametrize("error", [REFUSED, StoreUnavailableError("busy")])
def test_a_refused_rotation_does_not_hold_up_a_reshare(error: ShardholdError) -> None:
    """It may be refused for as long as there is no backup."""
    world = World(key_days=400, set_days=31)
    tried: list[Depth] = []

    def begin(depth: Depth, _: str) -> None:
        tried.append(depth)
        if depth is Depth.ROTATE:
            raise error

    Schedule(terms=BOTH, clock=world.clock, begin=begin, note=lambda *_: None).look(world.facts)
    assert tried == [Depth.ROTATE, Depth.RESHARE]


def test_an_unknown_outcome_comes_out() -> None:
    """The process has to end then."""
    world = World(key_days=400)
    world.error = OutcomeUnknownError("the disk is gone")
    with pytest.raises(OutcomeUnknownError):
        world.look()


def test_each_notice_is_logged_and_noted_once() -> None:
    """30, 7 and 1 days ahead, and when it is due; another one anew."""
    world = World(Terms(is_enabled=False), key_days=300)
    with capture_logs() as logs:
        for _ in range(70):
            world.look(days=1)
    assert [line.get("days") for line in logs] == [30, 7, 1, None]
    assert [detail.partition(":")[0] for _, _, detail in world.notes[:3]] == [
        "within 30 days",
        "within 7 days",
        "within 1 day",
    ]
    assert world.notes[3] == ("rotation.due", "", "root key 1 is 365 days old, its interval is 365 days")
    assert len(world.notes) == 4
    unsealed = msgspec.structs.replace(world.facts.generations[1], people_had_it_at=1)
    world.facts = edit_row(world.facts, (records.GENERATION, "1"), unsealed)
    world.look()
    world.schedule.forget()
    world.look()
    assert [detail for _, _, detail in world.notes[4:]] == ["custodians brought root key 1 back: replace it soon"]


def test_nothing_is_shown_while_the_nexus_is_not_ready() -> None:
    """Its rows may be others when it is again."""
    world = World(key_days=400)
    world.error = REFUSED
    world.look()
    assert world.schedule.key_age == pytest.approx(400 * DAY_S)
    world.schedule.forget()
    assert (world.schedule.view, world.schedule.list_alarms(), world.schedule.key_age) == (ScheduleView(), [], None)


JUMPS = st.lists(st.integers(-5000, 5000), min_size=1, max_size=12)


@given(JUMPS, st.integers(0, 200))
def test_a_clock_that_jumps_starts_one_operation_at_most(jumps: list[int], minimum_age: int) -> None:
    """Forward and back, as often as it likes: no time has passed in truth."""
    world = World(replace(BOTH, minimum_age=minimum_age * DAY), key_days=300, set_days=20)
    world.look()
    for days in jumps:
        world.clock.offset += timedelta(days=days)
        world.look()
    assert len(world.begun) <= 1


@given(JUMPS, st.data())
def test_no_rotation_begins_inside_the_minimum_age_of_a_key_that_was_seen(jumps: list[int], data: Any) -> None:
    """In true time, however the clock jumps meanwhile."""
    world = World(key_days=300)
    world.look()
    rotated_at: list[float] = []
    for days in jumps:
        world.clock.offset += timedelta(days=days)
        if Depth.ROTATE in world.look(days=data.draw(st.integers(0, 40))):
            rotated_at.append(world.clock.monotonic())
    assert all(later - sooner >= 30 * DAY_S for sooner, later in pairwise(rotated_at))
