"""`pilot root quarantine`: versions of secrets that the keyring job could not open, and what becomes of them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.commands.documents import to_text
from pilot.commands.operations import READERS, WORKERS, rules_named
from pilot.errors import NOT_FOUND, PilotError, UsageError
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, print_facts, print_json, print_table

if TYPE_CHECKING:
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Versions of secrets that did not open when they were re-wrapped."
)

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1  # what a damaged row may have as its number

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Path of the secret.")]
VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", min=_INT64_MIN, max=_INT64_MAX, help="Its version.")]
IncarnationOption = Annotated[
    str | None,
    typer.Option(
        "--incarnation",
        metavar="HEX",
        help="Which secret of this path, if there was more than one.",
        show_default=False,
    ),
]


@app.command("list")
@with_globals
def list_(settings: Settings) -> None:
    """List the quarantine. Roles: operator, superuser, auditor."""
    from pilot.connection import Connection

    with Connection(settings, preferred=READERS) as connection:
        documents = [_to_document(row) for row in _list_all(connection)]
    if settings.output is Output.JSON:
        print_json(documents)
        return
    print_table(
        ("path", "version", "incarnation", "KEK", "found", "why", "given up by"), [_to_row(one) for one in documents]
    )


@app.command()
@with_globals
def retry(
    settings: Settings, path: PathArgument, version: VersionArgument, incarnation: IncarnationOption = None
) -> None:
    """Try a version once more, also one that was given up. Roles: operator, superuser."""
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

    given = _parse_incarnation(incarnation)
    with Connection(settings, preferred=WORKERS) as connection, rules_named():
        key = _find_key(connection, path, version, given)
        connection.call(connection.root.RetryQuarantined, pb.RetryQuarantinedRequest(key=key))
    _print(settings, "tried again", key)


@app.command()
@with_globals
def abandon(
    settings: Settings,
    path: PathArgument,
    version: VersionArgument,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit; at most 256 characters.")
    ],
    incarnation: IncarnationOption = None,
) -> None:
    """Give a version up: its KEK may go, and nothing opens the version after that. Role: superuser."""
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

    given = _parse_incarnation(incarnation)
    with Connection(settings, preferred=("superuser",)) as connection, rules_named():
        key = _find_key(connection, path, version, given)
        request = pb.AbandonQuarantinedRequest(key=key, reason=reason)
        connection.call(connection.root.AbandonQuarantined, request)
    _print(settings, "given up", key)


def _find_key(connection: "Connection", path: str, version: int, incarnation: bytes | None) -> "pb.VersionKey":
    """Return what names the version; without an incarnation, look which one of this path is in quarantine.

    Raises:
        PilotError: None is.
        UsageError: More than one is.
    """
    from shardhold.v1 import root_pb2 as pb

    if incarnation is not None:
        return pb.VersionKey(path=path, incarnation=incarnation, version=version)
    keys = [row.key for row in _list_all(connection) if (row.key.path, row.key.version) == (path, version)]
    if not keys:
        raise PilotError(f"version {version} of {path} is not in quarantine", exit_code=NOT_FOUND)
    if len(keys) > 1:
        found = ", ".join(key.incarnation.hex() for key in keys)
        raise UsageError(f"version {version} of {path} is in quarantine {len(keys)} times", f"--incarnation: {found}")
    return keys[0]


def _list_all(connection: "Connection") -> "Iterator[pb.QuarantinedVersion]":
    from shardhold.v1 import root_pb2 as pb

    request = pb.ListQuarantineRequest()
    while True:
        response = connection.call(connection.root.ListQuarantine, request)
        yield from response.rows
        if not response.HasField("next"):
            return
        if request.HasField("after") and response.next == request.after:
            raise PilotError("the nexus answers with the same page again")
        request.after.CopyFrom(response.next)


def _parse_incarnation(text: str | None) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError as exc:
        raise UsageError("--incarnation: want hex digits") from exc


def _print(settings: Settings, done: str, key: "pb.VersionKey") -> None:
    if settings.output is Output.JSON:
        print_json(_key_document(key))
    else:
        print_facts({done: f"version {key.version} of {key.path}"})


def _key_document(key: "pb.VersionKey") -> dict[str, Any]:
    return {"path": key.path, "incarnation": key.incarnation.hex(), "version": key.version}


def _to_document(row: "pb.QuarantinedVersion") -> dict[str, Any]:
    return {
        **_key_document(row.key),
        "kek_id": row.kek_id,
        "reason": row.reason,
        "found_at": to_text(row.found_at),
        "abandoned_by": row.abandoned_by or None,
    }


def _to_row(document: dict[str, Any]) -> tuple[str, ...]:
    numbers = (str(document["version"]), document["incarnation"], str(document["kek_id"]))
    return document["path"], *numbers, document["found_at"] or "", document["reason"], document["abandoned_by"] or ""
