"""Points at which a test kills, stops or fails a process, between the durable steps of an operation.

1. `NEXUS` and `KEEPER` name all there are. Each is two points: before and after the block that it is around.
2. One point is armed at most, by the configuration and only with `dev = true`. A start without it is disarmed.
3. Disarmed, a point looks at one variable.
"""

import enum
import os
import signal
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Final

from common.errors import ConfigError, InjectedError

NEXUS: Final = frozenset(
    {
        "prepare.backup",
        "prepare.key",
        "prepare.escrow",
        "prepare.commit",
        "distribute.put",
        "distribute.fetch",
        "distribute.rehearse",
        "distribute.commit",
        "flip.holders",
        "flip.mark",
        "flip.commit",
        "flip.signer",
        "flip.mark-after",
        "settle.collect",
        "settle.prove",
        "settle.commit",
        "settle.scrub",
        "settle.drop",
        "abort.commit",
        "abort.scrub",
        "abort.drop",
        "takeover.commit",
        "continue.commit",
        "heal.commit",
        "forget.commit",
        "job.commit",
        "job.quarantine",
        "job.verify",
        "job.verified",
        "job.recount",
        "job.retire",
        "job.forget",
        "job.scrub",
        "job.backup",
        "quarantine.retry",
        "quarantine.abandon",
        "settings.commit",
        "seal.end",
        "unseal.end",
        "accept.escrow",
        "accept.commit",
    }
)
KEEPER: Final = frozenset({"put.store", "fetch.answer", "drop.wipe", "mark.store"})

_FORM = "NAME:before|after:COUNT:kill|pause|error"


class Action(enum.StrEnum):
    """What happens at a point."""

    KILL = "kill"  # SIGKILL
    PAUSE = "pause"  # SIGSTOP: goes on at SIGCONT
    ERROR = "error"  # raises InjectedError


class Failpoint:
    """One point of *names*, written as NAME:before|after:COUNT:kill|pause|error. Thread-safe."""

    def __init__(self, text: str, names: Set[str]) -> None:
        """Raises ConfigError: It has another form, or there is no such point."""
        name, side, count, action = [*text.split(":"), "", "", ""][:4] if text.count(":") == 3 else ("", "", "", "")
        if side not in ("before", "after") or not count.isdecimal() or not int(count) or action not in list(Action):
            raise ConfigError(f"failpoint: got {text[:100]!r}, want {_FORM}")
        if name not in names:
            raise ConfigError(f"failpoint: got {name[:100]!r}, want one of {', '.join(sorted(names))}")
        self._place = (name, side)
        self._left = int(count)
        self._action = Action(action)
        self._lock = threading.Lock()

    def reach(self, name: str, side: str) -> None:
        """Act if this is the point, reached for the COUNTth time.

        Raises:
            InjectedError: That is its action.
        """
        if (name, side) != self._place:
            return
        with self._lock:
            self._left -= 1
            is_due = self._left == 0
        if is_due:
            self._act()

    def _act(self) -> None:
        match self._action:
            case Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.PAUSE:
                # To this thread: sent to the process, another one takes it, and this one runs on for a moment.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            case Action.ERROR:
                raise InjectedError(f"failpoint {':'.join(self._place)}")


def read_failpoint(text: str, names: Set[str], *, dev: bool) -> Failpoint | None:
    """Return the point that the option names; None: it is empty.

    Raises:
        ConfigError: It has another form, or this is no development.
    """
    if not text:
        return None
    if not dev:
        raise ConfigError(f"failpoint: got {text[:100]!r}, want none without dev = true")
    return Failpoint(text, names)


_armed: Failpoint | None = None


def arm(failpoint: Failpoint | None) -> None:
    """Arm *failpoint* for this process, or none."""
    global _armed
    _armed = failpoint


@contextmanager
def around(name: str) -> Iterator[None]:
    """Reach the point *name* before the block, and after it if it did not raise."""
    failpoint = _armed
    if failpoint is None:
        yield
        return
    failpoint.reach(name, "before")
    yield
    failpoint.reach(name, "after")
