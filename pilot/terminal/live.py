"""A screen of its own that is redrawn until somebody ends it; the terminal is then as it was before."""

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live

_TICK_S: Final = 0.1  # how long a key, or a new size of the terminal, may go unnoticed
_REDRAW_S: Final = 1.0  # ages grow
_END_KEYS: Final = b"qQ\x04"  # and Ctrl-D

Draw = Callable[[int], RenderableType]  # for a number of columns


def open_console() -> Console:
    """Return the console of standard output. COLUMNS and LINES win, unless they say nothing, as 0 does."""
    silent = {name for name in ("COLUMNS", "LINES") if not os.environ.get(name, "").strip("0")}
    return Console(highlight=False, _environ={name: value for name, value in os.environ.items() if name not in silent})


def can_be_live(console: Console) -> bool:
    """Say whether there is a terminal that can be redrawn."""
    return console.is_terminal and not console.is_dumb_terminal


def show_live(draw: Draw, find_change: Callable[[], object], console: Console) -> None:
    """Draw whenever *find_change* gives something else, and each second; return at q or Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt), _keys() as wait_key, _quiet():
        live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        with live:
            shown: object = None
            drawn_at = 0.0
            while True:
                now = time.monotonic()
                seen = find_change(), console.size
                if seen != shown or now - drawn_at >= _REDRAW_S:
                    shown, drawn_at = seen, now
                    live.update(draw(console.width), refresh=True)
                if wait_key():
                    return


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[], bool]]:
    """Yield a function that waits a moment for a key, and says whether it ends the screen. Keys are not shown."""
    # Imported here: it exists on Unix only.
    import termios

    if not sys.stdin.isatty():
        yield _wait_without_keys
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    by_key = termios.tcgetattr(fd)
    by_key[3] &= ~(termios.ECHO | termios.ICANON)
    by_key[6][termios.VMIN], by_key[6][termios.VTIME] = 1, 0

    def wait() -> bool:
        if not select.select([fd], [], [], _TICK_S)[0]:
            return False
        try:
            key = os.read(fd, 1)
        except OSError:  # the terminal is gone
            return True
        return key == b"" or key in _END_KEYS

    termios.tcsetattr(fd, termios.TCSAFLUSH, by_key)
    try:
        yield wait
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def _wait_without_keys() -> bool:
    select.select([], [], [], _TICK_S)
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings off the screen, and the shell as well: a stopped process could not give the screen back."""
    before, stopping = logging.root.manager.disable, signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        signal.signal(signal.SIGTSTP, stopping)
