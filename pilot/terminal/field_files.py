"""Files with several fields: a JSON object of strings, and lines of KEY=VALUE. No error shows anything of a value.

Rules of an env file, as `docker run --env-file` reads it, but for what is ambiguous:

1. It is UTF-8; lines end with a newline, or with a carriage return and a newline. A byte order mark is dropped.
2. Blanks at the beginning of a line are dropped. A line without anything more, or with `#` first, is skipped.
3. Every other line is `KEY=VALUE`. The value is all that follows the first `=`, as it is: blanks, quotes, backslashes,
   `#` and `$` are part of it.
4. A key without `=`, which docker takes from the environment, is refused, and so is a key given twice.
5. A key is the name of a field as it stands: 1 to 64 of `[A-Za-z0-9._-]`.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

_BLANKS = " \t"
_FIELD = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class FieldsError(ValueError):
    """The file breaks a rule. The message says where, and repeats nothing."""


def parse_json(content: bytes) -> dict[str, bytes]:
    """Read a JSON object whose values are strings.

    Raises:
        FieldsError: It is something else, or has a key twice.
    """
    try:
        document = json.loads(content.decode(), object_pairs_hook=_to_pairs)
    except UnicodeDecodeError:
        raise FieldsError("is not UTF-8") from None
    except json.JSONDecodeError as exc:
        raise FieldsError(f"is not JSON: line {exc.lineno}, column {exc.colno}") from None
    except RecursionError:
        raise FieldsError("is nested too deeply") from None
    except ValueError:  # a number with thousands of digits
        raise FieldsError("want an object of strings") from None
    if not isinstance(document, _Pairs):
        raise FieldsError("want an object of strings")
    return _collect(document, [f"field {number}" for number in range(1, len(document) + 1)])


def parse_env(content: bytes) -> dict[str, bytes]:
    """Read lines of `KEY=VALUE`, as the module says.

    Raises:
        FieldsError: A line breaks a rule; its number is named.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FieldsError("is not UTF-8") from None
    pairs, numbers = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        bare = line.removesuffix("\r").lstrip(_BLANKS)
        if not bare or bare.startswith("#"):
            continue
        key, equals, value = bare.partition("=")
        if not equals:
            raise FieldsError(f"line {number}: want KEY=VALUE")
        pairs.append((key, value))
        numbers.append(number)
    return _collect(pairs, [f"line {number}" for number in numbers])


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, with what it has twice."""


def _to_pairs(pairs: list[tuple[str, Any]]) -> _Pairs:
    return _Pairs(pairs)


def _collect(pairs: Sequence[tuple[str, Any]], places: Sequence[str]) -> dict[str, bytes]:
    if not pairs:
        raise FieldsError("has no field")
    fields: dict[str, bytes] = {}
    for (key, value), place in zip(pairs, places, strict=True):
        if _FIELD.fullmatch(key) is None:
            raise FieldsError(f"{place}: its name is not 1 to 64 of [A-Za-z0-9._-]")
        if not isinstance(value, str):
            raise FieldsError(f"{place}: want a string")
        if key in fields:
            raise FieldsError(f"{place}: has the name of an earlier one")
        try:
            fields[key] = value.encode()
        except UnicodeEncodeError:
            raise FieldsError(f"{place}: has half of a surrogate pair, which is no text") from None
    return fields
