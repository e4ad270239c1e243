"""`pilot secret metadata`: how a secret is kept."""

import os
from typing import Annotated

import typer

from pilot.commands.secret_options import PathArgument, YesOption, ask_for_path, connect, print_outcome
from pilot.commands.versions import kept_document, list_pages, show_kept
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, print_facts, print_json
from pilot.terminal.terminal import Terminal

app = typer.Typer(no_args_is_help=True, add_completion=False, help="How a secret is kept.")

_MOST_VERSIONS = 1_000_000


@app.command()
@with_globals
def get(settings: Settings, path: PathArgument) -> None:
    """Show how a secret is kept."""
    with connect(settings) as connection:
        response = next(list_pages(connection, path))
    if settings.output is Output.JSON:
        print_json(kept_document(path, response))
    else:
        print_facts({"path": path, "newest version": str(response.current_version), "kept": show_kept(response)})


@app.command("set")
@with_globals
def set_(
    settings: Settings,
    path: PathArgument,
    max_versions: Annotated[
        int,
        typer.Option(
            min=0,
            max=_MOST_VERSIONS,
            metavar="N",
            help="Keep so many of the newest versions, and destroy older ones; 0: as the nexus is configured.",
        ),
    ],
    yes: YesOption = False,
) -> None:
    """Set how a secret is kept."""
    from shardhold.v1 import secrets_pb2 as pb

    terminal = Terminal()
    if max_versions and not yes and terminal.is_there():
        warning = (
            f"Versions of {path} older than the newest {max_versions} are destroyed; only an earlier backup has them."
        )
        ask_for_path(terminal, path, warning=warning, refusal="not confirmed: nothing was changed")
    request = pb.UpdateSecretMetadataRequest(path=path, max_versions=max_versions, request_id=os.urandom(16))
    with connect(settings) as connection:
        response = connection.call(connection.secrets.UpdateSecretMetadata, request)
    print_outcome(settings, {"path": path, "max_versions": max_versions, "revision": response.revision})
