"""`pilot secret`: put, patch, get, list and delete; what is about versions is in `pilot.commands.versions`."""

import base64
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.commands import metadata, versions
from pilot.commands.secret_options import (
    AllowEmptyOption,
    EnvFileOption,
    ExpectedIncarnation,
    ExpectedVersion,
    JsonOption,
    KeepNewlineOption,
    PathArgument,
    StripNewlineOption,
    ValuesArgument,
    VersionsOption,
    YesOption,
    ask_for_path,
    connect,
    parse_incarnation,
    print_outcome,
)
from pilot.errors import NOT_FOUND, PilotError, UsageError
from pilot.options import LARGEST_NUMBER, Settings, with_globals
from pilot.terminal.field_files import parse_env, parse_json
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
from pilot.terminal.values import (
    DEFAULT_FIELD,
    Document,
    Given,
    Newline,
    Source,
    ValueReader,
    name_origin,
    parse_sources,
)

if TYPE_CHECKING:
    from pilot.connection import Connection
    from shardhold.v1 import secrets_pb2 as pb

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Secrets.")


@app.command()
@with_globals
def put(
    settings: Settings,
    path: PathArgument,
    values: ValuesArgument = None,
    json: JsonOption = None,
    env_file: EnvFileOption = None,
    strip_newline: StripNewlineOption = False,
    keep_newline: KeepNewlineOption = False,
    allow_empty: AllowEmptyOption = False,
    expected_version: ExpectedVersion = None,
    expected_incarnation: ExpectedIncarnation = "",
) -> None:
    """Write the next version of a secret: these fields and no others; 'patch' sets some.

    Values are never given on the command line. Without any field, the field 'value' is asked for.
    """
    documents = _list_documents(json, env_file)
    sources = parse_sources(values or [])
    if not sources and not documents:
        sources = [Source(DEFAULT_FIELD, Given.PROMPT)]
    fields = _read_fields(sources, documents, _find_newline(strip_newline, keep_newline), allow_empty)

    from shardhold.v1 import secrets_pb2 as pb

    request = pb.PutSecretRequest(
        path=path,
        fields=fields,
        expected_version=expected_version,
        expected_incarnation=parse_incarnation(expected_incarnation),
        request_id=os.urandom(16),
    )
    with connect(settings) as connection:
        response = connection.call(connection.secrets.PutSecret, request)
    document = _written_document(path, response)
    if settings.output is Output.TABLE:
        document["fields"] = f"{', '.join(sorted(fields))}, and no others"
    print_outcome(settings, document)


@app.command()
@with_globals
def patch(
    settings: Settings,
    path: PathArgument,
    values: ValuesArgument = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="Take this field out; may be repeated.")
    ] = None,
    json: JsonOption = None,
    env_file: EnvFileOption = None,
    strip_newline: StripNewlineOption = False,
    keep_newline: KeepNewlineOption = False,
    allow_empty: AllowEmptyOption = False,
    expected_version: ExpectedVersion = None,
    expected_incarnation: ExpectedIncarnation = "",
) -> None:
    """Write the next version of a secret: the current one with some fields set, and some taken out."""
    documents = _list_documents(json, env_file)
    sources = parse_sources(values or [])
    if not (sources or documents or remove):
        raise UsageError("there is nothing to change", "name fields to set, or to take out with --remove")
    fields = _read_fields(sources, documents, _find_newline(strip_newline, keep_newline), allow_empty)

    from shardhold.v1 import secrets_pb2 as pb

    request = pb.PatchSecretRequest(
        path=path,
        fields=fields,
        removed_fields=remove or [],
        expected_version=expected_version,
        expected_incarnation=parse_incarnation(expected_incarnation),
        request_id=os.urandom(16),
    )
    with connect(settings) as connection:
        response = connection.call(connection.secrets.PatchSecret, request)
    print_outcome(settings, _written_document(path, response))


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

    with connect(settings) as connection:
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
    """List the secrets at a prefix and below it that you may list, deleted ones as well."""
    with connect(settings) as connection:
        entries = list(_list_all(connection, prefix))
    if settings.output is Output.JSON:
        print_json([_entry_document(entry) for entry in entries])
        return
    rows = [(one.path, _show_newest(one), show_timestamp(one.updated_at)) for one in entries]
    print_table(("path", "version", "last written"), rows)


