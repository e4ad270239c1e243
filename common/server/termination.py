"""How a process ends: the main thread waits for SIGTERM or SIGINT, and then ends the process itself."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

_PIPE_SIZE: Final = 65_536  # bytes

_last: list[Callable[[], object]] = []


class Termination:
    """Whether this process was asked to stop. Create and await it on the main thread; it replaces the signal handlers.

    The kernel may hand a signal to any thread, while Python runs handlers on the main thread only, once that wakes. So
    the main thread waits for the pipe that Python writes to on whichever thread the signal came.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._woken, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)  # a full pipe wakes as well
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def is_set(self) -> bool:
        """Return whether the process was asked to stop."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the process is asked to stop, at most *timeout* seconds; return whether it was."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._is_set:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._woken], [], [], left)[0]:
                break
            os.read(self._woken, _PIPE_SIZE)  # the handler runs on the way to the next look
        return self._is_set

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_set = True


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
        stream.flush()
    os._exit(code)
