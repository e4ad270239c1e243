"""Backups by schedule: made when one is due, verified, pruned, and loud when they fail."""

from pathlib import Path

import pytest

from nexus.admin.backup.backups import BackupSetup
from nexus.admin.backup.directory import BackupDirectory
from nexus.admin.backup.retention import Retention
from nexus.admin.backup.schedule import FIRST_RETRY_S, LONGEST_RETRY_S, LOOK_S, BackupSchedule
from nexus.keys.outbox import append_entry
from nexus.keys.root_key import RootKey
from nexus.keys.verified_backup import find_record
from nexus.lifecycle.states import State
from nexus.server.backup_metrics import BackupCollector
from nexus.store.protocol import Writer
from tests.nexus.admin.backup.world import RECIPIENT, World
from tests.nexus.core import OPERATOR

HOUR = 3600


class Scheduled:
    """A schedule whose steps a test makes."""

    def __init__(self, world: World, *, interval: int = 24 * HOUR, jitter: float = 0.0) -> None:
        self.world = world
        self.notes: list[tuple[str, str]] = []
        self.schedule = BackupSchedule(
            backups=world.core.backups,
            lifecycle=world.core.lifecycle,
            clock=world.core.clock,
            interval=interval,
            write_entry=write_entry,
            note=lambda action, path, detail: self.notes.append((action, detail)),
            draw=lambda longest: longest * jitter,
        )

    def step_after(self, seconds: float) -> int:
        """Let time pass and make a step; return how many backups there are."""
        self.world.core.clock.advance(seconds)
        assert self.schedule.step() == LOOK_S
        return len(self.world.directory.list())

    def keep(self, retention: Retention) -> None:
        """Say how many stay."""
        self.world.core.backups._setup = BackupSetup(self.world, self.world.directory, [RECIPIENT], retention)


def write_entry(writer: Writer, key: RootKey) -> None:
    """Write an entry, as the process does."""
    append_entry(writer, key, "n1", b"{}")


@pytest.fixture
def scheduled(world: World) -> Scheduled:
    """One backup a day."""
    return Scheduled(world)


def test_the_first_is_made_at_once_and_the_next_when_it_is_due(scheduled: Scheduled) -> None:
    """Each is verified as it is made."""
    assert [scheduled.step_after(at) for at in (0, 0, 23 * HOUR, HOUR, 0)] == [1, 1, 1, 2, 2]
    record = find_record(scheduled.world.facts)
    assert record is not None
    assert record.name == scheduled.world.directory.list()[0].name
    view = scheduled.schedule.view
    assert (view.count, view.failures, view.failure) == (2, 0, "")
    assert view.next_at == view.verified_at + 24 * HOUR * 1_000_000
    assert scheduled.schedule.list_alarms() == []


def test_missed_runs_are_made_up_for_by_one(scheduled: Scheduled) -> None:
    """A nexus that was off for ten days makes one, not ten."""
    assert [scheduled.step_after(at) for at in (0, 240 * HOUR, LOOK_S)] == [1, 2, 2]


def test_one_made_by_hand_counts_once_it_is_verified(scheduled: Scheduled) -> None:
    """What nobody has opened is no reason to wait."""
    scheduled.step_after(0)
    scheduled.world.core.clock.advance(20 * HOUR)
    scheduled.world.core.backups.create(OPERATOR)
    scheduled.world.core.backups.verify(OPERATOR)
    assert scheduled.step_after(10 * HOUR) == 2
    scheduled.world.core.backups.create(OPERATOR)
    assert scheduled.step_after(14 * HOUR) == 4


def test_jitter_puts_a_run_off_a_little(world: World) -> None:
    """Ten minutes at most."""
    scheduled = Scheduled(world, jitter=1.0)
    scheduled.step_after(0)
    assert scheduled.step_after(24 * HOUR + 590) == 1
    assert scheduled.step_after(11) == 2


def test_a_clock_that_was_wrong_stops_nothing(scheduled: Scheduled) -> None:
    """A backup from a year ahead would keep the next one waiting for a year."""
    scheduled.step_after(0)
    scheduled.world.core.clock.offset -= 365 * 24 * HOUR * (scheduled.world.core.clock.now().resolution * 1_000_000)
    assert scheduled.step_after(0) == 2


def test_without_an_interval_nothing_is_made(world: World) -> None:
    """What there is is looked at all the same."""
    scheduled = Scheduled(world, interval=0)
    assert scheduled.step_after(0) == 0
    world.core.backups.create(OPERATOR)
    assert scheduled.step_after(1_000 * HOUR) == 1
    view = scheduled.schedule.view
    assert (view.count, view.verified_at, view.next_at) == (1, 0, 0)
    assert view.newest_at > 0
    assert scheduled.schedule.list_alarms() == []


def test_nothing_is_made_while_the_nexus_is_not_ready(scheduled: Scheduled) -> None:
    """Nor is that a failure of the schedule."""
    scheduled.world.core.lifecycle.withdraw(State.SEALED, seconds=5)
    assert scheduled.step_after(48 * HOUR) == 0
    assert (scheduled.schedule.view.failures, scheduled.notes) == (0, [])


