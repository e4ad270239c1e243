"""Text that fits a terminal: broken between words, never within a command that somebody may copy."""

import os
import re
from collections.abc import Callable
from typing import TextIO

_NARROWEST = 10  # columns; in fewer nothing can be read
_WORD = re.compile(r"(?:(?<![^\s(])'[^'\n]+'\S*)|\S+")  # what is quoted, such as a command, stays together
_LEAD = re.compile(r"\s*(?:- )?")  # of a line: its indent, and the dash of a list


def count_columns(stream: TextIO) -> int | None:
    """Return how wide the terminal behind *stream* is; None: it is no terminal, or does not say. COLUMNS wins."""
    return _read_size("COLUMNS", stream, lambda size: size.columns)


def count_lines(stream: TextIO) -> int | None:
    """Return how high the terminal behind *stream* is; None: it is no terminal, or does not say. LINES wins."""
    return _read_size("LINES", stream, lambda size: size.lines)


def _read_size(variable: str, stream: TextIO, choose: Callable[[os.terminal_size], int]) -> int | None:
    if not stream.isatty():
        return None
    told = os.environ.get(variable, "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return choose(os.get_terminal_size(stream.fileno())) or None
    except OSError:
        return None


def wrap(text: str, columns: int | None, *, folds: bool = False) -> list[str]:
    """Return the lines of *text*, each in at most *columns*; None: as they are. Lines that fit are left alone.

    What follows in a broken line is indented as the line is. Words that do not fit are left whole, for the terminal to
    break, unless *folds*.
    """
    lines = text.split("\n")
    if columns is None:
        return lines
    width = max(columns, _NARROWEST)
    return [part for line in lines for part in ([line] if len(line) <= width else _break(line, width, folds=folds))]


def _break(line: str, width: int, *, folds: bool) -> list[str]:
    match = _LEAD.match(line)
    lead = match[0] if match else ""
    room = max(width - len(lead), _NARROWEST)
    lines: list[str] = []
    for word in _WORD.findall(line[len(lead) :]):
        pieces = [word[at : at + room] for at in range(0, len(word), room)] if folds else [word]
        if lines and len(lines[-1]) + 1 + len(pieces[0]) <= room and len(pieces) == 1:
            lines[-1] += f" {word}"
        else:
            lines += pieces
    margin = " " * len(lead)
    return [(margin if number else lead) + part for number, part in enumerate(lines)]
