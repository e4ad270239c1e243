"""The client: one method for each call of a workload, with deadlines, safe retries and errors of our own."""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import grpc
import tenacity

from shardhold._channel import PinnedChannel
from shardhold._errors import CancelledError, InvalidArgumentError, UnavailableError, from_rpc
from shardhold._identity import IdentitySource, WorkloadAPI
from shardhold.v1 import cluster_pb2, cluster_pb2_grpc, secrets_pb2, secrets_pb2_grpc

ADDRESS_VARIABLE = "SHARDHOLD_ADDRESS"
SERVER_NAME = "nexus.shardhold"  # the one DNS name in a nexus's SVID, and in nobody else's

# What passes by itself: the transport (no reason), a nexus that recovers its key, a store that is away. A commit whose
# outcome is unknown too, since the request id makes a repeated change the same change. Never a sealed nexus.
RETRIED_REASONS = frozenset({"", "NEXUS_RECOVERING", "STORE_UNAVAILABLE", "OUTCOME_UNKNOWN"})

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0  # with full jitter
_REQUEST_ID_SIZE = 16  # bytes

_Response = TypeVar("_Response")


@dataclass(frozen=True)
class Secret:
    """One version of a secret. Its text form names the fields and shows no value."""

    path: str
    version: int
    incarnation: bytes
    fields: Mapping[str, bytes]
    created_at: datetime

    def __repr__(self) -> str:
        return f"Secret(path={self.path!r}, version={self.version}, fields={sorted(self.fields)})"


@dataclass(frozen=True)
class Written:
    """What a put made: the version within its incarnation (16 bytes), and the store-wide counter after it."""

    version: int
    incarnation: bytes
    revision: int


@dataclass(frozen=True)
class Deleted:
    """What a delete took away: versions, ascending, and the store-wide counter after it."""

    versions: tuple[int, ...]
    revision: int


@dataclass(frozen=True)
class Entry:
    """One line of a list. The newest version may be deleted while older ones are not."""

    path: str
    current_version: int
    incarnation: bytes
    updated_at: datetime


class State(StrEnum):
    """The states of a nexus."""

    UNKNOWN = "unknown"  # newer than this SDK
    UNINITIALISED = "uninitialised"
    INITIALISING = "initialising"
    RECOVERING = "recovering"
    SEALED = "sealed"
    READY = "ready"


@dataclass(frozen=True)
class Status:
    """How the nexus is. `blocked_by` says what keeps it from ready, to callers with a role only."""

    state: State
    version: str
    blocked_by: tuple[str, ...] = ()


