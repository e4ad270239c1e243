"""The errors that a fake nexus answers with: of the class, code and reason that a real one's have."""

from shardhold._errors import ConflictError, DeniedError, InvalidArgumentError, NotFoundError, SealedError
from shardhold._quiet import grpc


def invalid(message: str) -> InvalidArgumentError:
    """Refuse an argument."""
    return InvalidArgumentError(message, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


def not_found(message: str) -> NotFoundError:
    """Say that something is not there."""
    return NotFoundError(message, grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


def conflict(message: str) -> ConflictError:
    """Refuse a check-and-set."""
    return ConflictError(message, grpc.StatusCode.ABORTED, "VERSION_CONFLICT")


def denied(caller: str, permission: str, path: str, *, where: str = "on this path") -> DeniedError:
    """Refuse what no policy allows; *path* is empty for a list of everything."""
    message = f"{caller} is not allowed: a policy has to give it {permission} {where}"
    return DeniedError(f"{path}: {message}" if path else message, grpc.StatusCode.PERMISSION_DENIED, "DENIED")


def sealed() -> SealedError:
    """Refuse everything but the status."""
    return SealedError("the nexus is sealed", grpc.StatusCode.UNAVAILABLE, "NEXUS_SEALED")
