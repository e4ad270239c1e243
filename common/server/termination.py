"""How a process ends: SIGTERM and SIGINT as something that the main thread waits for, and the end itself."""

import os
import queue
import signal
import sys
from types import FrameType
from typing import NoReturn


class Termination:
    """Whether this process was asked to stop. Made and waited for on the main thread; replaces the signals' handlers.

    A `threading.Event` would not do: a handler that sets it while the main thread is inside the same event's lock
    waits for itself.
    """

    def __init__(self) -> None:
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # its put may interrupt its get
        self._is_set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def is_set(self) -> bool:
        """Return whether the process was asked to stop."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the process is asked to stop, at most *timeout* seconds; return whether it was."""
        if not self._is_set:
            try:
                self._signals.get(timeout=timeout)
            except queue.Empty:
                pass
        return self._is_set

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_set = True
        self._signals.put(number)


def end_process(code: int) -> NoReturn:
    """End with what was printed, once everything is closed; not by way of the interpreter's own end.

    That waits for workers, also for those that hang with a disk; and for ever for a lock of gRPC, where the thread that
    had it was stopped by that same end.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: was closed at the start
        stream.flush()
    os._exit(code)
