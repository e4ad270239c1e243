"""The terminal: questions without echo, and a separate screen for what only one person may see."""

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from pilot.errors import UsageError
from pilot.terminal.wrapping import count_columns, count_lines, wrap

# The alternate screen, which a terminal discards on leaving; cleared with its scroll-back on entering and leaving.
_ENTER = "\x1b[?1049h\x1b[3J\x1b[2J\x1b[H"
_LEAVE = "\x1b[3J\x1b[2J\x1b[H\x1b[?1049l"
_CLEAR_LINE = "\r\x1b[K"
_END_OF_INPUT = b"\x04"  # Ctrl-D
_GLANCE_S = 0.2  # how long a signal may go unnoticed


class Terminal:
    """Asks on *source* and shows on *screen*, which are terminals."""

    def __init__(self, source: TextIO | None = None, screen: TextIO | None = None) -> None:
        self._source = source if source is not None else sys.stdin
        self._screen = screen if screen is not None else sys.stderr

    def is_there(self) -> bool:
        """Whether there is a person to ask: both standard input and the screen are a terminal."""
        return self._source.isatty() and self._screen.isatty()

    def check(self, hint: str) -> None:
        """Check that there is a person to ask.

        Raises:
            UsageError: Standard input or output is not a terminal.
        """
        if not self.is_there():
            raise UsageError("there is no terminal to ask on", hint)

    @property
    def columns(self) -> int | None:
        """How wide the screen is; None: it does not say."""
        return count_columns(self._screen)

    @property
    def lines(self) -> int | None:
        """How high the screen is; None: it does not say."""
        return count_lines(self._screen)

    def say(self, text: str) -> None:
        """Show lines, wrapped to the screen."""
        self._screen.write("\n".join(wrap(text, self.columns)) + "\n")
        self._screen.flush()

    def ask(self, prompt: str) -> str:
        """Ask for a line.

        Raises:
            EOFError: The input ended.
        """
        # The blank at its end, before what is typed, is not the wrapping's.
        text = prompt.rstrip(" ")
        self._screen.write("\n".join(wrap(text, self.columns)) + prompt[len(text) :])
        self._screen.flush()
        line = self._source.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def ask_hidden(self, prompt: str) -> str:
        """Ask for a line that is not shown. Works on the given streams, where `getpass` takes /dev/tty.

        Raises:
            EOFError: The input ended.
        """
        # Imported here: it exists on Unix only, and few commands ask.
        import termios

        fd = self._source.fileno()
        before = termios.tcgetattr(fd)
        hidden = termios.tcgetattr(fd)
        hidden[3] &= ~termios.ECHO
        termios.tcsetattr(fd, termios.TCSAFLUSH, hidden)
        try:
            return self.ask(prompt)
        finally:
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)
            self._screen.write("\n")
            self._screen.flush()

    @contextmanager
    def hidden_keys(self) -> Iterator[Callable[[], str]]:
        """Yield a function that waits for one key and returns it. What is typed is not shown; Ctrl-C works as usual.

        The function raises EOFError when the input has ended. Keys left over at the end are discarded.
        """
        import termios

        fd = self._source.fileno()
        before = termios.tcgetattr(fd)
        by_key = termios.tcgetattr(fd)
        by_key[3] &= ~(termios.ECHO | termios.ICANON)
        by_key[6][termios.VMIN], by_key[6][termios.VTIME] = 1, 0

        def read() -> str:
            # Not through the stream, which would keep what it reads ahead. The wait is in short steps: otherwise a
            # Ctrl-C just before the read would be noticed only at the next key.
            try:
                while not select.select([fd], [], [], _GLANCE_S)[0]:
                    pass
                key = os.read(fd, 1)
            except OSError:  # the terminal is gone
                key = b""
            if key in (b"", _END_OF_INPUT):
                raise EOFError
            return key.decode("ascii", errors="replace")

        termios.tcsetattr(fd, termios.TCSAFLUSH, by_key)
        try:
            yield read
        finally:
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)

    def show_on_line(self, text: str) -> None:
        """Replace the line that the cursor is on with *text*."""
        self._screen.write(_CLEAR_LINE + text)
        self._screen.flush()

    @contextmanager
    def alone(self, text: str) -> Iterator[None]:
        """Show *text* on a cleared separate screen while the block runs, and clear that screen afterwards."""
        self._screen.write(_ENTER + text + "\n")
        self._screen.flush()
        try:
            yield
        finally:
            self._screen.write(_LEAVE)
            self._screen.flush()
