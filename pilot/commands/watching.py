"""Looking at a nexus again and again: what was seen last stays known while it does not answer."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from pilot.commands.vitals import vitals_document
from pilot.errors import UNAVAILABLE, PilotError, described
from pilot.terminal.output import show_time

if TYPE_CHECKING:
    from shardhold.v1.cluster_pb2 import GetStatusResponse

HISTORY: Final = 60  # rates that are remembered
FAILING_S: Final = 15.0  # at least between two looks while the audit fails: each takes of the room kept for people


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a nexus at one moment."""

    status: dict[str, Any] | None = None  # as it was seen last; None: never yet
    seen_at: float = 0.0  # monotonic seconds, of the status
    silent_since: datetime | None = None  # since when the nexus does not answer; None: it does
    why: str = ""  # it does not answer
    rate: float | None = None  # calls a second since the look before; None: not known
    rates: tuple[float, ...] = ()  # of earlier looks too, the last one last

    def find_age(self, now: float) -> float:
        """Return how many seconds ago the status was seen; *now* is in monotonic seconds."""
        return max(0.0, now - self.seen_at)

    def find_interval(self, interval: float) -> float:
        """Return the seconds from this look to the next, of which somebody wants *interval*."""
        audit = self.status["audit"] if self.status is not None else None
        is_failing = self.silent_since is None and audit is not None and audit["fault"] is not None
        return max(interval, FAILING_S) if is_failing else interval

    def to_document(self, now: float) -> dict[str, Any]:
        """Return what is known as JSON; *now* is in monotonic seconds."""
        return {
            "answers": self.silent_since is None,
            "silent_since": show_time(self.silent_since) if self.silent_since else None,
            "why": self.why or None,
            "status_age_seconds": None if self.status is None else round(self.find_age(now), 1),
            "calls_per_second": None if self.rate is None else round(self.rate, 1),
            "status": self.status,
        }


class Watcher:
    """Looks with *fetch*, which raises when the nexus does not answer. Any thread may read `sight`."""

    def __init__(
        self, fetch: Callable[[], "GetStatusResponse"], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._rates: deque[float] = deque(maxlen=HISTORY)
        self._counted: tuple[tuple[int, int], int, float] | None = None  # start of the process, calls, moment
        self.sight = Sight()

    def look(self) -> Sight:
        """Ask the nexus once, and return what is known then.

        Raises:
            PilotError: It was never seen, and asking again does not help: the caller is refused, for example.
        """
        try:
            with described():
                response = self._fetch()
        except PilotError as exc:
            if self.sight.status is None and exc.exit_code != UNAVAILABLE:
                raise
            self._counted = None
            since = self.sight.silent_since or datetime.now(UTC)
            self.sight = replace(self.sight, silent_since=since, why=str(exc), rate=None)
        else:
            now = self._monotonic()
            rate = self._count(response, now)
            self.sight = Sight(vitals_document(response), now, rate=rate, rates=tuple(self._rates))
        return self.sight

    def look_on(self, interval: float, stopping: threading.Event) -> None:
        """Look every *interval* seconds until *stopping* is set; raises as `look`."""
        while not stopping.is_set():
            began = self._monotonic()
            pause = self.look().find_interval(interval)
            stopping.wait(max(0.0, began + pause - self._monotonic()))

    def _count(self, response: "GetStatusResponse", now: float) -> float | None:
        """Return the calls a second since the look before; None: another process answered it, or none did."""
        before, start = self._counted, (response.started_at.seconds, response.started_at.nanos)
        self._counted = (start, response.calls, now) if response.HasField("told_at") else None
        if self._counted is None or before is None or before[0] != start or now <= before[2]:
            return None
        rate = max(0, response.calls - before[1]) / (now - before[2])
        self._rates.append(rate)
        return rate
