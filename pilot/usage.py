"""What is wrong with a command line that cannot be parsed, in pilot's words, and what may have been meant."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

import typer

from pilot.errors import UsageError

# The base of typer's usage errors, taken from a public subclass: its own module differs between versions.
BaseUsageError = cast(type[Exception], typer.BadParameter.__mro__[1])

_NO_COMMAND = re.compile(r"No such command '(.*)'\.")


def describe_usage(error: Exception) -> UsageError:
    """Turn typer's error into one with a hint: a name that is nearly what was typed, or where usage is shown."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "pilot"
    if type(error).__name__ == "NoArgsIsHelpError":
        return UsageError("missing command", f"'{command} --help' lists them")
    # Without what typer says about options that are alike: that is the hint's.
    possible = getattr(error, "possibilities", None)
    said = getattr(error, "message" if possible else "format_message", str(error))
    message = str(said() if callable(said) else said).replace("Value error, ", "")
    meant = list(possible or ())
    if unknown := _NO_COMMAND.match(message):
        message = unknown[0]
        meant = find_alike(unknown[1], _list_names(context))
    return UsageError(message, ask_if_meant(meant) or f"'{command} --help' shows its usage")


def find_alike(typed: str, names: Sequence[str]) -> list[str]:
    """Return the names that are nearly what was typed, the nearest first."""
    return get_close_matches(typed, names)


def ask_if_meant(names: Sequence[str]) -> str:
    """Return the hint that names the nearest two; empty without any."""
    return f"did you mean {' or '.join(repr(name) for name in names[:2])}?" if names else ""


def _list_names(context: Any) -> list[str]:
    """Return the commands that a group offers."""
    group = context.command
    return [name for name in group.list_commands(context) if not getattr(group.commands.get(name), "hidden", False)]
