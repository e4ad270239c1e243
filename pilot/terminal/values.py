"""Values of `pilot secret put`: from files, standard input or a hidden prompt, never from the command line.

`FIELD=@FILE` and `FIELD=-` name a field; `@FILE` and `-` alone mean the field `value`; without any of them a prompt
asks for it. The content of a file or of standard input is used as it is, including any newline at its end.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pilot.errors import UsageError

DEFAULT_FIELD = "value"
_LINE_LIMIT = 4095 if sys.platform == "linux" else 1023  # bytes; a terminal silently drops the rest of a longer line
MAX_VALUE_BYTES = 1024 * 1024  # 1 MiB; the nexus has the same limit for all fields together


@dataclass(frozen=True, slots=True)
class Source:
    """Where one field comes from."""

    field: str
    file: Path | None  # None: standard input


def parse_sources(arguments: Sequence[str]) -> list[Source]:
    """Read `FIELD=@FILE`, `FIELD=-`, `@FILE` and `-`.

    Raises:
        UsageError: A value is on the command line, a field is given twice, or standard input would be read twice.
            The message repeats nothing that may be a secret, and that includes what looks like the name of a field.
    """
    sources = [_parse(position, argument) for position, argument in enumerate(arguments, start=1)]
    for position, source in enumerate(sources, start=1):
        for earlier, other in enumerate(sources[: position - 1], start=1):
            if source.field == other.field:
                raise UsageError(f"value {position}: names the same field as value {earlier}")
    if sum(source.file is None for source in sources) > 1:
        raise UsageError("standard input is given twice", "put all fields but one into files: FIELD=@FILE")
    return sources


def read_values(sources: Sequence[Source], *, stdin: BinaryIO, ask: Callable[[str], str]) -> dict[str, bytes]:
    """Read the fields; without sources, *ask* (a hidden prompt) twice for the field `value`.

    Raises:
        UsageError: A file cannot be read, a value is too long, or the two answers differ.
    """
    if not sources:
        return {DEFAULT_FIELD: _ask_twice(ask)}
    return {source.field: _read(source, stdin) for source in sources}


def _parse(position: int, argument: str) -> Source:
    field, equals, origin = argument.partition("=") if not argument.startswith("@") else (DEFAULT_FIELD, "=", argument)
    if not equals:
        field, origin = DEFAULT_FIELD, argument
    if origin == "-":
        return _checked(field, None)
    if origin.startswith("@") and len(origin) > 1:
        return _checked(field, Path(origin[1:]))
    # Not even what looks like a field name is shown: a value may contain '=', or end with it as base64 does.
    raise UsageError(
        f"value {position}: a value on the command line would stay in the shell's history and in the list of processes",
        "use FIELD=@FILE or FIELD=- (standard input), or name no field to be asked",
    )


def _checked(field: str, file: Path | None) -> Source:
    if not field:
        raise UsageError("a field has no name", "use FIELD=@FILE, or @FILE for the field 'value'")
    return Source(field, file)


def _read(source: Source, stdin: BinaryIO) -> bytes:
    origin = source.file or "standard input"
    try:
        with nullcontext(stdin) if source.file is None else source.file.open("rb") as file:
            value = file.read(MAX_VALUE_BYTES + 1)
    except OSError as exc:
        raise UsageError(f"{origin}: {exc.strerror}") from exc
    if len(value) > MAX_VALUE_BYTES:
        raise UsageError(f"{origin}: got more than {MAX_VALUE_BYTES} bytes, want at most 1 MiB")
    return value


def _ask_twice(ask: Callable[[str], str]) -> bytes:
    value = ask("value: ")
    if len(value.encode()) >= _LINE_LIMIT:
        raise UsageError("the value may be cut off: a terminal takes no longer line", "put it from a file: @FILE")
    if not value:
        raise UsageError("got an empty value", "an empty value can be put from a file: @/dev/null")
    if ask("once more: ") != value:
        raise UsageError("the two values differ; nothing was written")
    return value.encode()
