"""The command that pilot runs with secrets, from its start to its end. Rules:

1. Signals that pilot gets are passed on, except for those that the terminal has already given to the command: Ctrl-C
   and the like reach every process in the foreground.
2. The command's end is the end: with its exit code, or 128 and the number of the signal that ended it.
3. Restarting is TERM, KILL after the grace if it still runs, and a new start with the values of that moment.
4. Whoever tells the command to end means it for good: after TERM or QUIT, or INT that is passed on or comes during a
   restart, it is not started again.
5. Every child is reaped, also those that the kernel hands to pilot as the first process of a container.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

from pilot.errors import CANNOT_RUN, NOT_RUNNABLE, PilotError, UsageError
from pilot.programs.wakeups import NEWS, Wakeups

Reaction: TypeAlias = Literal["ignore", "restart"] | signal.Signals  # to a change of what the command was given
Environment: TypeAlias = Mapping[bytes, bytes]

# Those that somebody sends to a program. The others are about a process's own faults and time, or stop and continue it.
_NAMES = ("HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "WINCH", "IO", "PWR")
PASSED: Final = tuple(signal.Signals[f"SIG{name}"] for name in _NAMES if f"SIG{name}" in signal.Signals.__members__)

_OF_TERMINALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGWINCH)
_ENDING = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def parse_reaction(text: str) -> Reaction:
    """Read `ignore`, `restart`, or a signal such as HUP or SIGHUP.

    Raises:
        UsageError: It is none of them.
    """
    if text in ("ignore", "restart"):
        return "ignore" if text == "ignore" else "restart"
    name = text.upper().removeprefix("SIG")
    for number in PASSED:
        if number.name == f"SIG{name}":
            return number
    names = ", ".join(one.name.removeprefix("SIG") for one in PASSED)
    raise UsageError(f"--on-change: got {text!r}, want ignore, restart or one of {names}")


class Supervisor:
    """Runs *command* until it ends.

    Args:
        command: The program, found by PATH, and its arguments.
        wakeups: Entered, with the signals PASSED and SIGCHLD.
        get_environment: Returns all of the environment for a start.
        take_news: Called when there is news; returns whether the command was given something that has changed.
        reaction: To that.
        grace: Seconds that the command has to end before a restart kills it.
    """

    def __init__(
        self,
        command: Sequence[str],
        wakeups: Wakeups,
        *,
        get_environment: Callable[[], Environment],
        take_news: Callable[[], bool],
        reaction: Reaction,
        grace: float,
    ) -> None:
        self._command = list(command)
        self._wakeups = wakeups
        self._get_environment = get_environment
        self._take_news = take_news
        self._reaction = reaction
        self._grace = grace
        self._pid = 0
        self._is_ending = False  # rule 4
        self._kill_at: float | None = None  # by the monotonic clock; None: no restart is under way
        self._is_killed = False

    def run(self) -> int:
        """Start the command and return its exit code.

        Raises:
            PilotError: It cannot be started.
        """
        self._start()
        while True:
            came = self._wakeups.wait(self._find_patience())
            for number in came:
                if number not in (NEWS, signal.SIGCHLD):
                    self._pass_on(signal.Signals(number))
            if NEWS in came and self._take_news():
                self._react()
            code = self._reap()
            if code is not None and (self._kill_at is None or self._is_ending):
                return code
            if code is not None:
                self._start()
            elif self._kill_at is not None and time.monotonic() >= self._kill_at and not self._is_killed:
                self._is_killed = True
                self._send(signal.SIGKILL)

    def _start(self) -> None:
        self._kill_at, self._is_killed = None, False
        try:
            self._pid = os.posix_spawnp(
                self._command[0], self._command, self._get_environment(), setsigdef=_IGNORED_BY_PYTHON
            )
        except OSError as exc:
            code = CANNOT_RUN if isinstance(exc, FileNotFoundError) else NOT_RUNNABLE
            hint = "hand large values over as files, with --template" if exc.errno == errno.E2BIG else ""
            raise PilotError(f"{self._command[0]}: {exc.strerror}", hint, exit_code=code) from exc

    def _find_patience(self) -> float | None:
        if self._kill_at is None or self._is_killed:
            return None
        return max(self._kill_at - time.monotonic(), 0.0)

    def _pass_on(self, number: signal.Signals) -> None:
        is_passed = number not in _OF_TERMINALS or not _is_in_foreground()  # rule 1
        if is_passed:
            self._send(number)
        if number in _ENDING and (is_passed or self._kill_at is not None):
            self._is_ending = True

    def _react(self) -> None:
        if isinstance(self._reaction, signal.Signals):
            self._send(self._reaction)
        elif self._reaction == "restart" and self._kill_at is None and not self._is_ending:
            self._kill_at = time.monotonic() + self._grace
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)  # not reaped yet, so the number is its own

    def _reap(self) -> int | None:
        """Reap every child that has ended; return the command's exit code once it has."""
        code = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return code
            if pid == 0:
                return code
            if pid == self._pid:
                code = os.waitstatus_to_exitcode(status)
                code = 128 - code if code < 0 else code


def _is_in_foreground() -> bool:
    """Return whether the terminal, if there is one, gives its signals to this process, and so to the command too."""
    try:
        terminal = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # it was hung up
        return False
    finally:
        os.close(terminal)
