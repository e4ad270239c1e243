"""`pilot keeper`: the keepers, as the nexus sees them."""

from typing import Any

import typer

from pilot.commands.status import keeper_document, to_row
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, print_json, print_table

app = typer.Typer(no_args_is_help=True, add_completion=False)

_ROLES = ("operator", "superuser", "auditor")


@app.callback()
def _keep_as_group() -> None:
    """Keepers."""


@app.command("list")
@with_globals
def list_(settings: Settings) -> None:
    """List the keepers of the current shard set. Roles: operator, superuser, auditor."""
    from pilot.connection import Connection
    from shardhold.v1.cluster_pb2 import ListKeepersRequest

    with Connection(settings, preferred=_ROLES) as connection:
        response = connection.call(connection.cluster.ListKeepers, ListKeepersRequest())
    documents = [to_document(keeper) for keeper in response.keepers]
    if settings.output is Output.JSON:
        print_json(documents)
        return
    print_table(
        ("keeper", "address", "shard", "x", "version", "memory", "SPIFFE ID", "fault"),
        [_to_row(one) for one in documents],
    )


def to_document(info: Any) -> dict[str, Any]:
    """Return a KeeperInfo as JSON, null for what is not known."""
    return {
        **keeper_document(info.status),
        "spiffe_id": info.spiffe_id,
        "x": info.x or None,
        "version": info.version or None,
        "memory_protection": info.memory_protection or None,
    }


def _to_row(document: dict[str, Any]) -> tuple[str, ...]:
    name, address, shard, fault = to_row(document)
    known = (str(document[key] or "") for key in ("x", "version", "memory_protection"))
    return name, address, shard, *known, document["spiffe_id"], fault
