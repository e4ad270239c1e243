"""Environment variables from secrets: `NAME=PATH#FIELD`."""

import re
from collections.abc import Mapping, Sequence

from pilot.errors import PilotError, UsageError
from pilot.programs.reference import FORM, Reference, parse_reference

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_variables(arguments: Sequence[str]) -> dict[str, Reference]:
    """Read the arguments of --env; return the reference of each name.

    Raises:
        UsageError: One is not `NAME=PATH#FIELD`, or names a variable twice.
    """
    variables: dict[str, Reference] = {}
    for argument in arguments:
        name, equals, reference = argument.partition("=")
        if not equals or _NAME.fullmatch(name) is None:
            raise UsageError(f"--env: got {argument!r}, want NAME={FORM}")
        if name in variables:
            raise UsageError(f"--env: {name} is given twice")
        variables[name] = parse_reference(reference, of=f"--env {name}")
    return variables


def make_environment(variables: Mapping[str, Reference], values: Mapping[Reference, bytes]) -> dict[bytes, bytes]:
    """Return the variables as an environment has them.

    Raises:
        PilotError: A value has a NUL byte, which no environment can hold, or is not UTF-8.
    """
    return {name.encode(): _check(name, reference, values[reference]) for name, reference in variables.items()}


def _check(name: str, reference: Reference, value: bytes) -> bytes:
    hint = "an environment holds text only: hand it over as a file, with --template"
    if b"\0" in value:
        raise PilotError(f"{name}: the value of {reference} has a NUL byte, want text", hint)
    try:
        value.decode()
    except UnicodeDecodeError:
        # Without its cause, which would carry the value.
        raise PilotError(f"{name}: the value of {reference} is not UTF-8, want text", hint) from None
    return value
