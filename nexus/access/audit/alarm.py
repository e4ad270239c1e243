"""An alarm about the outbox: said in the audit and in the log at once, and then at most each minute, with a count."""

from typing import Final

import structlog

from common.clock import Clock, to_micros
from common.errors import CorruptRowError
from common.forms.audit.entry import Entry
from nexus.access.audit.log import AuditLog

SAY_EVERY_S: Final = 60.0

_log = structlog.get_logger("audit")


class Alarm:
    """Used by one thread; `count` may be read by any."""

    def __init__(self, action: str, clock: Clock) -> None:
        self.count = 0  # since the start
        self._action = action
        self._clock = clock
        self._first = ""  # of those that are still to be said
        self._unsaid = 0
        self._said_at: float | None = None

    def add(self, what: str) -> None:
        """Count one case."""
        self.count += 1
        self._unsaid += 1
        self._first = self._first or what

    def say(self, audit: AuditLog) -> None:
        """Write an entry if there is something to say, and the last one is not too fresh.

        Raises:
            AuditUnavailableError: It is still to be said.
        """
        now = self._clock.monotonic()
        if not self._unsaid or (self._said_at is not None and now - self._said_at < SAY_EVERY_S):
            return
        more = f"; and {self._unsaid - 1} more" if self._unsaid > 1 else ""
        detail = f"{self._first}{more}"
        at = to_micros(self._clock.now())
        audit.append(Entry(at=at, actor="", action=self._action, outcome=CorruptRowError.reason, detail=detail))
        _log.critical("audit outbox was changed from outside", action=self._action, what=detail)
        self._first, self._unsaid, self._said_at = "", 0, now
