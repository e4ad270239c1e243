"""`pilot keeper`: the keepers as the nexus sees them, and changes of who they are, each of which is a reshare."""

from typing import Annotated, Any

import typer

from pilot.commands.operations import DryRunOption, ReasonOption, WaitOption, start
from pilot.commands.status import keeper_document, to_row
from pilot.completion import complete_keepers
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, print_json, print_table

app = typer.Typer(no_args_is_help=True, add_completion=False)

_ROLES = ("operator", "superuser", "auditor")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the keeper.")]
KeeperArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the keeper.", autocompletion=complete_keepers)
]
AddressArgument = Annotated[str, typer.Argument(metavar="ADDRESS", help="Its host:port.")]
SpiffeIdArgument = Annotated[str, typer.Argument(metavar="SPIFFE_ID", help="Its exact SPIFFE ID.")]
LostOption = Annotated[bool, typer.Option("--lost", help="It never comes back: wait for nothing from it.")]
ThresholdOption = Annotated[
    int,
    typer.Option(
        "--threshold", min=0, max=255, metavar="T", help="Keepers that rebuild the key; 0: as now.", show_default=False
    ),
]


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


@app.command()
@with_globals
def add(
    settings: Settings,
    name: NameArgument,
    at: AddressArgument,
    spiffe_id: SpiffeIdArgument,
    threshold: ThresholdOption = 0,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
) -> None:
    """Let another keeper hold a shard: a reshare. Role: superuser."""
    from shardhold.v1 import root_pb2 as pb

    request = pb.StartOperationRequest(depth=pb.DEPTH_RESHARE, threshold=threshold, reason=reason, dry_run=dry_run)
    request.add.add(name=name, address=at, spiffe_id=spiffe_id)
    start(settings, request, wait=wait)


@app.command()
@with_globals
def remove(
    settings: Settings,
    name: KeeperArgument,
    lost: LostOption = False,
    threshold: ThresholdOption = 0,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
) -> None:
    """Let a keeper hold no shard any more: a reshare. Roles: operator, superuser."""
    from shardhold.v1 import root_pb2 as pb

    request = pb.StartOperationRequest(
        depth=pb.DEPTH_RESHARE,
        threshold=threshold,
        reason=reason,
        dry_run=dry_run,
        remove=[name],
        lost=[name] if lost else [],
    )
    start(settings, request, wait=wait)


@app.command()
@with_globals
def replace(
    settings: Settings,
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="Name of the keeper that leaves.", autocompletion=complete_keepers)
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the keeper that joins.")],
    at: AddressArgument,
    spiffe_id: SpiffeIdArgument,
    lost: LostOption = False,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    wait: WaitOption = False,
) -> None:
    """Let another keeper take the place of one: a reshare. Role: superuser."""
    from shardhold.v1 import root_pb2 as pb

    request = pb.StartOperationRequest(
        depth=pb.DEPTH_RESHARE, reason=reason, dry_run=dry_run, remove=[old], lost=[old] if lost else []
    )
    request.add.add(name=new, address=at, spiffe_id=spiffe_id)
    start(settings, request, wait=wait)


def to_document(info: Any) -> dict[str, Any]:
    """Return a KeeperInfo as JSON, null for what is not known."""
    return {
        **keeper_document(info.status),
        "spiffe_id": info.spiffe_id,
        "x": info.x or None,
        "version": info.version or None,
        "memory_protection": info.memory_protection or None,
        "sets": list(info.sets),
    }


def _to_row(document: dict[str, Any]) -> tuple[str, ...]:
    name, address, shard, fault = to_row(document)
    if len(document["sets"]) > document["holds_current_set"]:
        shard += f" (sets: {', '.join(map(str, document['sets']))})"
    known = (str(document[key] or "") for key in ("x", "version", "memory_protection"))
    return name, address, shard, *known, document["spiffe_id"], fault
