"""The schedule of backups: makes them, verifies them, and removes those that may go.

1. One is due when the newest that was verified is older than the interval, or none was. Runs that were missed are made
   up for by one. Each run waits a little longer, by chance: several nexuses need not begin at once.
2. What was made is verified at once; after that, what retention names is removed.
3. What failed is tried again, after twice the time of before, an hour at most. It is an alarm until one succeeds; that
   the directory cannot be looked at is one until it can, and then what is due is made at once.
4. It is an alarm too when none was verified for twice the interval, or since the start for as long, whatever the
   reason: a directory that hangs fails nothing.
5. Without an interval nothing is made; what there is is looked at all the same.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from common.clock import Clock, to_micros
from common.errors import OutcomeUnknownError, ShardholdError
from nexus.admin.backup.backups import Backups
from nexus.keys.outbox import WriteEntry
from nexus.lifecycle.lifecycle import Lifecycle

LOOK_S: Final = 30.0  # between two looks
FIRST_RETRY_S: Final = 60.0
LONGEST_RETRY_S: Final = 3600.0
LONGEST_JITTER_S: Final = 600.0
_JITTER: Final = 0.05  # of the interval, at most
_SECOND: Final = 1_000_000  # microseconds

log = structlog.get_logger("backup-schedule")

Note = Callable[[str, str, str], None]  # action, path, detail; as `Journal.note`


@dataclass(frozen=True, slots=True)
class BackupView:
    """What was found at the last look. Times are microseconds since 1970, 0: none."""

    interval: int = 0  # seconds; 0: none is made by itself
    count: int = 0  # of this cluster, in the directory
    newest_at: int = 0  # when the newest of them was made, as its name says
    verified_at: int = 0  # when the newest that was verified was made
    next_at: int = 0  # when the next one is due
    failures: int = 0  # since the start
    failure: str = ""  # why the last run failed; empty: it did not


class BackupSchedule:
    """One thread works; any may ask for the view. *interval* in seconds."""

    def __init__(
        self,
        *,
        backups: Backups,
        lifecycle: Lifecycle,
        clock: Clock,
        interval: int,
        write_entry: WriteEntry,
        note: Note,
        draw: Callable[[float], float],
    ) -> None:
        """*write_entry* writes the entry of a backup that was made, *draw* a number from 0 to what it is given."""
        self._backups = backups
        self._lifecycle = lifecycle
        self._clock = clock
        self._interval = interval
        self._write_entry = write_entry
        self._note = note
        self._draw = draw
        self._jitter = self._draw_jitter()
        self._retry = 0.0  # seconds after the last failure; 0: none since a success
        self._retry_at = 0.0  # of the monotonic clock
        self._began = clock.monotonic()
        self._is_blind = False  # the last look failed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backup-schedule", daemon=True)
        self._is_started = False
        self._view = BackupView(interval=interval)

    @property
    def view(self) -> BackupView:
        """What was found at the last look."""
        return self._view

    def list_alarms(self) -> list[str]:
        """Return what somebody has to see to (rules 3 and 4)."""
        view = self._view
        alarms = [f"backup by schedule failed: {view.failure}"] if view.failure else []
        if view.verified_at:
            age, what = (self._now - view.verified_at) / _SECOND, "the newest verified backup is {} hours old"
        else:
            age, what = self._clock.monotonic() - self._began, "no backup was verified since the start, {} hours ago"
        if self._interval and self._backups.is_configured and age > 2 * self._interval:
            alarms.append(what.format(int(age // 3600)))
        return alarms

    def start(self) -> None:
        """Begin to look, where backups are configured."""
        if self._backups.is_configured:
            self._is_started = True
            self._thread.start()

    def stop(self) -> None:
        """End the thread; whoever stops the backups first does not wait for one that is being made."""
        self._ended.set()
        if self._is_started:
            self._thread.join()

    def step(self) -> float:
        """Look, and make a backup if one is due; return how many seconds to rest."""
        if self._lifecycle.find_serving() is None:
            return LOOK_S
        try:
            self._look_first()
            if self._is_due():
                self._back_up()
                self._look()
        except OutcomeUnknownError as exc:
            self._lifecycle.give_up(f"backup schedule: {exc}")
        except ShardholdError as exc:
            self._fail(exc)
        return LOOK_S

    def _run(self) -> None:
        while not self._ended.is_set():
            self._clock.wait(self._ended, self.step())

    def _look_first(self) -> None:
        """Look, and forget a failure to look once it is over."""
        was_blind, self._is_blind = self._is_blind, True
        self._look()
        self._is_blind = False
        if was_blind:
            self._retry = 0.0
            self._view = replace(self._view, failure="")

    def _look(self) -> None:
        files, newest = self._backups.find_own(), self._backups.find_newest()
        made_at = newest.verified_at if newest is not None else 0
        due_at = made_at + round((self._interval + self._jitter) * _SECOND) if made_at else self._now
        self._view = replace(
            self._view,
            count=len(files),
            newest_at=files[0].created_at if files else 0,
            verified_at=made_at,
            next_at=due_at if self._interval else 0,
        )

    def _is_due(self) -> bool:
        view = self._view
        if not self._interval or (self._retry and self._clock.monotonic() < self._retry_at):
            return False
        is_ahead = view.verified_at > self._now + self._interval * _SECOND  # made by a clock that was wrong
        return view.next_at <= self._now or is_ahead

    def _back_up(self) -> None:
        self._backups.make_verified(self._write_entry)
        self._retry, self._jitter = 0.0, self._draw_jitter()
        self._view = replace(self._view, failure="")
        if removed := self._backups.prune():
            self._note("backup.prune", "", f"{len(removed)} removed: {', '.join(file.name for file in removed)}")
            log.info("backups removed that retention does not keep", count=len(removed))

    def _fail(self, exc: ShardholdError) -> None:
        if self._lifecycle.find_serving() is None:
            return  # what ended ready says why
        self._retry = min(max(2 * self._retry, FIRST_RETRY_S), LONGEST_RETRY_S)
        self._retry_at = self._clock.monotonic() + self._retry
        if self._view.failure != str(exc):
            log.warning("backup by schedule failed", why=str(exc), retry_s=self._retry)
            self._note("backup.failed", "", f"{exc.reason}: {exc}")
        self._view = replace(self._view, failure=str(exc), failures=self._view.failures + 1)

    def _draw_jitter(self) -> float:
        return self._draw(min(self._interval * _JITTER, LONGEST_JITTER_S))

    @property
    def _now(self) -> int:
        return to_micros(self._clock.now())
