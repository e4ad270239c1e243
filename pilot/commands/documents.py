"""Operations, the keyring job, KEKs and generations as JSON documents: null for what there is not."""

import math
from typing import TYPE_CHECKING, Any

from pilot.terminal.output import show_timestamp

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from shardhold.v1 import root_pb2 as pb

UNKNOWN = "unknown"  # a newer nexus knows more of them than this pilot
DEPTHS = {1: "reshare", 2: "rotate", 3: "emergency"}
STEPS = {1: "prepared", 2: "distributed", 3: "flipped"}
OUTCOMES = {1: "settled", 2: "aborted"}
KEK_STATES = {1: "current", 2: "old", 3: "tainted"}
GENERATION_STATES = {
    1: "pending",
    2: "active",
    3: "decrypt-only",
    4: "retired",
    5: "compromised",
    6: "destroyed",
    7: "aborted",
}


def root_document(answer: "pb.GetOperationResponse") -> dict[str, Any]:
    """Return how the root key stands."""
    return {
        "generation": answer.generation,
        "created_at": to_text(answer.created_at),
        "activated_at": to_text(answer.activated_at),
        "set_number": answer.set_number,
        "threshold": answer.threshold,
        "keepers": answer.keepers,
        "drawn_at": to_text(answer.drawn_at),
        "operation": operation_document(answer.operation) if answer.HasField("operation") else None,
        "last": ended_document(answer.last) if answer.HasField("last") else None,
        "keyring_job": job_document(answer.job) if answer.HasField("job") else None,
        "keks": [_kek_document(kek) for kek in answer.keks],
        "next_scheduled_at": to_text(answer.next_scheduled_at),
        "paused": answer.paused or None,
        "next_scheduled": DEPTHS.get(answer.next_scheduled, UNKNOWN) if answer.next_scheduled else None,
        "dead_sets": answer.dead_sets,
    }


def operation_document(operation: "pb.RootOperation") -> dict[str, Any]:
    """Return an operation in progress."""
    return {
        "id": operation.operation_id.hex(),
        "depth": DEPTHS.get(operation.depth, UNKNOWN),
        "step": STEPS.get(operation.step, UNKNOWN),
        "reason": operation.reason,
        "actor": operation.actor,
        "started_at": to_text(operation.started_at),
        "stepped_at": to_text(operation.stepped_at),
        "generation_from": operation.generation_from,
        "generation_to": operation.generation_to,
        "kcv": operation.kcv.hex() or None,
        "kek_from": operation.kek_from,
        "kek_to": operation.kek_to,
        "set_from": operation.set_from,
        "set_to": operation.set_to,
        "threshold": operation.threshold,
        "keepers": operation.keepers,
        "holders": list(operation.holders),
        "quorum": operation.quorum,
        "waits_for": operation.waits_for or None,
    }


def ended_document(ended: "pb.EndedOperation") -> dict[str, Any]:
    """Return an operation that has ended."""
    return {
        "id": ended.operation_id.hex(),
        "depth": DEPTHS.get(ended.depth, UNKNOWN),
        "outcome": OUTCOMES.get(ended.outcome, UNKNOWN),
        "detail": ended.detail or None,
        "ended_at": to_text(ended.ended_at),
        "generation_from": ended.generation_from,
        "generation_to": ended.generation_to,
        "set_from": ended.set_from,
        "set_to": ended.set_to,
    }


def job_document(job: "pb.KeyringJob") -> dict[str, Any]:
    """Return the keyring job."""
    return {
        "rows_total": job.rows_total,
        "rows_left": job.rows_left,
        "rows_per_second": _to_number(job.rows_per_second),
        "seconds_left": _to_number(job.seconds_left) if job.HasField("seconds_left") else None,
        "quarantine": job.quarantine,
        "waits_for": job.waits_for or None,
        "paused": job.paused or None,
    }


def generation_document(record: "pb.Generation") -> dict[str, Any]:
    """Return the life of one root key."""
    return {
        "generation": record.generation,
        "state": GENERATION_STATES.get(record.state, UNKNOWN),
        "kcv": record.kcv.hex() or None,
        "created_at": to_text(record.created_at),
        "activated_at": to_text(record.activated_at),
        "retired_at": to_text(record.retired_at),
        "suspected_at": to_text(record.suspected_at),
        "found_at": to_text(record.found_at),
        "actor": record.actor or None,
        "reason": record.reason or None,
        "is_emergency": record.is_emergency,
        "without_backup": record.without_backup or None,
        "people_had_it_at": to_text(record.people_had_it_at),
    }


def to_text(moment: "Timestamp") -> str | None:
    """Return a moment; None: it is not set."""
    return show_timestamp(moment) if moment.seconds else None


def _kek_document(kek: "pb.Kek") -> dict[str, Any]:
    return {
        "id": kek.id,
        "state": KEK_STATES.get(kek.state, UNKNOWN),
        "generation": kek.generation,
        "verified_at": to_text(kek.verified_at),
        "abandoned": kek.abandoned,
    }


def _to_number(value: float) -> float | None:
    """Return a number that JSON has; None: it is no such number."""
    return value if math.isfinite(value) else None
