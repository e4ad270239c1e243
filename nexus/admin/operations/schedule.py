"""The schedule: begins what is due, tells what is due soon, and shows both.

1. What is due is said by `nexus.keys.operation.schedule`, by the rows and both clocks.
2. What was refused is tried again after an hour, or once rows have changed, yet no sooner than after a minute: each try
   asks the keepers. What was begun and taken back is begun again after an hour.
3. A refusal is logged once, and is an alarm until the operation begins or is due no more.
4. Each notice is logged and noted in the audit once by a process: again only when its number or its days change.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from common.clock import Clock, to_micros
from common.errors import OutcomeUnknownError, ShardholdError
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth
from nexus.keys.operation.schedule import (
    Due,
    Notice,
    Scheduled,
    Seen,
    Subject,
    Terms,
    find_activation,
    find_due,
    find_next,
    find_notices,
    find_overdue,
)
from nexus.keys.operation.settings import find_hold

RETRY_S = 3600.0  # after a try
CHANGED_S = 60.0  # after a try that was refused, once rows have changed
_SECOND = 1_000_000  # microseconds

log = structlog.get_logger("schedule")

Begin = Callable[[Depth, str], None]  # raises ShardholdError when it does not
Note = Callable[[str, str, str], None]  # action, path, detail; as `Journal.note`


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """What was found at the last look."""

    activated_at: int = 0  # the current root key, in microseconds since 1970; 0: not known
    is_rotation_due: bool = False
    next: Scheduled | None = None  # what begins by itself next; None: nothing does
    hold: str = ""  # why the schedule is paused; empty: it is not
    notices: tuple[Notice, ...] = ()
    refusals: tuple[str, ...] = ()  # why what is due has not begun


@dataclass(frozen=True, slots=True)
class _Try:
    """The last time that an operation was to begin."""

    at: float  # monotonic seconds
    position: tuple[int, int]  # timeline and control revision
    reason: str = ""  # why it was refused; empty: it began
    text: str = ""


class Schedule:
    """`look` and `forget` are called by one thread; any may ask the rest."""

    def __init__(self, *, terms: Terms, clock: Clock, begin: Begin, note: Note) -> None:
        """*begin* begins an operation of a depth, for a reason, or raises why it does not."""
        self._terms = terms
        self._clock = clock
        self._begin = begin
        self._note = note
        self._view = ScheduleView()
        self._tries: dict[Depth, _Try] = {}
        self._told: set[tuple[Subject, int, int]] = set()  # subject, number and days of notices
        self._numbers: tuple[int, int] | None = None  # current generation and set
        self._seen: tuple[float | None, float | None] = (None, None)  # when they were seen to begin, monotonic seconds

    def look(self, facts: Facts) -> None:
        """Tell what is due by *facts*, and begin what the schedule may begin. A try takes some seconds.

        Raises:
            OutcomeUnknownError: It is not known whether an operation has begun.
        """
        self._witness(facts)
        now = to_micros(self._clock.now())
        notices = find_notices(facts, self._terms, now)
        overdue = find_overdue(facts, self._terms, now)
        for depth in self._tries.keys() - overdue:
            del self._tries[depth]  # it is due no more
        self._tell(notices)
        self._view = ScheduleView(
            find_activation(facts),
            any(notice.is_due for notice in notices),
            find_next(facts, self._terms, now),
            find_hold(facts),
            tuple(notices),
        )
        self._begin_due(facts, now)
        refusals = (f"scheduled {depth} refused: {one.text}" for depth, one in self._tries.items() if one.reason)
        self._view = replace(self._view, refusals=tuple(refusals))

    def forget(self) -> None:
        """Show nothing until the next look: the nexus is not ready."""
        self._view = ScheduleView()
        self._tries.clear()

    @property
    def view(self) -> ScheduleView:
        """What was found at the last look."""
        return self._view

    @property
    def key_age(self) -> float | None:
        """Seconds since the current root key was activated, by the wall time; None: not known."""
        at = self._view.activated_at
        return (to_micros(self._clock.now()) - at) / _SECOND if at else None

    def list_alarms(self) -> list[str]:
        """Say what somebody has to see to although the nexus serves."""
        view = self._view
        due = [f"rotation due: {notice.text}" for notice in view.notices if notice.is_due]
        return [*due, *view.refusals, *(["rotation is paused"] if view.hold else [])]  # why: only people may know

    def _witness(self, facts: Facts) -> None:
        """Notice when a new root key or set began."""
        numbers, now = (facts.generation, facts.current_set.set_number), self._clock.monotonic()
        if self._numbers is not None:
            is_new = [new != old for new, old in zip(numbers, self._numbers, strict=True)]
            self._seen = (now if is_new[0] else self._seen[0], now if is_new[1] else self._seen[1])
        self._numbers = numbers

    def _find_seen(self) -> Seen:
        now = self._clock.monotonic()
        return Seen(*(None if at is None else int((now - at) * _SECOND) for at in self._seen))

    def _tell(self, notices: list[Notice]) -> None:
        """Rule 4."""
        keys = {(one.subject, one.number, one.days): one for one in notices}
        for key in keys.keys() - self._told:
            notice = keys[key]
            if notice.is_due:
                log.warning("rotation due", why=notice.text)
                self._note("rotation.due", "", notice.text)
            else:
                log.warning("rotation due soon", days=notice.days, why=notice.text)
                ahead = f"within {notice.days} day{'s' if notice.days > 1 else ''}"
                self._note("rotation.due", "", f"{ahead}: {notice.text}")
        self._told |= keys.keys()

    def _may_try(self, depth: Depth, position: tuple[int, int]) -> bool:
        """Rule 2."""
        last = self._tries.get(depth)
        if last is None:
            return True
        passed = self._clock.monotonic() - last.at
        return passed >= RETRY_S or (bool(last.reason) and last.position != position and passed >= CHANGED_S)

    def _begin_due(self, facts: Facts, now: int) -> None:
        position = facts.meta.timeline, facts.meta.control_revision
        for due in find_due(facts, self._terms, now, self._find_seen()):
            if self._may_try(due.depth, position) and self._try(due, position):
                return

    def _try(self, due: Due, position: tuple[int, int]) -> bool:
        """Begin an operation; return whether it has begun."""
        before, now = self._tries.get(due.depth), self._clock.monotonic()
        try:
            self._begin(due.depth, due.why)
        except OutcomeUnknownError:
            raise
        except ShardholdError as exc:
            self._tries[due.depth] = _Try(now, position, exc.reason, str(exc))
            if before is None or before.reason != exc.reason:
                log.warning("scheduled operation refused", depth=due.depth, reason=exc.reason, why=str(exc))
            return False
        self._tries[due.depth] = _Try(now, position)
        log.info("scheduled operation begun", depth=due.depth, why=due.why)
        return True
