"""Pilot on a terminal of its own that it redraws: what is on the screen now, and keys to press."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tests.kit import waiting
from tests.kit.patience import at_most
from tests.kit.transcript import ON_A_TERMINAL, ROOT, make_environ

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"  # the alternate screen
SHOW_CURSOR = "\x1b[?25h"
_HOME = "\x1b[H"  # begins a frame
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """Runs one command line of pilot; ends it with the block, however that ends."""

    def __init__(
        self, *arguments: str, environ: Mapping[str, str] | None = None, columns: int = 80, lines: int = 40
    ) -> None:
        self._leader, self._follower = pty.openpty()
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(self._follower)
        self.seen = ""
        self._from = 0
        kept = {name: value for name, value in make_environ().items() if name not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, sys.executable, "-m", "pilot", *arguments],
            cwd=ROOT,
            env=kept | {"TERM": "xterm-256color"} | dict(environ or {}),
            start_new_session=True,
            stdin=self._follower,
            stdout=self._follower,
            stderr=self._follower,
        )
        self._reader = threading.Thread(target=self._read, name="screen", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if exc is not None:
            exc.add_note(f"on the screen:\n{self.text}")
        self._process.kill()
        self._process.wait()
        os.close(self._follower)
        self._reader.join(at_most(5))
        os.close(self._leader)

    @property
    def text(self) -> str:
        """What is on the screen, without colours: the last whole frame."""
        frames = self.seen[self._from :].split(_HOME)
        frame = frames[-1] if len(frames) < 3 or len(frames[-1]) >= len(frames[-2]) / 2 else frames[-2]
        return _CONTROL.sub("", frame).replace("\r", "")

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def forget(self) -> None:
        """Count only what is drawn from now on as being on the screen."""
        self._from = len(self.seen)

    def press(self, keys: str) -> None:
        """Type *keys*, as they are."""
        os.write(self._leader, keys.encode())

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal to pilot."""
        self._process.send_signal(signum)

    def wait(self, *wanted: str, seconds: float = 30.0) -> str:
        """Wait until all of *wanted* stand on the screen at once, and return what is on it."""

        def find() -> str:
            text = self.text
            return text if all(one in text for one in wanted) else ""

        return waiting.wait_until(find, what=f"{wanted} on the screen", seconds=seconds)

    def wait_end(self) -> int:
        """Wait until pilot has ended, and return its exit code."""
        code = self._process.wait(at_most(20))
        waiting.wait_until(lambda: LEAVE in self.seen or ENTER not in self.seen, what="the end of the output")
        return code

    def find_modes(self) -> list[Any]:
        """Return how the terminal treats keys and output now, as `modes` says for before."""
        return termios.tcgetattr(self._follower)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while read := os.read(self._leader, 65536):
                self.seen += read.decode(errors="replace")