@app.command()
@with_globals
def delete(
    settings: Settings,
    path: PathArgument,
    version: VersionsOption = None,
    expected_version: ExpectedVersion = None,
    expected_incarnation: ExpectedIncarnation = "",
    yes: YesOption = False,
) -> None:
    """Mark all versions of a secret as deleted, or some; 'undelete' brings them back."""
    from shardhold.v1 import secrets_pb2 as pb

    incarnation = parse_incarnation(expected_incarnation)
    terminal = Terminal()
    if not version and not yes and terminal.is_there():
        ask_for_path(
            terminal,
            path,
            warning=f"This deletes every version of {path}. 'pilot secret undelete' brings them back until a put.",
            refusal="not confirmed: nothing was deleted",
        )
    request = pb.DeleteSecretRequest(
        path=path,
        versions=version or [],
        expected_version=expected_version,
        expected_incarnation=incarnation,
        request_id=os.urandom(16),
    )
    with connect(settings) as connection:
        response = connection.call(connection.secrets.DeleteSecret, request)
    print_outcome(settings, {"path": path, "versions": list(response.versions), "revision": response.revision})


app.command("versions")(versions.list_)
app.command("undelete")(versions.undelete)
app.command("destroy")(versions.destroy)
app.add_typer(metadata.app, name="metadata")


def to_document(response: "pb.GetSecretResponse", *, only: str | None = None) -> dict[str, Any]:
    """Return a secret as JSON: fields that are UTF-8 as text, others under `fields_base64`."""
    fields = {name: value for name, value in sorted(response.fields.items()) if only in (None, name)}
    texts = {name: text for name, value in fields.items() if (text := to_text(value)) is not None}
    document: dict[str, Any] = {
        "path": response.path,
        "version": response.version,
        "incarnation": response.incarnation.hex(),
        "created_at": show_timestamp(response.created_at),
        "fields": texts,
    }
    if len(texts) < len(fields):
        document["fields_base64"] = {
            name: base64.b64encode(value).decode() for name, value in fields.items() if name not in texts
        }
    return document


def _list_documents(json: str | None, env_file: str | None) -> list[Document]:
    given = ((json, parse_json), (env_file, parse_env))
    return [Document(name_origin(file), parse) for file, parse in given if file is not None]


def _find_newline(strip: bool, keep: bool) -> Newline:
    if strip and keep:
        raise UsageError("--strip-newline and --keep-newline: got both, want one")
    if strip:
        return Newline.STRIP
    return Newline.KEEP if keep else Newline.WARN


def _read_fields(
    sources: Sequence[Source], documents: Sequence[Document], newline: Newline, allows_empty: bool
) -> dict[str, bytes]:
    reader = ValueReader(
        Terminal(),
        stdin=sys.stdin.buffer,
        is_terminal=sys.stdin.isatty(),
        newline=newline,
        allows_empty=allows_empty,
    )
    with signals_as_interrupt():  # so that a terminal that hides typing is restored
        return reader.read(sources, documents)


def _written_document(path: str, response: "pb.PutSecretResponse | pb.PatchSecretResponse") -> dict[str, Any]:
    return {
        "path": path,
        "version": response.version,
        "incarnation": response.incarnation.hex(),
        "revision": response.revision,
    }


def _list_all(connection: "Connection", prefix: str) -> "Iterator[pb.SecretEntry]":
    from shardhold.v1 import secrets_pb2 as pb

    token = ""
    while True:
        request = pb.ListSecretsRequest(prefix=prefix, page_token=token, include_deleted=True)
        response = connection.call(connection.secrets.ListSecrets, request)
        yield from response.secrets
        if not response.next_page_token:
            return
        if response.next_page_token == token:
            raise PilotError("the nexus answers with the same page again")
        token = response.next_page_token


def _show_newest(entry: "pb.SecretEntry") -> str:
    """Return the newest version that is left."""
    if not entry.newest_live_version:
        return "deleted"
    if entry.newest_live_version == entry.current_version:
        return str(entry.current_version)
    return f"{entry.newest_live_version} ({entry.current_version} is deleted)"


def _entry_document(entry: "pb.SecretEntry") -> dict[str, Any]:
    return {
        "path": entry.path,
        "current_version": entry.current_version,
        "newest_live_version": entry.newest_live_version or None,
        "incarnation": entry.incarnation.hex(),
        "updated_at": show_timestamp(entry.updated_at),
    }