class Client:
    """Secrets of a Shardhold cluster, as the workload that this process is. Thread-safe; one for a process is enough.

    Args:
        address: host:port of the nexus; None: SHARDHOLD_ADDRESS.
        identity: Where the SVID comes from, left open by `close`; None: the Workload API at SPIFFE_ENDPOINT_SOCKET.
        timeout: Seconds that a call may take with all its retries, unless the call says otherwise.

    Raises:
        InvalidArgumentError: The address or the time-out is not usable.
        IdentityUnavailableError: The Workload API gave no SVID.
    """

    def __init__(
        self, address: str | None = None, identity: IdentitySource | None = None, *, timeout: float = 5.0
    ) -> None:
        self._address = _check_address(address or os.environ.get(ADDRESS_VARIABLE, ""))
        self._timeout = _check_timeout(timeout)
        source = WorkloadAPI() if identity is None else identity
        self._own_identity = source if identity is None else None
        self._channel = PinnedChannel(self._address, source, server_name=SERVER_NAME)
        self._secrets = secrets_pb2_grpc.SecretServiceStub(self._channel)
        self._cluster = cluster_pb2_grpc.ClusterServiceStub(self._channel)

    def __repr__(self) -> str:
        return f"Client({self._address!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and leave. Idempotent."""
        self._channel.close()
        if self._own_identity is not None:
            self._own_identity.close()

    def put(
        self,
        path: str,
        fields: Mapping[str, bytes | str],
        *,
        expected_version: int | None = None,
        expected_incarnation: bytes | None = None,
        request_id: bytes | None = None,
        timeout: float | None = None,
    ) -> Written:
        """Write the next version of the secret at *path*.

        Values are bytes; text goes as UTF-8. *expected_version* is a check-and-set: the version that must be current, 0
        for a secret that must not exist. The same *request_id* (16 random bytes) given again makes nothing new and
        returns what the first call made: use one to find out what became of a call that ended in a `DeadlineError`.

        Raises:
            ConflictError: Another version is current than expected.
            DeniedError: No policy allows it.
            InvalidArgumentError: Path, fields or sizes break a rule.
            Error: See `shardhold.Error` for the others.
        """
        request = _build(
            secrets_pb2.PutSecretRequest,
            path=path,
            fields={name: _encode(name, value) for name, value in fields.items()},
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=_check_request_id(request_id),
        )
        response = self._call(self._secrets.PutSecret, request, timeout)
        return Written(version=response.version, incarnation=response.incarnation, revision=response.revision)

    def get(self, path: str, *, version: int = 0, timeout: float | None = None) -> Secret:
        """Read the secret at *path*: the given version, or the current one.

        Raises:
            NotFoundError: There is none.
            DeniedError: No policy allows it; whether the path exists is not said.
            Error: See `shardhold.Error` for the others.
        """
        request = _build(secrets_pb2.GetSecretRequest, path=path, version=version)
        response = self._call(self._secrets.GetSecret, request, timeout)
        return Secret(
            path=response.path,
            version=response.version,
            incarnation=response.incarnation,
            fields=MappingProxyType(dict(response.fields)),
            created_at=response.created_at.ToDatetime(tzinfo=UTC),
        )

    def list(self, prefix: str = "", *, page_size: int = 0, timeout: float | None = None) -> Iterator[Entry]:
        """Yield what lies at and below *prefix* and may be listed by this caller; everything for an empty prefix.

        Pages are fetched as they are needed, each with its own time-out; *page_size* is at most 1000, 0 lets the server
        choose. Errors are raised where the iteration reaches them.
        """
        token = ""
        while True:
            request = _build(secrets_pb2.ListSecretsRequest, prefix=prefix, page_size=page_size, page_token=token)
            response = self._call(self._secrets.ListSecrets, request, timeout)
            for entry in response.secrets:
                yield Entry(
                    path=entry.path,
                    current_version=entry.current_version,
                    incarnation=entry.incarnation,
                    updated_at=entry.updated_at.ToDatetime(tzinfo=UTC),
                )
            token = response.next_page_token
            if not token:
                return

    def delete(
        self,
        path: str,
        versions: Iterable[int] | None = None,
        *,
        expected_version: int | None = None,
        expected_incarnation: bytes | None = None,
        request_id: bytes | None = None,
        timeout: float | None = None,
    ) -> Deleted:
        """Delete versions of the secret at *path*: the given ones, or all that are left.

        An empty list of versions is refused, so that a list that came out empty by mistake does not delete everything.

        Raises:
            NotFoundError: There is nothing to delete.
            ConflictError: Another version is current than expected.
            Error: See `shardhold.Error` for the others.
        """
        chosen = None if versions is None else list(versions)
        if chosen == []:
            raise InvalidArgumentError("versions: got none, want at least one, or None for all")
        request = _build(
            secrets_pb2.DeleteSecretRequest,
            path=path,
            versions=chosen,
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=_check_request_id(request_id),
        )
        response = self._call(self._secrets.DeleteSecret, request, timeout)
        return Deleted(versions=tuple(response.versions), revision=response.revision)

    def status(self, *, timeout: float | None = None) -> Status:
        """Say how the nexus is; served in every state and to every caller with an SVID."""
        response = self._call(self._cluster.GetStatus, cluster_pb2.GetStatusRequest(), timeout)
        return Status(
            state=_STATES.get(response.state, State.UNKNOWN),
            version=response.version,
            blocked_by=tuple(response.blocked_by),
        )

    def _call(self, method: Callable[..., _Response], request: Any, timeout: float | None) -> _Response:
        """Make one call, again while that is safe and may help, and all within the time-out.

        Every call here may be repeated: reads change nothing, and a change carries one request id through all repeats.
        """
        allowed = self._timeout if timeout is None else _check_timeout(timeout)
        deadline = monotonic() + allowed

        def attempt() -> _Response:
            try:
                return method(request, timeout=max(deadline - monotonic(), 0.001))
            except grpc.RpcError as exc:
                raise from_rpc(exc) from exc
            except ValueError as exc:  # what a closed channel raises
                raise CancelledError(f"no call is possible: {exc}") from exc

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_worth_repeating),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            stop=tenacity.stop_before_delay(allowed),
            reraise=True,
        )
        return retrying(attempt)


_STATES: Mapping[int, State] = MappingProxyType(
    {
        cluster_pb2.STATE_UNINITIALISED: State.UNINITIALISED,
        cluster_pb2.STATE_INITIALISING: State.INITIALISING,
        cluster_pb2.STATE_RECOVERING: State.RECOVERING,
        cluster_pb2.STATE_SEALED: State.SEALED,
        cluster_pb2.STATE_READY: State.READY,
    }
)


def _is_worth_repeating(error: BaseException) -> bool:
    return (
        isinstance(error, UnavailableError)
        and error.code is grpc.StatusCode.UNAVAILABLE
        and error.reason in RETRIED_REASONS
    )


def _build(message: Callable[..., _Response], **parts: object) -> _Response:
    try:
        return message(**parts)
    except ValueError as exc:  # a number that its field cannot hold
        raise InvalidArgumentError(str(exc)) from exc


def _encode(name: str, value: bytes | str) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            # Without its cause, which would carry the value.
            raise InvalidArgumentError(f"fields: the text of {name!r} is not Unicode, want bytes") from None
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"fields: {name!r} is {type(value).__name__}, want bytes or str")
    return bytes(value)


def _check_request_id(request_id: bytes | None) -> bytes:
    if request_id is None:
        return secrets.token_bytes(_REQUEST_ID_SIZE)
    if len(request_id) != _REQUEST_ID_SIZE:
        raise InvalidArgumentError(f"request_id: got {len(request_id)} bytes, want {_REQUEST_ID_SIZE}")
    return request_id


def _check_timeout(timeout: float) -> float:
    if not 0 < timeout < float("inf"):
        raise InvalidArgumentError(f"timeout: got {timeout!r}, want seconds above 0")
    return timeout


def _check_address(address: str) -> str:
    if not address:
        raise InvalidArgumentError(f"no address: {ADDRESS_VARIABLE} is not set")
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        raise InvalidArgumentError(f"address: got {address!r}, want host:port")
    return address
