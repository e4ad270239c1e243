"""Templates of files with secrets in them. All of the language:

| in the template | in the file |
|---|---|
| `{{ PATH#FIELD }}` | the value, byte for byte |
| `{{ PATH#FIELD | json }}` | the value as a JSON string with its quotes; it has to be UTF-8 |
| `{{ PATH#FIELD | base64 }}` | the value in base64 |
| `{{"{{"}}` | `{{` |
| anything else | itself |

What is put in is not read again, so a value cannot refer to another one. Nothing is evaluated.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pilot.errors import PilotError, UsageError
from pilot.programs.reference import FORM, Reference, parse_reference

_OPEN, _CLOSE = b"{{", b"}}"
_LITERAL = '"{{"'


def _to_json(value: bytes) -> bytes:
    return json.dumps(value.decode(), ensure_ascii=False).encode()


_FILTERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda value: value,
    "json": _to_json,
    "base64": base64.b64encode,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value goes."""

    reference: Reference
    filter: str


@dataclass(frozen=True, slots=True)
class Template:
    """The parts of a file, in their order: bytes as they are, and places for values."""

    name: str
    parts: tuple[bytes | Place, ...]

    @property
    def references(self) -> frozenset[Reference]:
        """What it refers to."""
        return frozenset(part.reference for part in self.parts if isinstance(part, Place))

    def render(self, values: Mapping[Reference, bytes]) -> bytes:
        """Return the content of the file.

        Raises:
            PilotError: A value that goes into JSON is not UTF-8.
        """
        return b"".join(part if isinstance(part, bytes) else self._render_place(part, values) for part in self.parts)

    def _render_place(self, place: Place, values: Mapping[Reference, bytes]) -> bytes:
        try:
            return _FILTERS[place.filter](values[place.reference])
        except UnicodeDecodeError:
            # Without its cause, which would carry the value.
            raise PilotError(
                f"{self.name}: the value of {place.reference} is not UTF-8, want text for {place.filter}",
                "base64 takes every value",
            ) from None


def parse_template(content: bytes, *, name: str) -> Template:
    """Read a template; *name* is that of its file.

    Raises:
        UsageError: A `{{` begins nothing that the language has; the message names the line.
    """
    parts: list[bytes | Place] = []
    position = 0
    while (begin := content.find(_OPEN, position)) >= 0:
        line = content.count(b"\n", 0, begin) + 1
        where = f"{name} line {line}"
        end = content.find(_CLOSE, begin)
        inside = content[begin + len(_OPEN) : end]
        if end < 0 or b"\n" in inside:
            raise UsageError(f"{where}: got {{{{ without }}}} on the same line", f"{{{{{_LITERAL}}}}} stands for {{{{")
        parts += [content[position:begin], _parse_place(inside, where)]
        position = end + len(_CLOSE)
    return Template(name, (*parts, content[position:]))


def _parse_place(inside: bytes, where: str) -> bytes | Place:
    text = inside.decode(errors="backslashreplace").strip()
    if text == _LITERAL:
        return _OPEN
    reference, bar, name = (word.strip() for word in text.partition("|"))
    if (bar and not name) or name not in _FILTERS:
        raise UsageError(f"{where}: got the filter {name!r}, want json or base64")
    if not reference:
        raise UsageError(f"{where}: got nothing in {{{{ }}}}, want {FORM}")
    return Place(parse_reference(reference, of=where), name)
