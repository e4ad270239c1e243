"""The errors that a fake nexus answers with: of the class, code and reason that a real one's have."""

from shardhold._calls import WHO_ALLOWS
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


def denied(caller: str, wanted: str, path: str) -> DeniedError:
    """Refuse what no policy allows: *wanted* on *path*, which is empty for a list."""
    message = f"{caller} is not allowed: it needs {wanted}"
    return DeniedError(
        f"{path}: {message}" if path else message, grpc.StatusCode.PERMISSION_DENIED, "DENIED", WHO_ALLOWS
    )


def sealed() -> SealedError:
    """Refuse everything but the status."""
    return SealedError("the nexus is sealed", grpc.StatusCode.UNAVAILABLE, "NEXUS_SEALED")