def test_a_failure_is_an_alarm_and_tried_again_later_and_later(scheduled: Scheduled, tmp_path: Path) -> None:
    """Noted once, counted each time, until one succeeds."""
    world = scheduled.world
    world.use(BackupDirectory(tmp_path / "gone", nexus="n1"))
    scheduled.step_after(0)
    (alarm,) = scheduled.schedule.list_alarms()
    assert alarm.startswith("backup by schedule failed: backup.directory")
    failures = [scheduled.schedule.view.failures]
    for seconds in (FIRST_RETRY_S / 2, FIRST_RETRY_S / 2, FIRST_RETRY_S, LONGEST_RETRY_S):
        scheduled.step_after(seconds)
        failures.append(scheduled.schedule.view.failures)
    assert failures[-1] > failures[0]
    assert [action for action, _ in scheduled.notes] == ["backup.failed"]
    world.use(world.directory)
    assert scheduled.step_after(LONGEST_RETRY_S) == 1
    assert scheduled.schedule.list_alarms() == []


@pytest.mark.parametrize("interval", [0, 24 * HOUR])
def test_a_directory_that_was_away_is_no_alarm_once_it_is_back(world: World, tmp_path: Path, interval: int) -> None:
    """Nothing was due meanwhile, so no backup would end the alarm for long, or ever."""
    scheduled = Scheduled(world, interval=interval)
    scheduled.step_after(0)
    directory = world.directory
    world.use(BackupDirectory(tmp_path / "gone", nexus="n1"))
    scheduled.step_after(LOOK_S)
    assert len(scheduled.schedule.list_alarms()) == 1
    world.use(directory)
    scheduled.step_after(LOOK_S)
    assert scheduled.schedule.list_alarms() == []


def test_what_was_due_while_the_directory_was_away_is_made_once_it_is_back(
    scheduled: Scheduled, tmp_path: Path
) -> None:
    """Not an hour later, as after backups that fail."""
    directory = scheduled.world.directory
    scheduled.world.use(BackupDirectory(tmp_path / "gone", nexus="n1"))
    for _ in range(10):
        scheduled.step_after(LONGEST_RETRY_S)
    scheduled.world.use(directory)
    assert scheduled.step_after(LOOK_S) == 1


def test_an_old_backup_is_an_alarm_whatever_the_reason(scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch) -> None:
    """At twice the interval."""
    scheduled.step_after(0)
    monkeypatch.setattr(scheduled.schedule, "_is_due", lambda: False)
    scheduled.step_after(47 * HOUR)
    assert scheduled.schedule.list_alarms() == []
    scheduled.step_after(2 * HOUR)
    assert scheduled.schedule.list_alarms() == ["the newest verified backup is 49 hours old"]


def test_none_at_all_is_an_alarm_too(scheduled: Scheduled) -> None:
    """As when the directory hangs from the first look on; not where no backups are configured."""
    scheduled.world.core.clock.advance(47 * HOUR)
    assert scheduled.schedule.list_alarms() == []
    scheduled.world.core.clock.advance(2 * HOUR)
    assert scheduled.schedule.list_alarms() == ["no backup was verified since the start, 49 hours ago"]
    scheduled.world.core.backups._setup = None
    assert scheduled.schedule.list_alarms() == []


def test_what_retention_does_not_keep_goes_after_the_next_one(scheduled: Scheduled) -> None:
    """By a note in the audit that names it; a hold keeps one."""
    scheduled.keep(Retention(last=2, minimum=1))
    names = []
    for _ in range(4):
        scheduled.step_after(24 * HOUR)
        names.append(scheduled.world.directory.list()[0].name)
        if len(names) == 2:
            (scheduled.world.folder / f"{names[1]}.hold").touch()
    left = [file.name for file in scheduled.world.directory.list()]
    assert sorted(left) == sorted([names[1], names[2], names[3]])
    assert scheduled.notes == [("backup.prune", f"1 removed: {names[0]}")]


def test_another_clusters_backups_stay(scheduled: Scheduled) -> None:
    """They may lie in the same directory."""
    scheduled.keep(Retention(last=1, minimum=1))
    scheduled.step_after(0)
    own = scheduled.world.directory.list()[0].name
    other = own.replace(own.split("-")[1], "00000000")
    (scheduled.world.folder / other).touch()
    scheduled.step_after(24 * HOUR)
    names = {file.name for file in scheduled.world.directory.list()}
    assert other in names
    assert own not in names


def test_metrics_show_the_last_look(scheduled: Scheduled) -> None:
    """Ages have no sample while there is nothing."""
    collector = BackupCollector(scheduled.schedule, scheduled.world.core.clock)

    def read() -> dict[str, float]:
        return {sample.name: sample.value for metric in collector.collect() for sample in metric.samples}

    assert read() == {"shardhold_backup_count": 0, "shardhold_backup_failures_total": 0}
    scheduled.step_after(0)
    scheduled.world.core.clock.advance(90)
    assert read() == {
        "shardhold_backup_age_seconds": 90,
        "shardhold_backup_verified_age_seconds": 90,
        "shardhold_backup_count": 1,
        "shardhold_backup_failures_total": 0,
    }
