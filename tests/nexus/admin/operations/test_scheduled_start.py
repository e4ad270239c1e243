"""Operations that the schedule begins, with every part real: measured, checked and driven as those of people."""

from dataclasses import replace

import pytest

from common.clock import to_micros
from common.errors import OperationRefusedError, SealedError
from nexus.admin.operations.preflight import Preflights
from nexus.admin.operations.schedule import Schedule
from nexus.admin.operations.starter import Starter
from nexus.keys.operation.record import Depth, Outcome, Step
from nexus.keys.operation.schedule import Terms
from nexus.keys.operation.windows import DAY, Window
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.reshared import Resharing
from tests.nexus.core import OPERATOR

MONTHLY = Terms(interval=0, reshare_interval=30 * DAY)


def make_starter(resharing: Resharing, terms: Terms = MONTHLY) -> Starter:
    """What begins operations of this nexus, by *terms*."""
    core = resharing.core
    return Starter(
        store=resharing.store,
        warden=core.warden,
        driver=core.driver,
        preflights=Preflights(core.pool, core.memory, core.clock, terms, lambda: core.disk_free),
        memory=core.memory,
        clock=core.clock,
    )


@pytest.fixture
def starter(resharing: Resharing) -> Starter:
    """What begins operations at any time of the day."""
    return make_starter(resharing)


@pytest.fixture
def schedule(resharing: Resharing, starter: Starter) -> Schedule:
    """A schedule that reshares every month."""
    return Schedule(terms=MONTHLY, clock=resharing.core.clock, begin=starter.begin_scheduled, note=lambda *_: None)


def test_a_reshare_begins_by_itself_and_is_settled(resharing: Resharing, schedule: Schedule) -> None:
    """Keepers and threshold stay; the nexus itself is named nowhere as somebody who asked."""
    before = resharing.facts.current_set
    schedule.look(resharing.facts)
    record = resharing.operation
    assert record is not None
    assert (record.depth, record.step, record.actor) == (Depth.RESHARE, Step.PREPARED, "")
    assert record.reason.startswith("scheduled: the shard set is ")
    ((_, entry),) = resharing.core.list_change_entries()
    assert (entry.actor, entry.action, record.reason in entry.detail) == ("", "root.start", True)
    schedule.look(resharing.facts)
    resharing.drive_to_rest()
    ended, after = resharing.ended, resharing.facts.current_set
    assert ended is not None
    assert (ended.id, ended.outcome) == (record.id, Outcome.SETTLED)
    assert (after.threshold, len(after.members)) == (before.threshold, len(before.members))
    resharing.core.clock.advance(29 * 86_400)
    schedule.look(resharing.facts)
    assert resharing.operation is None


def test_it_is_refused_as_those_of_people_are(resharing: Resharing, schedule: Schedule) -> None:
    """With too few keepers nothing has changed, and an alarm says why."""
    for keeper in resharing.keepers[:2]:
        keeper.is_reachable = False
    wait_until(lambda: sum(seat.status.reachable for seat in resharing.core.pool.seats) == 3)
    before = resharing.cluster.load()
    schedule.look(resharing.facts)
    assert resharing.cluster.load() == before
    assert schedule.list_alarms() == ["scheduled reshare refused: keepers: 3 of 5 reachable, want 4"]


def test_a_rotation_by_itself_wants_a_backup(resharing: Resharing, starter: Starter) -> None:
    """Nobody is there to waive it."""
    with pytest.raises(OperationRefusedError, match="backup: none of generation 1 is verified") as refused:
        starter.begin_scheduled(Depth.ROTATE, "scheduled")
    assert refused.value.reason == "BACKUP_OLD"
    assert resharing.operation is None


def test_a_sealed_nexus_begins_nothing(resharing: Resharing, starter: Starter) -> None:
    """Not even if a look was under way."""
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    with pytest.raises(SealedError):
        starter.begin_scheduled(Depth.RESHARE, "scheduled")


def test_nothing_begins_by_itself_outside_a_window(resharing: Resharing, starter: Starter) -> None:
    """A window that closed since the look refuses it."""
    now = to_micros(resharing.core.clock.now())
    window = Window(None, (now + DAY // 24) % DAY, DAY // 24)
    with pytest.raises(OperationRefusedError, match="no window of the schedule is open"):
        make_starter(resharing, replace(MONTHLY, windows=(window,))).begin_scheduled(Depth.RESHARE, "scheduled")
    starter.begin_scheduled(Depth.RESHARE, "scheduled")
