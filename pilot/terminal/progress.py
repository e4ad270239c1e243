"""A long wait as people see it: one line that is redrawn on a terminal, and a plain line now and then elsewhere."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

_CLEAR_LINE: Final = "\r\x1b[K"
_PARTS: Final = " ▏▎▍▌▋▊▉█"  # of one column, in eighths
_BAR_WIDTH: Final = 20  # columns
_PLAIN_S: Final = 10.0  # between plain lines
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400  # seconds


def render_bar(share: float) -> str:
    """Return a bar of 20 columns that is filled to *share*, 0 to 1."""
    eighths = math.floor(min(max(share, 0.0), 1.0) * _BAR_WIDTH * 8)
    whole, part = divmod(eighths, 8)
    return (_PARTS[8] * whole + (_PARTS[part] if part else "")).ljust(_BAR_WIDTH)


def show_duration(seconds: float) -> str:
    """Return a duration in its two largest units; "unknown" if it is none."""
    if not (math.isfinite(seconds) and seconds >= 0):
        return "unknown"
    whole = math.ceil(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY:,} d {whole % _DAY // _HOUR} h"


class ProgressLine:
    """How far something is, on *stream*. What is shown is text of pilot's own, without line ends."""

    def __init__(
        self,
        *,
        is_shown: bool = True,
        stream: TextIO | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_shown = is_shown
        self._stream = stream if stream is not None else sys.stdout
        self._monotonic = monotonic
        self._is_open = False
        self._shown = ""
        self._next_at = -math.inf  # of a plain line

    def show(self, text: str) -> None:
        """Show how far it is now; elsewhere than on a terminal, if that is news and the last line is 10 s old."""
        if not self._is_shown or text == self._shown:
            return
        if self._stream.isatty():
            columns = shutil.get_terminal_size().columns
            self._write(_CLEAR_LINE + text[: columns - 1])
            self._is_open = True
        elif self._monotonic() < self._next_at:
            return
        else:
            self._write(f"{text.rstrip()}\n")
            self._next_at = self._monotonic() + _PLAIN_S
        self._shown = text

    def finish(self, text: str) -> None:
        """Show the end of it, in the place of the line."""
        if self._is_shown:
            self._write(f"{_CLEAR_LINE if self._is_open else ''}{text}\n")
        self._is_open = False

    def end_line(self) -> None:
        """Begin a new line, so that a hint or an error does not stand in this one."""
        if self._is_open:
            self._write("\n")
            self._is_open, self._shown = False, ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
