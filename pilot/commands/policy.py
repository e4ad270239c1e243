"""`pilot policy`: apply from a TOML file, get, list, delete and explain."""

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.commands.policy_file import Permission, parse_policies, render_policies, to_document, to_number
from pilot.completion import complete_paths, complete_policies
from pilot.errors import DENIED, PilotError, UsageError, describe
from pilot.options import Settings, with_globals
from pilot.plain import clean
from pilot.terminal.output import Output, print_facts, print_json, print_table

if TYPE_CHECKING:
    from pilot.connection import Connection
    from shardhold.v1 import policies_pb2 as pb

_MAX_FILE = 4 * 1024 * 1024  # bytes; a request takes no more
_MOST_AT_ONCE = 100  # policies that a request takes

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Policies: which callers may do what with which secrets."
)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the policy.", autocompletion=complete_policies)
]

_with_toml = functools.partial(with_globals, takes_toml=True)


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
    """Create or replace policies by name, up to 100 all or none; those in force as given are left. Role: superuser."""
    policies = parse_policies(_read(file), origin=file)

    from shardhold._errors import RecoveringError, SealedError

    with _connect(settings, "superuser") as connection:
        try:
            document = _apply_all(connection, policies)
        except (RecoveringError, SealedError) as exc:
            if not if_ready:
                raise
            _print_left_alone(settings, exc.message)
            return
    _warn(document["warnings"])
    if settings.output is Output.JSON:
        print_json(document)
    else:
        facts = {name: ", ".join(document[name]) or "none" for name in ("applied", "unchanged")}
        print_facts({**facts, "revision": str(document["revision"])})


def _apply_all(connection: "Connection", policies: "Sequence[pb.Policy]") -> dict[str, Any]:
    """Apply policies, a hundred at once; say what was changed."""
    from shardhold.v1 import policies_pb2 as pb

    document: dict[str, Any] = {"applied": [], "unchanged": [], "revision": 0, "warnings": []}
    for first in range(0, len(policies), _MOST_AT_ONCE):
        request = pb.ApplyPoliciesRequest(policies=policies[first : first + _MOST_AT_ONCE])
        with _partly_applied(first):
            response = connection.call(connection.policies.ApplyPolicies, request)
        unchanged = set(response.unchanged)
        document["applied"] += [policy.name for policy in request.policies if policy.name not in unchanged]
        document["unchanged"] += response.unchanged
        document["revision"] = response.revision
        document["warnings"] += response.warnings
    return document


@contextmanager
def _partly_applied(count: int) -> Iterator[None]:
    """Say of an error that the first *count* policies of the file are applied."""
    from shardhold._errors import Error

    try:
        yield
    except Error as exc:
        if not count:
            raise
        described = describe(exc)
        hint = f"the first {count} policies are applied; when the rest is right, apply all of them again"
        raise PilotError(str(described), hint, *described.hints, exit_code=described.exit_code) from exc


def _print_left_alone(settings: Settings, why: str) -> None:
    if settings.output is Output.JSON:
        print_json({"applied": [], "why": why})
    else:
        print_facts({"left alone": "policies are as they were", "why": why})


@app.command()
@_with_toml
def get(settings: Settings, name: NameArgument) -> None:
    """Show one policy. Roles: superuser, auditor."""
    from shardhold.v1 import policies_pb2 as pb

    with _connect(settings, "superuser", "auditor") as connection:
        response = connection.call(connection.policies.GetPolicy, pb.GetPolicyRequest(name=name))
    document = to_document(response.policy)
    if settings.output is Output.JSON:
        print_json(document)
    else:
        _print_policies(settings, [document])


@app.command("list")
@_with_toml
def list_(settings: Settings) -> None:
    """List all policies. With '-o toml', in the form that apply takes. Roles: superuser, auditor."""
    with _connect(settings, "superuser", "auditor") as connection:
        policies, damaged = _list_all(connection)
    documents = [to_document(policy) for policy in policies]
    if settings.output is Output.JSON:
        print_json({"policies": documents, "damaged": damaged})
        return
    _print_policies(settings, documents)
    _warn(
        f"policy {name} was changed outside Shardhold; no workload is authorised until it is applied again or deleted"
        for name in damaged
    )


def _list_all(connection: "Connection") -> "tuple[list[pb.Policy], list[str]]":
    """Return all policies, and the names of damaged ones."""
    from shardhold.v1 import policies_pb2 as pb

    request = pb.ListPoliciesRequest()
    policies, damaged = list["pb.Policy"](), list[str]()
    while True:
        response = connection.call(connection.policies.ListPolicies, request)
        policies += response.policies
        damaged += response.damaged
        if not response.next_page_token:
            return policies, damaged
        if response.next_page_token == request.page_token:
            raise PilotError("the nexus answers with the same page again")
        request.page_token = response.next_page_token


def _print_policies(settings: Settings, documents: Sequence[dict[str, Any]]) -> None:
    if settings.output is Output.TOML:
        print(render_policies(documents), end="")
        return
    rows = [
        (one["name"], " ".join(one["permissions"]), "\n".join(one["spiffe_ids"]), "\n".join(one["paths"]))
        for one in documents
    ]
    print_table(("policy", "permissions", "SPIFFE IDs", "paths"), rows)


@app.command()
@with_globals
def delete(settings: Settings, name: NameArgument) -> None:
    """Delete one policy. Role: superuser."""
    from shardhold.v1 import policies_pb2 as pb

    with _connect(settings, "superuser") as connection:
        response = connection.call(connection.policies.DeletePolicy, pb.DeletePolicyRequest(name=name))
    if settings.output is Output.JSON:
        print_json({"deleted": name, "revision": response.revision})
    else:
        print_facts({"deleted": name, "revision": str(response.revision)})


@app.command()
@with_globals
def explain(
    settings: Settings,
    action: Annotated[Permission, typer.Argument(metavar="ACTION", help=f"One of {', '.join(Permission)}.")],
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="Path of a secret, whether there is one or not.", autocompletion=complete_paths
        ),
    ],
    caller: Annotated[str, typer.Option("--as", metavar="ID", help="SPIFFE ID of whoever would do it.")],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 4 when it is denied.")] = False,
) -> None:
    """Say whether a caller may do something with a path, and why. Roles: superuser, auditor."""
    from shardhold.v1 import policies_pb2 as pb

    request = pb.ExplainAccessRequest(spiffe_id=caller, permission=to_number(action), path=path)
    with _connect(settings, "superuser", "auditor") as connection:
        response = connection.call(connection.policies.ExplainAccess, request)
    if settings.output is Output.JSON:
        document = {
            "allowed": response.is_allowed,
            "policies": list(response.policies),
            "why": response.explanation,
        }
        print_json(document)
    else:
        print_facts({"allowed": "yes" if response.is_allowed else "no", "why": response.explanation})
    if exit_code and not response.is_allowed:
        raise typer.Exit(DENIED)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"pilot: warning: {clean(warning)}", file=sys.stderr)


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
