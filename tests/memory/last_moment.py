"""Catches a process at its end: its work is done, every thread but the first is gone, its memory is still there.

It uses ptrace(2), which can stop a process in exit_group. Only the thread that seized a process may wait for it.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator

from tests.kit.patience import Deadline

_SEIZE, _CONT, _DETACH = 0x4206, 7, 17
_TRACE_EXIT = 0x40  # option: stop when it exits
_EVENT_EXIT = 6
_WALL = 0x40000000
_WAIT_S = 30.0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@contextlib.contextmanager
def caught_at_exit(pid: int, signum: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """End a child process by a signal, and hold it at its last moment while the block runs."""
    _ptrace(_SEIZE, pid, _TRACE_EXIT)
    os.kill(pid, signum)
    _wait_for_exit(pid)
    try:
        yield
    finally:
        _ptrace(_DETACH, pid, 0)


def _wait_for_exit(pid: int) -> None:
    deadline, pause = Deadline(_WAIT_S), threading.Event()
    while not deadline.is_over():
        found, status = os.waitpid(pid, os.WNOHANG | _WALL)
        if not found:
            pause.wait(0.005)
            continue
        assert os.WIFSTOPPED(status), f"process {pid} ended before it could be caught: {status:#x}"
        if status >> 16 == _EVENT_EXIT:
            return
        # It must still get the signal that it was stopped for.
        _ptrace(_CONT, pid, 0 if status >> 16 else os.WSTOPSIG(status))
    raise AssertionError(f"process {pid} does not end within {_WAIT_S:g} s")


def _ptrace(request: int, pid: int, data: int) -> None:
    if _libc.ptrace(request, pid, None, data) != 0:
        failure = ctypes.get_errno()
        raise OSError(failure, f"ptrace {request} of {pid}: {os.strerror(failure)}")
