"""How results are shown: tables for people, JSON for programs, raw bytes for pipes."""

import enum
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from pilot.errors import PilotError
from pilot.plain import clean, escape_json
from pilot.terminal.wrapping import count_columns, wrap

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_READABLE: Final = 20  # columns that a long cell needs at least, so that a moment fits
_FACTS_GAP: Final = 2  # columns
_TABLE_GAP: Final = 3  # columns, rich's
_HEIGHT: Final = 25  # lines; a table is printed whole, however long it is


class Output(enum.StrEnum):
    """Form of the output."""

    TABLE = "table"
    JSON = "json"
    TOML = "toml"  # of the few commands that say so


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(escape_json(json.dumps(document, indent=2, ensure_ascii=False)))


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and values in two columns; on a terminal, long values wrap in theirs."""
    _print_facts(facts, count_columns(sys.stdout))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their columns, at full width unless a terminal limits it.

    Long cells are folded where that leaves each column wide enough to read; else each row becomes facts of its own.
    """
    width = count_columns(sys.stdout)
    cells = [[clean(cell) for cell in row] for row in rows]
    if width is not None and not _fits(columns, cells, width):
        _print_rows(columns, cells, width)
        return
    # Imported here: only tables need it.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    if width is not None:
        # Without a height rich takes a terminal that it calls dumb to have 80 columns.
        Console(highlight=False, width=width, height=_HEIGHT).print(table)
        return
    console = Console(width=1000, highlight=False)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


def _fits(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return sum(min(one, _READABLE) for one in widths) + _TABLE_GAP * (len(widths) - 1) <= width


def _print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> None:
    for number, row in enumerate(rows):
        if number:
            print()
        _print_facts({name: cell for name, cell in zip(columns, row, strict=True) if cell}, width)


def _print_facts(facts: Mapping[str, str], columns: int | None) -> None:
    width = max(map(len, facts), default=0)
    room = None if columns is None else columns - width - _FACTS_GAP
    for name, value in facts.items():
        first, *others = wrap(clean(value), room, folds=True)
        print(f"{name:<{width}}  {first}".rstrip())
        margin = "" if room is None else " " * (width + _FACTS_GAP)
        for line in others:
            print(f"{margin}{line}".rstrip())


def write_raw(value: bytes) -> None:
    """Write bytes to stdout as they are; to a terminal only text, followed by a newline.

    Raises:
        PilotError: The value is binary and stdout is a terminal.
    """
    if not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
        return
    text = to_text(value)
    if text is None or clean(text) != text:
        raise PilotError("the value is binary and stdout is a terminal", "redirect it to a file, or use -o json")
    print(text, end="" if text.endswith("\n") else "\n")


def to_text(value: bytes) -> str | None:
    """Return *value* as text, None when it is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def show_value(value: bytes) -> str:
    """Return a value for a table: text without its final line end, or the number of bytes."""
    text = to_text(value)
    return text.rstrip("\n") if text is not None and clean(text) == text else f"<{len(value)} bytes>"


def show_timestamp(timestamp: "Timestamp") -> str:
    """Return a moment that a nexus told, in UTC; "unknown" when it is none."""
    try:
        return show_time(timestamp.ToDatetime())
    except (ValueError, OverflowError):
        return "unknown"


def show_name(name_of: Callable[[Any], str], value: int, prefix: str) -> str:
    """Return the name of an enum's value, in lower case without *prefix*; the number if only a newer nexus names it."""
    try:
        return name_of(value).removeprefix(prefix).lower()
    except ValueError:
        return f"unknown ({value})"


def show_time(moment: datetime) -> str:
    """Return a moment in UTC, to the second."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def group_hex(data: bytes) -> str:
    """Return bytes as hex in groups of four digits, for people to compare."""
    text = data.hex()
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))
