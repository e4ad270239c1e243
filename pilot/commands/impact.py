"""`pilot root impact`: what a holder of an old root key could read."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.commands.documents import GENERATION_STATES, UNKNOWN, to_text
from pilot.commands.operations import READERS
from pilot.errors import PilotError
from pilot.options import LARGEST_NUMBER, Settings
from pilot.terminal.output import Output, print_facts, print_json, print_table

if TYPE_CHECKING:
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

_COLUMNS = ("path", "versions", "newest", "written", "still current")


def impact(
    settings: Settings,
    generation: Annotated[
        int, typer.Option("--generation", min=1, max=LARGEST_NUMBER, metavar="G", help="Of the root key.")
    ],
    current: Annotated[
        bool, typer.Option("--current", help="Only secrets of which the current version could be read.")
    ] = False,
) -> None:
    """List what a holder of a root key and of a copy of the store could read. Roles: operator, superuser, auditor.

    These are all versions written before the next generation became current. Where the newest one that is not deleted
    is among them, the secret is still current: change it at its source, and write the new value.
    Only what the store still has is listed, not a secret that was deleted whole and then written anew.
    """
    from pilot.connection import Connection

    secrets: list[dict[str, Any]] = []
    with Connection(settings, preferred=READERS) as connection:
        for page in _list_pages(connection, generation):
            secrets += map(_to_document, page.secrets)
    # The last page knows of a key that became current meanwhile: it counts for the pages before as well.
    document = {
        "generation": generation,
        "state": GENERATION_STATES.get(page.state, UNKNOWN) if page.state else None,
        "until": to_text(page.until),
        "until_revision": page.until_revision or None,
        "total": _count(secrets),
        "secrets": [one for one in secrets if one["is_current"]] if current else secrets,
    }
    if settings.output is Output.JSON:
        print_json(document)
    else:
        _print(document)


def _list_pages(connection: "Connection", generation: int) -> "Iterator[pb.ListImpactResponse]":
    """Yield one page at least."""
    from shardhold.v1 import root_pb2 as pb

    after = ""
    while True:
        request = pb.ListImpactRequest(generation=generation, after=after)
        page = connection.call(connection.root.ListImpact, request)
        yield page
        if not page.next:
            return
        if page.next.encode() <= after.encode():
            raise PilotError("the nexus answers with the same page again")
        after = page.next


def _to_document(secret: "pb.ExposedSecret") -> dict[str, Any]:
    return {
        "path": secret.path,
        "versions": secret.versions,
        "newest_version": secret.newest_version,
        "is_current": secret.is_current,
        "written_at": to_text(secret.written_at),
    }


def _count(secrets: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {
        "secrets": len(secrets),
        "versions": sum(one["versions"] for one in secrets),
        "current": sum(one["is_current"] for one in secrets),
    }


def _print(document: dict[str, Any]) -> None:
    if document["secrets"]:
        print_table(_COLUMNS, [_to_row(one) for one in document["secrets"]])
        print()
    total = document["total"]
    versions = _tell(total["versions"], "version")
    print_facts(
        {
            "root key": f"generation {document['generation']}, {document['state'] or 'whose row does not verify'}",
            "could be read": f"{versions} of {_tell(total['secrets'], 'secret')}, {_tell_end(document)}",
            "still current": f"{_tell(total['current'], 'secret')}, to be changed at the source",
        }
    )


def _tell(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _tell_end(document: dict[str, Any]) -> str:
    if document["until_revision"] is None:
        return "which is all: no later root key became current"
    return f"written before {document['until'] or UNKNOWN} (revision {document['until_revision']})"


def _to_row(document: dict[str, Any]) -> tuple[str, ...]:
    numbers = (f"{document['versions']:,}", str(document["newest_version"]))
    return document["path"], *numbers, document["written_at"] or "", "yes" if document["is_current"] else ""
