"""How a process ends: the main thread waits for SIGTERM or SIGINT, and then ends the process itself."""

import os
import queue
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

_last: list[Callable[[], object]] = []


class Termination:
    """Whether this process was asked to stop. Create and await it on the main thread; it replaces the signal handlers.

    A `threading.Event` would not do: a handler that sets it while the main thread holds the event's lock waits for
    itself.
    """

    def __init__(self) -> None:
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # reentrant: its put may interrupt its get
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
