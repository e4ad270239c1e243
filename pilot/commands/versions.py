"""`pilot secret versions`, `undelete` and `destroy`: the versions of a secret, and what becomes of them."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.commands.secret_options import (
    ExpectedIncarnation,
    ExpectedVersion,
    PathArgument,
    VersionsOption,
    YesOption,
    ask_for_path,
    connect,
    parse_incarnation,
    print_outcome,
)
from pilot.errors import PilotError
from pilot.options import LARGEST_NUMBER, Settings, with_globals
from pilot.terminal.output import Output, print_facts, print_json, print_table, show_name, show_timestamp
from pilot.terminal.terminal import Terminal

if TYPE_CHECKING:
    from pilot.connection import Connection
    from shardhold.v1 import secrets_pb2 as pb

_NOT_SCRUBBED = "NOT_SCRUBBED"
_SCRUBS = 3  # requests, each of which tries for some seconds


@with_globals
def list_(settings: Settings, path: PathArgument) -> None:
    """List the versions of a secret, the newest first."""
    with connect(settings) as connection:
        pages = list(list_pages(connection, path))
    versions = [_version_document(one) for page in pages for one in page.versions]
    if settings.output is Output.JSON:
        print_json({**kept_document(path, pages[0]), "versions": versions})
        return
    rows = [(str(one["version"]), one["state"], one["created_at"], one["destroyed_at"] or "") for one in versions]
    print_facts({"path": path, "kept": show_kept(pages[0])})
    print()
    print_table(("version", "state", "written", "destroyed"), rows)


@with_globals
def undelete(
    settings: Settings,
    path: PathArgument,
    version: Annotated[
        list[int],
        typer.Option(min=1, max=LARGEST_NUMBER, metavar="N", help="The version to bring back; may be repeated."),
    ],
) -> None:
    """Bring deleted versions of a secret back."""
    from shardhold.v1 import secrets_pb2 as pb

    request = pb.UndeleteSecretRequest(path=path, versions=version, request_id=os.urandom(16))
    with connect(settings) as connection:
        response = connection.call(connection.secrets.UndeleteSecret, request)
    print_outcome(settings, {"path": path, "versions": list(response.versions), "revision": response.revision})


@with_globals
def destroy(
    settings: Settings,
    path: PathArgument,
    version: VersionsOption = None,
    expected_version: ExpectedVersion = None,
    expected_incarnation: ExpectedIncarnation = "",
    yes: YesOption = False,
) -> None:
    """Destroy all versions of a secret, or some, deleted or not. Nothing brings them back but an earlier backup."""
    from shardhold.v1 import secrets_pb2 as pb

    incarnation = parse_incarnation(expected_incarnation)
    if not yes:
        which = f"version {', '.join(map(str, version))}" if version else "every version"
        warning = f"This destroys {which} of {path}: value and data key are gone, and only an earlier backup has them."
        ask_for_path(Terminal(), path, warning=warning, refusal="not confirmed: nothing was destroyed")
    request = pb.DestroySecretRequest(
        path=path,
        versions=version or [],
        expected_version=expected_version,
        expected_incarnation=incarnation,
        request_id=os.urandom(16),
    )
    with connect(settings) as connection:
        response = _destroy(connection, request)
    print_outcome(settings, {"path": path, "versions": list(response.versions), "revision": response.revision})


def list_pages(connection: "Connection", path: str) -> "Iterator[pb.ListVersionsResponse]":
    """Return what a nexus says of the versions of a secret, page by page."""
    from shardhold.v1 import secrets_pb2 as pb

    request = pb.ListVersionsRequest(path=path)
    while True:
        response = connection.call(connection.secrets.ListVersions, request)
        yield response
        if not response.next_page_token:
            return
        if response.next_page_token == request.page_token:
            raise PilotError("the nexus answers with the same page again")
        request.page_token = response.next_page_token


def kept_document(path: str, response: "pb.ListVersionsResponse") -> dict[str, Any]:
    """Return how a secret is kept, as JSON."""
    return {
        "path": path,
        "incarnation": response.incarnation.hex(),
        "current_version": response.current_version,
        "max_versions": response.max_versions or None,
        "max_versions_is_own": response.max_versions_is_own,
    }


def show_kept(response: "pb.ListVersionsResponse") -> str:
    """Return how many versions are kept, for people."""
    most = response.max_versions
    count = f"at most {most} version{'s' * (most != 1)}" if most else "all versions"
    return count if response.max_versions_is_own else f"{count}, by the configuration of the nexus"


def _destroy(connection: "Connection", request: "pb.DestroySecretRequest") -> "pb.DestroySecretResponse":
    """Make the request, and again while the versions are destroyed but the files of the store may have them yet."""
    from shardhold._errors import UnavailableError

    tries = 1
    while True:
        try:
            response: pb.DestroySecretResponse = connection.call(connection.secrets.DestroySecret, request)
        except UnavailableError as exc:
            if exc.reason != _NOT_SCRUBBED or tries == _SCRUBS:
                raise
            tries += 1
        else:
            return response


def _version_document(entry: "pb.VersionEntry") -> dict[str, Any]:
    from shardhold.v1 import secrets_pb2 as pb

    is_destroyed = entry.HasField("destroyed_at")
    return {
        "version": entry.version,
        "state": show_name(pb.VersionState.Name, entry.state, "VERSION_STATE_"),
        "created_at": show_timestamp(entry.created_at),
        "destroyed_at": show_timestamp(entry.destroyed_at) if is_destroyed else None,
    }
