"""Values of `pilot secret put` and `patch`: from files, standard input or hidden prompts, never from the command line.

- `FIELD` alone asks for it at a hidden prompt; `FIELD=@FILE` and `FIELD=-` read a file and standard input.
- `@FILE` and `-` alone mean the field `value`. Standard input that is a terminal is asked as well, and hidden.
- What is read is used as it is. A final newline of standard input warns, since most shells put it there.
- An empty value is asked about, or refused where nobody can be asked.
"""

import enum
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pilot.errors import PilotError, UsageError
from pilot.terminal.field_files import FieldsError

DEFAULT_FIELD = "value"
MAX_VALUE_BYTES = 1024 * 1024  # 1 MiB; the nexus has the same limit for all fields together
_MAX_DOCUMENT_BYTES = 8 * MAX_VALUE_BYTES  # of a file with several fields: what is escaped is longer than its value
_LINE_LIMIT = 4095 if sys.platform == "linux" else 1023  # bytes; a terminal silently drops the rest of a longer line
_FIELD = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_STDIN_NAME = "standard input"


class Given(enum.Enum):
    """Where a field comes from that is in no file."""

    STDIN = enum.auto()
    PROMPT = enum.auto()


class Newline(enum.Enum):
    """What becomes of a newline at the end of a value."""

    WARN = enum.auto()  # kept; of standard input with a warning
    KEEP = enum.auto()
    STRIP = enum.auto()


@dataclass(frozen=True, slots=True)
class Source:
    """Where one field comes from."""

    field: str
    origin: Path | Given


@dataclass(frozen=True, slots=True)
class Document:
    """A file with several fields, or standard input, and how it is read."""

    origin: Path | Given
    parse: Callable[[bytes], Mapping[str, bytes]]  # raises FieldsError


class Asked(Protocol):
    """Whom to ask: `pilot.terminal.terminal.Terminal`."""

    def is_there(self) -> bool: ...

    def check(self, hint: str) -> None: ...

    def ask(self, prompt: str) -> str: ...

    def ask_hidden(self, prompt: str) -> str: ...


def parse_sources(arguments: Sequence[str]) -> list[Source]:
    """Read `FIELD`, `FIELD=@FILE`, `FIELD=-`, `@FILE` and `-`.

    Raises:
        UsageError: A value is on the command line, or a field is given twice. The message repeats nothing that may be a
            secret, and that includes what looks like the name of a field.
    """
    sources = [_parse(position, argument) for position, argument in enumerate(arguments, start=1)]
    for position, source in enumerate(sources, start=1):
        for earlier, other in enumerate(sources[: position - 1], start=1):
            if source.field == other.field:
                raise UsageError(f"value {position}: names the same field as value {earlier}")
    return sources


def name_origin(file: str) -> Path | Given:
    """Return the origin that an option names: a file, or standard input as `-`."""
    return Given.STDIN if file == "-" else Path(file)


