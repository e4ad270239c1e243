"""`pilot policy`: apply from a TOML file, list and delete.

[[policy]]
name = "app-reads-its-own"
spiffe_ids = ["spiffe://example.org/team/app"]
paths = ["team/app/**"]
permissions = ["read", "list"]
"""

import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.errors import PilotError, UsageError
from pilot.options import Settings, with_globals
from pilot.plain import clean
from pilot.terminal.output import Output, print_facts, print_json, print_table, show_name

if TYPE_CHECKING:
    from pilot.connection import Connection
    from shardhold.v1 import policies_pb2 as pb

_MAX_FILE = 4 * 1024 * 1024  # bytes; a request takes no more

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Policies: which callers may do what with which secrets."
)

PERMISSIONS = ("read", "write", "delete", "list")
_KEYS = ("name", "spiffe_ids", "paths", "permissions")


@app.command()
@with_globals
def apply(
    settings: Settings,
    file: Annotated[str, typer.Argument(metavar="FILE", help="TOML with [[policy]] tables; -: standard input.")],
    if_ready: Annotated[
        bool,
        typer.Option("--if-ready", help="For automation: leave a nexus that waits for its key alone and exit with 0."),
    ] = False,
) -> None:
    """Create or replace policies by name, all or none. Role: superuser."""
    policies = parse_policies(_read(file), origin=file)
    names = [policy.name for policy in policies]

    from shardhold._errors import RecoveringError, SealedError
    from shardhold.v1 import policies_pb2 as pb

    with _connect(settings, "superuser") as connection:
        request = pb.ApplyPoliciesRequest(policies=policies)
        try:
            response = connection.call(connection.policies.ApplyPolicies, request)
        except (RecoveringError, SealedError) as exc:
            if not if_ready:
                raise
            _print_left_alone(settings, exc.message)
            return
    if settings.output is Output.JSON:
        print_json({"applied": names, "revision": response.revision})
    else:
        print_facts({"applied": ", ".join(names), "revision": str(response.revision)})


def _print_left_alone(settings: Settings, why: str) -> None:
    if settings.output is Output.JSON:
        print_json({"applied": [], "why": why})
    else:
        print_facts({"left alone": "policies are as they were", "why": why})


@app.command("list")
@with_globals
def list_(settings: Settings) -> None:
    """List all policies. Roles: superuser, auditor."""
    from shardhold.v1 import policies_pb2 as pb

    with _connect(settings, "superuser", "auditor") as connection:
        request = pb.ListPoliciesRequest()
        documents, damaged = [], list[str]()
        while True:
            response = connection.call(connection.policies.ListPolicies, request)
            documents += [to_document(policy) for policy in response.policies]
            damaged += response.damaged
            if not response.next_page_token:
                break
            if response.next_page_token == request.page_token:
                raise PilotError("the nexus answers with the same page again")
            request.page_token = response.next_page_token
    if settings.output is Output.JSON:
        print_json({"policies": documents, "damaged": damaged})
        return
    rows = [
        (one["name"], " ".join(one["permissions"]), "\n".join(one["spiffe_ids"]), "\n".join(one["paths"]))
        for one in documents
    ]
    print_table(("policy", "permissions", "SPIFFE IDs", "paths"), rows)
    for name in damaged:
        print(
            f"pilot: warning: policy {clean(name)} was changed outside Shardhold; no workload is authorised until it "
            "is applied again or deleted",
            file=sys.stderr,
        )


@app.command()
@with_globals
def delete(
    settings: Settings, name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the policy.")]
) -> None:
    """Delete one policy. Role: superuser."""
    from shardhold.v1 import policies_pb2 as pb

    with _connect(settings, "superuser") as connection:
        response = connection.call(connection.policies.DeletePolicy, pb.DeletePolicyRequest(name=name))
    if settings.output is Output.JSON:
        print_json({"deleted": name, "revision": response.revision})
    else:
        print_facts({"deleted": name, "revision": str(response.revision)})


def parse_policies(text: str, *, origin: str) -> "list[pb.Policy]":
    """Read policies from TOML. Shape and names of options are checked here; the nexus checks globs and limits.

    Raises:
        UsageError: It is not TOML, has no policy, or an option is unknown, missing or of the wrong type.
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
    for index, table in enumerate(tables):
        where = f"{origin}: policy[{index}]"
        _check_table(table, where)
        permissions = [pb.Permission.Value(f"PERMISSION_{one.upper()}") for one in table["permissions"]]
        policies.append(
            pb.Policy(name=table["name"], spiffe_ids=table["spiffe_ids"], paths=table["paths"], permissions=permissions)
        )
    return policies


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
        if one not in PERMISSIONS:
            raise UsageError(f"{where}.permissions: got {one!r}, want {', '.join(PERMISSIONS)}")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def to_document(policy: "pb.Policy") -> dict[str, Any]:
    """Return a policy as JSON, in the form of the file."""
    from shardhold.v1 import policies_pb2 as pb

    return {
        "name": policy.name,
        "spiffe_ids": list(policy.spiffe_ids),
        "paths": list(policy.paths),
        "permissions": [show_name(pb.Permission.Name, one, "PERMISSION_") for one in policy.permissions],
    }


def _read(file: str) -> str:
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as source:
            content = source.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise UsageError(f"{file}: got more than {_MAX_FILE} bytes, want at most 4 MiB")
        return content.decode()
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file}: is not UTF-8") from exc


def _connect(settings: Settings, *roles: str) -> "Connection":
    from pilot.connection import Connection

    return Connection(settings, preferred=roles)
