"""The signs of life in a status, as JSON documents: null for what there is not, or what the caller may not see."""

from typing import TYPE_CHECKING, Any

from pilot.commands.documents import DEPTHS, UNKNOWN, job_document, to_text
from pilot.commands.status import keeper_document, to_document

if TYPE_CHECKING:
    from shardhold.v1 import cluster_pb2 as pb


def vitals_document(response: "pb.GetStatusResponse") -> dict[str, Any]:
    """Return a status with its signs of life."""
    sees_all = response.HasField("told_at")  # who has no role does not; nor does a nexus of before tell them
    return to_document(response) | {
        "told_at": to_text(response.told_at),
        "started_at": to_text(response.started_at),
        "svid_expires_at": to_text(response.svid_expires_at),
        "calls": response.calls if sees_all else None,
        "audit": _audit_document(response.audit) if sees_all else None,
        "rotation": _rotation_document(response.rotation) if sees_all else None,
        "keyring_job": job_document(response.keyring_job) if response.HasField("keyring_job") else None,
        "backup": _backup_document(response.backup) if sees_all else None,
        "operation": _operation_document(response.operation) if response.HasField("operation") else None,
        "keepers": [_keeper_document(keeper) for keeper in response.keepers],
        "newest_mark": _find_newest_mark(response),
    }


def _audit_document(audit: "pb.AuditStatus") -> dict[str, Any]:
    return {
        "fault": audit.fault or None,
        "seq": audit.seq,
        "unsynced": audit.unsynced,
        "unexported": audit.unexported,
    }


def _rotation_document(rotation: "pb.RotationStatus") -> dict[str, Any]:
    return {
        "activated_at": to_text(rotation.activated_at),
        "due": rotation.due,
        "next": DEPTHS.get(rotation.next, UNKNOWN) if rotation.next else None,
        "next_at": to_text(rotation.next_at),
        "paused": rotation.paused,
    }


def _backup_document(backup: "pb.BackupStatus") -> dict[str, Any]:
    return {
        "configured": backup.configured,
        "created_at": to_text(backup.created_at),
        "verified_at": to_text(backup.verified_at),
        "timeline": backup.timeline or None,
        "revision": backup.revision or None,
    }


def _operation_document(operation: "pb.Operation") -> dict[str, Any]:
    return {
        "kind": operation.kind,
        "step": operation.step,
        "started_at": to_text(operation.started_at),
        "stepped_at": to_text(operation.stepped_at),
        "waits_for": operation.waits_for or None,
    }


def _keeper_document(keeper: "pb.KeeperStatus") -> dict[str, Any]:
    mark = _mark_document(keeper.mark) if keeper.HasField("mark") else None
    return keeper_document(keeper) | {"mark": mark}


def _mark_document(mark: "pb.TakenMark") -> dict[str, Any]:
    return {"timeline": mark.timeline, "revision": mark.revision, "made_at": to_text(mark.made_at)}


def _find_newest_mark(response: "pb.GetStatusResponse") -> dict[str, Any] | None:
    """Return the newest mark that a keeper remembers, and how many remember one of that place of the store.

    A keeper that does not answer may have ended, and forgotten it.
    """
    taken = [keeper.mark for keeper in response.keepers if keeper.reachable and keeper.HasField("mark")]
    if not taken:
        return None
    newest = max(taken, key=lambda mark: (mark.timeline, mark.revision, mark.made_at.seconds, mark.made_at.nanos))
    place = newest.timeline, newest.revision
    return _mark_document(newest) | {"keepers": sum((mark.timeline, mark.revision) == place for mark in taken)}
