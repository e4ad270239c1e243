"""How a process ends, and that it does not end without a word.

- The main thread waits for a signal, says which one came, and then ends the process itself.
- Every signal whose default would end the process in silence is one that asks it to end, such as the SIGHUP of a
  terminal that was closed. One that was ignored at the start stays so: that is how nohup asks for it.
- A crash of native code leaves the lines of Python that every thread was in: names of files and functions, no value.
"""

import contextlib
import faulthandler
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

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
_PIPE_SIZE: Final = 65_536  # bytes

_last: list[Callable[[], object]] = []


class Termination:
    """Whether this process was asked to stop. Create and await it on the main thread; it replaces the signal handlers.

    The kernel may hand a signal to any thread, while Python runs handlers on the main thread only, once that wakes. So
    the main thread waits for the pipe that Python writes to on whichever thread the signal came.
    """

    def __init__(self) -> None:
        self._signal = 0  # that asked first; 0: none yet
        self._is_told = False
        self._woken, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)  # a full pipe wakes as well
        for number in (*ENDING, *SILENT):
            if number in ENDING or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def is_set(self) -> bool:
        """Return whether the process was asked to stop."""
        return bool(self._signal)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the process is asked to stop, at most *timeout* seconds; return whether it was."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._signal:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._woken], [], [], left)[0]:
                break
            os.read(self._woken, _PIPE_SIZE)  # the handler runs on the way to the next look
        if self._signal and not self._is_told:
            self._is_told = True
            import structlog  # here, since pilot ends by this module too, and has no log

            structlog.get_logger("process").info("told to end", signal=signal.Signals(self._signal).name)
        return bool(self._signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number


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
