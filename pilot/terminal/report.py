"""What pilot says beside its results, on stderr: errors, hints and notes. Programs get an error as one line of JSON."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress

from pilot.errors import PilotError
from pilot.plain import clean, escape_json
from pilot.terminal.wrapping import count_columns, wrap

_OUTPUT = ("-o", "--output")


def wants_json(arguments: Sequence[str]) -> bool:
    """Say whether a command line asks for JSON, even one that cannot be parsed; the last such option counts."""
    form = ""
    before = ""
    for argument in arguments:
        if argument == "--":  # what follows is another program's
            break
        if before in _OUTPUT:
            form = argument
        elif argument.startswith("--output="):
            form = argument.removeprefix("--output=")
        elif argument.startswith("-o"):
            form = argument.removeprefix("-o")
        before = argument if before not in _OUTPUT else ""
    return form == "json"


def report(error: PilotError, *, as_json: bool = False) -> None:
    """Print an error and its hints, if stderr takes anything: lower case, no full stop."""
    message, hints = _tidy(str(error)), [_tidy(hint) for hint in error.hints]
    with suppress(OSError):
        if as_json:
            print(escape_json(_to_line(message, hints, error)), file=sys.stderr)
        else:
            _print(f"pilot: error: {message}")
            for hint in hints:
                print_hint(hint)


def read_message(written: str) -> str:
    """Return the message of the error that a pilot with `-o json` wrote to stderr; else all that it wrote."""
    try:
        return str(json.loads(written)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return written.strip()


def print_hint(text: str) -> None:
    """Print what to do next."""
    _print(f"pilot: hint: {text}")


def print_note(text: str) -> None:
    """Print what somebody should know, and programs need not."""
    _print(f"pilot: {text}")


def _print(text: str) -> None:
    print("\n".join(wrap(clean(text), count_columns(sys.stderr))), file=sys.stderr)


def _to_line(message: str, hints: Sequence[str], error: PilotError) -> str:
    document = {
        "message": message,
        "hint": "\n".join(hints) or None,
        "reason": error.reason or None,
        "exit_code": error.exit_code,
    }
    return json.dumps({"error": document}, ensure_ascii=False)


def _tidy(text: str) -> str:
    """Lower the first letter of an ordinary word (not of NAMES, I/O or BeginInit) and drop a full stop."""
    text = text.strip()
    text = text[:-1] if text.endswith(".") and not text.endswith("..") else text
    first = text.split(maxsplit=1)[0] if text else ""
    is_word = first[:1].isupper() and first[1:].islower()
    return text[0].lower() + text[1:] if is_word else text
