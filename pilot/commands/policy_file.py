"""The file of policies, which `pilot policy apply` reads, and `pilot policy get` and `list` write with `-o toml`.

[[policy]]
name = "app-reads-its-own"
spiffe_ids = ["spiffe://example.org/team/app"]
paths = ["team/app/**"]
permissions = ["read", "list"]
"""

import enum
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pilot.errors import PilotError, UsageError
from pilot.terminal.output import show_name

if TYPE_CHECKING:
    from shardhold.v1 import policies_pb2 as pb

_KEYS: Final = ("name", "spiffe_ids", "paths", "permissions")
_LINE: Final = 100  # characters; a longer list has a line for each of its strings


class Permission(enum.StrEnum):
    """What a policy may allow."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    LIST = "list"


def parse_policies(text: str, *, origin: str) -> "list[pb.Policy]":
    """Read policies from TOML. Shape and names of options are checked here; the nexus checks globs and limits.

    Raises:
        UsageError: It is not TOML, has no policy, or one twice, or an option is unknown, missing or of the wrong type.
    """
    from shardhold.v1 import policies_pb2 as pb

    try:
        document = tomllib.loads(text)
    except RecursionError as exc:
        raise UsageError(f"{origin}: is nested too deeply") from exc
    except ValueError as exc:  # a TOMLDecodeError, or a bare one for a number with thousands of digits
        raise UsageError(f"{origin}: {exc}") from exc
    tables = document.pop("policy", None)
    if document or not isinstance(tables, list) or not tables:
        raise UsageError(f"{origin}: want one or more [[policy]] tables and nothing else")
    policies = []
    places: dict[str, str] = {}  # by name
    for index, table in enumerate(tables):
        where = f"{origin}: policy[{index}]"
        _check_table(table, where)
        if table["name"] in places:
            raise UsageError(f"{where}.name: is the name of {places[table['name']]} too")
        places[table["name"]] = f"policy[{index}]"
        permissions = [to_number(one) for one in table["permissions"]]
        policies.append(
            pb.Policy(name=table["name"], spiffe_ids=table["spiffe_ids"], paths=table["paths"], permissions=permissions)
        )
    return policies


def to_number(permission: str) -> "pb.Permission.ValueType":
    """Return a permission as it is on the wire."""
    from shardhold.v1 import policies_pb2 as pb

    return pb.Permission.Value(f"PERMISSION_{permission.upper()}")


def to_document(policy: "pb.Policy") -> dict[str, Any]:
    """Return a policy as JSON, in the form of the file."""
    from shardhold.v1 import policies_pb2 as pb

    return {
        "name": policy.name,
        "spiffe_ids": list(policy.spiffe_ids),
        "paths": list(policy.paths),
        "permissions": [show_name(pb.Permission.Name, one, "PERMISSION_") for one in policy.permissions],
    }


def render_policies(documents: Iterable[Mapping[str, Any]]) -> str:
    """Return policies as a file that `parse_policies` reads.

    Raises:
        PilotError: One has a permission that only a newer pilot knows.
    """
    return "\n".join(_render_table(document) for document in documents)


def _render_table(document: Mapping[str, Any]) -> str:
    unknown = [one for one in document["permissions"] if one not in tuple(Permission)]
    if unknown:
        raise PilotError(f"policy {document['name']}: has the permission {unknown[0]}", "use a newer pilot")
    lines = [f"{key} = {_render_value(document[key])}" for key in _KEYS]
    return "\n".join(["[[policy]]", *lines, ""])


def _render_value(value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        return _quote(value)
    line = f"[{', '.join(map(_quote, value))}]"
    if len(value) < 2 or len(line) <= _LINE:
        return line
    return "\n".join(["[", *(f"    {_quote(one)}," for one in value), "]"])


def _quote(text: str) -> str:
    """Quote a string for TOML. What would control a terminal is escaped: a nexus may lie."""
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in json.dumps(text, ensure_ascii=False))


def _check_table(table: Any, where: str) -> None:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: want a table")
    for key in table:
        if key not in _KEYS:
            raise UsageError(f"{where}.{key}: unknown; want {', '.join(_KEYS)}")
    for key in _KEYS:
        value = table.get(key)
        is_right = isinstance(value, str) if key == "name" else _is_texts(value)
        if not is_right:
            raise UsageError(f"{where}.{key}: want {'a string' if key == 'name' else 'a list of strings'}")
    for one in table["permissions"]:
        if one not in tuple(Permission):
            raise UsageError(f"{where}.permissions: got {one!r}, want {', '.join(Permission)}")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