class ValueReader:
    """Reads fields. *stdin* is asked, and not read, when it *is_terminal*."""

    def __init__(
        self,
        terminal: Asked,
        *,
        stdin: BinaryIO,
        is_terminal: bool,
        newline: Newline = Newline.WARN,
        allows_empty: bool = False,
    ) -> None:
        self._terminal = terminal
        self._stdin = stdin
        self._is_terminal = is_terminal
        self._newline = newline
        self._allows_empty = allows_empty

    def read(self, sources: Sequence[Source], documents: Sequence[Document] = ()) -> dict[str, bytes]:
        """Return the fields of all *sources* and *documents*.

        Raises:
            UsageError: Standard input would be read twice, a file cannot be read, a field is given twice, a value is
                too long or empty, or two answers differ. Nothing that may be a value is repeated.
        """
        origins = [source.origin for source in sources] + [document.origin for document in documents]
        if origins.count(Given.STDIN) > 1:
            raise UsageError("standard input is given twice", "put all fields but one into files: FIELD=@FILE")
        if any(self._is_asked(source) for source in sources):
            self._terminal.check("name a file (FIELD=@FILE) or standard input (FIELD=-)")
        fields: dict[str, bytes] = {}
        for document in documents:
            for field, value in self._parse(document).items():
                _add(fields, field, value, document.origin)
        for source in sources:
            _add(fields, source.field, self._read_one(source), source.origin)
        return fields

    def _is_asked(self, source: Source) -> bool:
        return source.origin is Given.PROMPT or (source.origin is Given.STDIN and self._is_terminal)

    def _read_one(self, source: Source) -> bytes:
        if self._is_asked(source):
            value = _ask_twice(self._terminal, source.field)
        else:
            value = self._end(_read(source.origin, self._stdin, MAX_VALUE_BYTES), source.origin)
        self._check_empty(value, f"the value of {source.field}" if self._is_asked(source) else _name(source.origin))
        return value

    def _parse(self, document: Document) -> Mapping[str, bytes]:
        name = _name(document.origin)
        content = _read(document.origin, self._stdin, _MAX_DOCUMENT_BYTES)
        try:
            fields = document.parse(content)
        except FieldsError as exc:
            raise UsageError(f"{name}: {exc}") from exc
        for number, value in enumerate(fields.values(), start=1):
            self._check_empty(value, f"{name}: field {number}")
        return fields

    def _end(self, value: bytes, origin: Path | Given) -> bytes:
        if not value.endswith(b"\n"):
            return value
        if self._newline is Newline.STRIP:
            return value[:-2] if value.endswith(b"\r\n") else value[:-1]
        if self._newline is Newline.WARN and origin is Given.STDIN:
            print(
                "pilot: warning: standard input ends with a newline, which becomes part of the value; --strip-newline "
                "takes it off, --keep-newline keeps it without this warning",
                file=sys.stderr,
            )
        return value

    def _check_empty(self, value: bytes, name: str) -> None:
        if value or self._allows_empty:
            return
        if not self._terminal.is_there():
            raise UsageError(f"{name}: is empty", "--allow-empty writes an empty value")
        if self._terminal.ask(f"{name} is empty; write it so? [yes/no]: ").strip().lower() != "yes":
            raise PilotError("not confirmed: nothing was written")


def _add(fields: dict[str, bytes], field: str, value: bytes, origin: Path | Given) -> None:
    if field in fields:
        raise UsageError(f"{_name(origin)}: gives a field that another file or value gives too")
    fields[field] = value


def _parse(position: int, argument: str) -> Source:
    if _FIELD.fullmatch(argument) and argument != "-":
        return Source(argument, Given.PROMPT)
    field, equals, origin = argument.partition("=") if not argument.startswith("@") else (DEFAULT_FIELD, "=", argument)
    if not equals:
        field, origin = DEFAULT_FIELD, argument
    if origin == "-":
        return _checked(field, Given.STDIN)
    if origin.startswith("@") and len(origin) > 1:
        return _checked(field, Path(origin[1:]))
    # Not even what looks like a field name is shown: a value may contain '=', or end with it as base64 does.
    raise UsageError(
        f"value {position}: a value on the command line would stay in the shell's history and in the list of processes",
        "use FIELD=@FILE or FIELD=- (standard input), or FIELD alone to be asked",
    )


def _checked(field: str, origin: Path | Given) -> Source:
    if not field:
        raise UsageError("a field has no name", "use FIELD=@FILE, or @FILE for the field 'value'")
    return Source(field, origin)


def _name(origin: Path | Given) -> str:
    return str(origin) if isinstance(origin, Path) else _STDIN_NAME


def _read(origin: Path | Given, stdin: BinaryIO, limit: int) -> bytes:
    try:
        with origin.open("rb") if isinstance(origin, Path) else nullcontext(stdin) as file:
            value = file.read(limit + 1)
    except OSError as exc:
        raise UsageError(f"{_name(origin)}: {exc.strerror}") from exc
    if len(value) > limit:
        raise UsageError(f"{_name(origin)}: got more than {limit} bytes, want at most {limit >> 20} MiB")
    return value


def _ask_twice(terminal: Asked, field: str) -> bytes:
    value = terminal.ask_hidden(f"{field}: ")
    if len(value.encode()) >= _LINE_LIMIT:
        raise UsageError("the value may be cut off: a terminal takes no longer line", "put it from a file: FIELD=@FILE")
    if value and terminal.ask_hidden("once more: ") != value:
        raise UsageError("the two values differ; nothing was written")
    return value.encode()
