"""How the root key stands, for people."""

from typing import Any

from pilot.commands.following import describe_job, describe_wait
from pilot.terminal.output import group_hex, print_facts, print_table


def print_root(document: dict[str, Any]) -> None:
    """Print how the root key stands; *document* as `root_document` makes it."""
    since = f", current since {document['activated_at']}" if document["activated_at"] else ""
    facts = {
        "generation": f"{document['generation']}{since}",
        "shard set": f"{document['set_number']}, {document['threshold']} of {document['keepers']} keepers"
        + (f", drawn {document['drawn_at']}" if document["drawn_at"] else ""),
    }
    if (last := document["last"]) is not None:
        detail = f": {last['detail']}" if last["detail"] else ""
        ended = f"{last['outcome']} {last['ended_at']}{detail}"
        facts["last operation"] = f"{last['depth']}, {_name_change(last)}, {ended}"
    if document["operation"] is None:
        facts["operation"] = "none"
    facts |= _list_job(document["keyring_job"])
    if document["paused"]:
        facts["paused"] = document["paused"]
    if document["next_scheduled_at"]:
        facts["next"] = f"{document['next_scheduled']} {document['next_scheduled_at']}, by schedule"
    if document["dead_sets"]:
        facts["dead sets"] = f"{document['dead_sets']}: keepers may hold a shard of them yet"
    print_facts(facts)
    if document["operation"] is not None:
        print_operation(document["operation"])
    if len(document["keks"]) > 1:
        print()
        print_table(("KEK", "state", "generation", "verified", "given up"), [_to_row(kek) for kek in document["keks"]])


def print_operation(operation: dict[str, Any]) -> None:
    """Print an operation in progress; *operation* as `operation_document` makes it."""
    facts = {
        "operation": f"{operation['depth']}, {_name_change(operation)}",
        "step": f"{operation['step']} since {operation['stepped_at']}",
        "began": f"{operation['started_at']} by {operation['actor']}",
        "holders": f"{len(operation['holders'])} of {operation['keepers']} keepers, want {operation['quorum']}",
    }
    if operation["kcv"]:
        facts["kcv"] = group_hex(bytes.fromhex(operation["kcv"]))
    if operation["reason"]:
        facts["reason"] = operation["reason"]
    if operation["waits_for"]:
        facts["waits for"] = operation["waits_for"]
    print_facts(facts)


def _name_change(operation: dict[str, Any]) -> str:
    sets = f"set {operation['set_from']} → {operation['set_to']}"
    if operation["generation_from"] == operation["generation_to"]:
        return sets
    return f"generation {operation['generation_from']} → {operation['generation_to']}, {sets}"


def _list_job(job: dict[str, Any] | None) -> dict[str, str]:
    if job is None:
        return {}
    facts = {"re-wrapping": describe_job(job)}
    if wait := describe_wait(job):
        facts["keyring job"] = wait
    return facts


def _to_row(kek: dict[str, Any]) -> tuple[str, ...]:
    abandoned = str(kek["abandoned"] or "")
    return str(kek["id"]), kek["state"], str(kek["generation"]), kek["verified_at"] or "", abandoned
