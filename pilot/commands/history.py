"""`pilot root history`: the life of every root key."""

from typing import Any

from pilot.commands.documents import generation_document
from pilot.commands.operations import READERS
from pilot.options import Settings
from pilot.terminal.output import Output, print_json, print_table

_COLUMNS = ("generation", "state", "kcv", "created", "current since", "retired", "by", "reason", "notes")
_KCV_DIGITS = 16  # of 64, enough to tell generations apart; -o json has all


def history(settings: Settings) -> None:
    """List the generations of the root key. Roles: operator, superuser, auditor."""
    from pilot.connection import Connection
    from shardhold.v1 import root_pb2 as pb

    with Connection(settings, preferred=READERS) as connection:
        response = connection.call(connection.root.ListGenerations, pb.ListGenerationsRequest())
    documents = [generation_document(record) for record in response.generations]
    if settings.output is Output.JSON:
        print_json(documents)
    else:
        print_table(_COLUMNS, [_to_row(one) for one in documents])


def _to_row(document: dict[str, Any]) -> tuple[str, ...]:
    names = ("created_at", "activated_at", "retired_at", "actor", "reason")
    return (
        str(document["generation"]),
        document["state"],
        (document["kcv"] or "")[:_KCV_DIGITS],
        *(document[name] or "" for name in names),
        "; ".join(_list_notes(document)),
    )


def _list_notes(document: dict[str, Any]) -> list[str]:
    notes = ["made in an emergency"] if document["is_emergency"] else []
    if document["found_at"]:
        notes.append(f"found compromised {document['found_at']}")
    if document["suspected_at"]:
        notes.append(f"suspected since {document['suspected_at']}")
    if document["without_backup"]:
        notes.append(f"without a backup: {document['without_backup']}")
    return notes
