"""Which field of which secret: `PATH#FIELD`, and the values that stand there."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pilot.errors import NOT_FOUND, PilotError, UsageError
from pilot.terminal.values import DEFAULT_FIELD

if TYPE_CHECKING:
    from shardhold import Secret

FORM = "PATH#FIELD, such as team/app/db#password"

_REFERENCE = re.compile(r"([A-Za-z0-9._/-]+)(?:#([A-Za-z0-9._-]+))?")


@dataclass(frozen=True, slots=True)
class Reference:
    """One field of one secret."""

    path: str
    field: str

    def __str__(self) -> str:
        return f"{self.path}#{self.field}"


def parse_reference(text: str, *, of: str) -> Reference:
    """Read `PATH#FIELD`, or `PATH` for its field `value`; *of* says in errors what refers. The nexus knows more rules.

    Raises:
        UsageError: It is neither.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise UsageError(f"{of}: got {text!r}, want {FORM}")
    return Reference(match[1], match[2] or DEFAULT_FIELD)


def pick_values(references: Iterable[Reference], secrets: Mapping[str, "Secret"]) -> dict[Reference, bytes]:
    """Return the value of each reference in *secrets*, which are by path.

    Raises:
        PilotError: A secret does not have the field.
    """
    values = {}
    for reference in references:
        secret = secrets[reference.path]
        if reference.field not in secret.fields:
            raise PilotError(
                f"version {secret.version} of {reference.path} has no field {reference.field}",
                f"it has: {', '.join(sorted(secret.fields))}",
                exit_code=NOT_FOUND,
            )
        values[reference] = secret.fields[reference.field]
    return values
