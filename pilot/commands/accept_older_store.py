"""`pilot accept-older-store`: continue with a store older than keepers remember, or restored from a backup."""

from typing import TYPE_CHECKING, Annotated

import typer

from pilot.errors import FAILED, USAGE, PilotError
from pilot.options import LARGEST_NUMBER, Settings, with_globals
from pilot.plain import clean
from pilot.terminal.output import Output, print_facts, print_json, show_timestamp

if TYPE_CHECKING:
    from pilot.terminal.terminal import Terminal
    from shardhold.v1.cluster_pb2 import GetStatusResponse

app = typer.Typer(add_completion=False)


@app.command("accept-older-store")
@with_globals
def accept_older_store(
    settings: Settings,
    timeline: Annotated[
        int, typer.Option(min=1, max=LARGEST_NUMBER, metavar="T", help="The store's present timeline.")
    ],
    revision: Annotated[
        int, typer.Option(min=0, max=LARGEST_NUMBER, metavar="R", help="The store's present revision.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; for automation.")] = False,
) -> None:
    """Accept a store that is older than a rollback mark says, or restored: what was committed after it is lost.

    'pilot status' shows the store's timeline and revision, and the mark if there is one. Role: superuser.
    """
    from pilot.connection import Connection
    from pilot.terminal.terminal import Terminal
    from shardhold.v1 import cluster_pb2 as pb

    with Connection(settings, preferred=("superuser",)) as connection:
        status = connection.call(connection.cluster.GetStatus, pb.GetStatusRequest())
        check(status, timeline=timeline, revision=revision)
        if not yes:
            ask(Terminal(), status)
        request = pb.AcceptOlderStoreRequest(timeline=timeline, revision=revision)
        response = connection.call(connection.cluster.AcceptOlderStore, request)
    if settings.output is Output.JSON:
        print_json({"timeline": response.timeline})
    else:
        print_facts({"accepted": f"timeline {timeline}, revision {revision}", "timeline": f"{response.timeline} began"})


def check(status: "GetStatusResponse", *, timeline: int, revision: int) -> None:
    """Check that there is something to accept, and that the store is where the caller saw it.

    Raises:
        PilotError: There is no newer mark, or the store is at another timeline or revision.
    """
    if not (status.HasField("newer_mark") or status.restored):
        raise PilotError(
            "no rollback mark is newer than the store, and it was not restored: there is nothing to accept",
            "'pilot status' shows what blocks the nexus, if anything does",
            exit_code=FAILED,
        )
    if (status.timeline, status.revision) != (timeline, revision):
        raise PilotError(
            f"the store is at timeline {status.timeline}, revision {status.revision}; got {timeline} and {revision}",
            "check 'pilot status' again before you accept",
            exit_code=USAGE,
        )


def ask(terminal: "Terminal", status: "GetStatusResponse") -> None:
    """Make a person type what is about to be lost.

    Raises:
        PilotError: Not confirmed.
    """
    from pilot.terminal.confirmation import confirm

    phrase = f"lose everything after {status.revision}"
    confirm(
        terminal,
        describe_loss(status),
        question=f"type: {phrase}",
        answers=(phrase,),
        refusal="not confirmed: nothing was accepted, the nexus stays blocked",
    )


def describe_loss(status: "GetStatusResponse") -> str:
    """Say what accepting loses, from which revision to which, who remembers it and since when."""
    mark = status.newer_mark
    if not status.HasField("newer_mark"):
        return (
            f"The store of cluster {status.cluster_id.hex()} was restored from a backup of timeline "
            f"{status.timeline}, revision {status.revision}. Accepting it loses for good whatever was committed after "
            "that; no keeper that answers remembers more.\n"
            "If a newer copy of the store or a newer backup exists, stop here and restore that one."
        )
    if mark.timeline == status.timeline and mark.revision > status.revision:
        lost = f"revisions {status.revision + 1} to {mark.revision} ({mark.revision - status.revision} of them)"
    elif mark.timeline == status.timeline:
        lost = "what its policies, settings or seal had come to"
    else:
        lost = f"what came after revision {status.revision}, up to timeline {mark.timeline}, revision {mark.revision}"
    keepers = ", ".join(clean(name) for name in mark.keepers) or "a keeper"
    return (
        f"The store of cluster {status.cluster_id.hex()} is at timeline {status.timeline}, revision {status.revision}. "
        f"Accepting it loses for good:\n"
        f"  {lost} of timeline {status.timeline},\n"
        f"  and whatever was committed after that mark was made.\n"
        f"The mark was made at {show_timestamp(mark.made_at)}; it is held by {keepers}.\n"
        "If a newer copy of the store exists, stop here and restore that one."
    )
