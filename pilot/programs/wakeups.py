"""What wakes the thread that watches a command: signals, and news from other threads."""

import contextlib
import select
import signal
import socket
from collections.abc import Iterable
from types import FrameType
from typing import Any, Final, Self

NEWS: Final = 0  # no signal has this number

_MOST_BYTES = 65_536  # at once


class Wakeups:
    """The signals that came, and news, in their order. Enter it on the main thread, which alone may `wait`.

    While it is entered, *signals* have no other effect. One that was ignored before stays so: that is how nohup asks.
    """

    def __init__(self, signals: Iterable[signal.Signals | int]) -> None:
        self._signals = tuple(signals)
        self._before: dict[int, Any] = {}
        self._wakes: socket.socket | None = None

    def __enter__(self) -> Self:
        self._woken, self._wakes = socket.socketpair()
        self._woken.setblocking(False)
        self._wakes.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        for number in self._signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, _do_nothing)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        if self._wakes is not None:
            self._wakes.close()
        self._woken.close()

    def tell(self) -> None:
        """Wake the main thread with news, from any thread; before the entry and after the exit nobody is told."""
        with contextlib.suppress(OSError):  # closed, or full of what will wake it as well
            if self._wakes is not None:
                self._wakes.send(bytes([NEWS]))

    def wait(self, seconds: float | None) -> bytes:
        """Return what came, each a byte: the number of a signal, or NEWS. Empty after so many seconds without any."""
        if not select.select([self._woken], [], [], seconds)[0]:
            return b""
        return self._woken.recv(_MOST_BYTES)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Be a handler; Python has written the number to the pipe."""
