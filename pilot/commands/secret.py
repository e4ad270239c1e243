"""`pilot secret`: put, get, list and delete."""

import base64
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.errors import NOT_FOUND, PilotError, UsageError
from pilot.options import LARGEST_NUMBER, Settings, with_globals
from pilot.terminal.output import (
    Output,
    print_facts,
    print_json,
    print_table,
    show_timestamp,
    show_value,
    to_text,
    write_raw,
)
from pilot.terminal.signals import signals_as_interrupt
from pilot.terminal.terminal import Terminal
from pilot.terminal.values import parse_sources, read_values

if TYPE_CHECKING:
    from pilot.connection import Connection
    from shardhold.v1 import secrets_pb2 as pb

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Secrets.")

# Policies decide; at first only superusers have one.
_ROLES = ("", "superuser")

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Path of the secret, such as team/app/db.")]
ExpectedVersion = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=LARGEST_NUMBER,
        metavar="N",
        help="Only if this is the current version; for put, 0: only if there is none.",
    ),
]
ExpectedIncarnation = Annotated[
    str, typer.Option(metavar="HEX", help="Only if the secret has this incarnation; goes with --expected-version.")
]


@app.command()
@with_globals
def put(
    settings: Settings,
    path: PathArgument,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIELD=@FILE | FIELD=- | @FILE | -",
            help="Fields from files or standard input; without a name, the field 'value'. None: asks for it.",
        ),
    ] = None,
    expected_version: ExpectedVersion = None,
    expected_incarnation: ExpectedIncarnation = "",
) -> None:
    """Write the next version of a secret. Values are never given on the command line."""
    sources = parse_sources(values or [])
    terminal = Terminal()
    if not sources:
        terminal.check("name a file (@FILE) or standard input (-)")
    with signals_as_interrupt():  # so that a terminal that hides typing is restored
        fields = read_values(sources, stdin=sys.stdin.buffer, ask=terminal.ask_hidden)

    from shardhold.v1 import secrets_pb2 as pb

    request = pb.PutSecretRequest(
        path=path,
        fields=fields,
        expected_version=expected_version,
        expected_incarnation=_parse_incarnation(expected_incarnation),
        request_id=os.urandom(16),
    )
    with _connect(settings) as connection:
        response = connection.call(connection.secrets.PutSecret, request)
    document = {
        "path": path,
        "version": response.version,
        "incarnation": response.incarnation.hex(),
        "revision": response.revision,
    }
    _print(settings, document)


@app.command()
@with_globals
def get(
    settings: Settings,
    path: PathArgument,
    field: Annotated[
        str | None, typer.Option(metavar="F", help="Write the value of this field and nothing else.")
    ] = None,
    version: Annotated[
        int, typer.Option(min=0, max=LARGEST_NUMBER, metavar="N", help="This version; 0: the current one.")
    ] = 0,
) -> None:
    """Read a secret."""
    from shardhold.v1 import secrets_pb2 as pb

    with _connect(settings) as connection:
        response = connection.call(connection.secrets.GetSecret, pb.GetSecretRequest(path=path, version=version))
    if field is not None and field not in response.fields:
        raise PilotError(
            f"version {response.version} of {path} has no field {field}",
            f"it has: {', '.join(sorted(response.fields))}",
            exit_code=NOT_FOUND,
        )
    if settings.output is Output.JSON:
        print_json(to_document(response, only=field))
    elif field is not None:
        write_raw(response.fields[field])
    else:
        print_facts({"path": path, "version": str(response.version), "written": show_timestamp(response.created_at)})
        print()
        rows = [(name, show_value(value)) for name, value in sorted(response.fields.items())]
        print_table(("field", "value"), rows)


@app.command("list")
@with_globals
def list_(
    settings: Settings,
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Whole segments, such as team/app.")] = "",
) -> None:
    """List the secrets at a prefix and below it that you may list."""
    with _connect(settings) as connection:
        entries = list(_list_all(connection, prefix))
    if settings.output is Output.JSON:
        print_json([_entry_document(entry) for entry in entries])
        return
    rows = [(one.path, str(one.current_version), show_timestamp(one.updated_at)) for one in entries]
    print_table(("path", "version", "written"), rows)


@app.command()
@with_globals
def delete(
    settings: Settings,
    path: PathArgument,
    version: Annotated[
        list[int] | None,
        typer.Option(min=1, max=LARGEST_NUMBER, metavar="N", help="Only this version; may be repeated."),
    ] = None,
    expected_version: ExpectedVersion = None,
    expected_incarnation: ExpectedIncarnation = "",
) -> None:
    """Delete all versions of a secret, or some."""
    from shardhold.v1 import secrets_pb2 as pb

    request = pb.DeleteSecretRequest(
        path=path,
        versions=version or [],
        expected_version=expected_version,
        expected_incarnation=_parse_incarnation(expected_incarnation),
        request_id=os.urandom(16),
    )
    with _connect(settings) as connection:
        response = connection.call(connection.secrets.DeleteSecret, request)
    _print(settings, {"path": path, "versions": list(response.versions), "revision": response.revision})


def to_document(response: "pb.GetSecretResponse", *, only: str | None = None) -> dict[str, Any]:
    """Return a secret as JSON: fields that are UTF-8 as text, others under `fields_base64`."""
    fields = {name: value for name, value in sorted(response.fields.items()) if only in (None, name)}
    texts = {name: text for name, value in fields.items() if (text := to_text(value)) is not None}
    document: dict[str, Any] = {
        "path": response.path,
        "version": response.version,
        "incarnation": response.incarnation.hex(),
        "fields": texts,
    }
    if len(texts) < len(fields):
        document["fields_base64"] = {
            name: base64.b64encode(value).decode() for name, value in fields.items() if name not in texts
        }
    return document


def _list_all(connection: "Connection", prefix: str) -> "Iterator[pb.SecretEntry]":
    from shardhold.v1 import secrets_pb2 as pb

    token = ""
    while True:
        request = pb.ListSecretsRequest(prefix=prefix, page_token=token)
        response = connection.call(connection.secrets.ListSecrets, request)
        yield from response.secrets
        if not response.next_page_token:
            return
        if response.next_page_token == token:
            raise PilotError("the nexus answers with the same page again")
        token = response.next_page_token


def _entry_document(entry: "pb.SecretEntry") -> dict[str, Any]:
    return {
        "path": entry.path,
        "current_version": entry.current_version,
        "incarnation": entry.incarnation.hex(),
        "updated_at": show_timestamp(entry.updated_at),
    }


def _connect(settings: Settings) -> "Connection":
    from pilot.connection import Connection

    return Connection(settings, preferred=_ROLES)


def _parse_incarnation(text: str) -> bytes:
    try:
        incarnation = bytes.fromhex(text)
    except ValueError as exc:
        raise UsageError("--expected-incarnation is not hex") from exc
    if len(incarnation) not in (0, 16):
        raise UsageError(f"--expected-incarnation has {len(incarnation)} bytes, want 16")
    return incarnation


def _print(settings: Settings, document: dict[str, Any]) -> None:
    if settings.output is Output.JSON:
        print_json(document)
        return
    shown = {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in document.items()
    }
    print_facts(shown)
