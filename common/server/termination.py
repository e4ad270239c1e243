"""How a process ends, and that it does not end without a word.

- The main thread waits for a signal, says which one came, and then ends the process itself.
- Every signal whose default would end the process in silence is one that asks it to end, such as the SIGHUP of a
  terminal that was closed. One that was ignored at the start stays so: that is how nohup asks for it.
- A crash of native code leaves the lines of Python that every thread was in: names of files and functions, no value.
"""

import contextlib
import faulthandler
import os
import queue
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

import structlog

ENDING: Final = (signal.SIGTERM, signal.SIGINT)
SILENT: Final = (
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGXCPU,
    signal.SIGIO,
    signal.SIGPWR,
)

log = structlog.get_logger("process")

_last: list[Callable[[], object]] = []


class Termination:
    """Whether this process was asked to stop. Create and await it on the main thread; it replaces the signal handlers.

    A `threading.Event` would not do: a handler that sets it while the main thread holds the event's lock waits for
    itself.
    """

    def __init__(self) -> None:
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # reentrant: its put may interrupt its get
        self._is_set = False
        self._is_told = False
        for number in (*ENDING, *SILENT):
            if number in ENDING or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def is_set(self) -> bool:
        """Return whether the process was asked to stop."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the process is asked to stop, at most *timeout* seconds; return whether it was."""
        if not self._is_told:
            with contextlib.suppress(queue.Empty):
                number = self._signals.get(timeout=timeout)
                self._is_told = True
                log.info("told to end", signal=signal.Signals(number).name)
        return self._is_set

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_set = True
        self._signals.put(number)


def open_streams() -> None:
    """Open what the process was started without of its three standard streams. Call it before a file is opened.

    A file that got one of their numbers would be written to by whatever library complains.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 — for as long as the process lives
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


def report_crashes() -> None:
    """Let a crash of native code say on stderr where every thread was."""
    with contextlib.suppress(RuntimeError, OSError, ValueError):  # no stderr to say it on
        faulthandler.enable()


def call_at_end(callback: Callable[[], object]) -> None:
    """Call *callback* when the process ends by `end_process`; once, however often it is given."""
    if callback not in _last:
        _last.append(callback)


def end_process(code: int) -> NoReturn:
    """Flush what was printed and end the process, once everything is closed, without the interpreter's own shutdown.

    That shutdown waits for workers, even for those that hang on a disk, and waits for ever for a lock of gRPC when it
    has itself stopped the thread that held it.
    """
    for callback in _last:
        callback()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed when the process started
        with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it was closed
            stream.flush()
    os._exit(code)
