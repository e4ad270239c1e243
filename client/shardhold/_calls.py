"""What both clients share: defaults, requests, the reading of responses, and the errors of calls.

Nothing here waits. `Client` and `AsyncClient` differ only in how they wait.
"""

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from shardhold._errors import (
    ClientClosedError,
    ConflictError,
    DeadlineError,
    DeniedError,
    Error,
    IntegrityError,
    InvalidArgumentError,
    NotFoundError,
    from_rpc,
    shorten,
)
from shardhold._quiet import grpc
from shardhold._results import (
    Deleted,
    Destroyed,
    Entry,
    Secret,
    State,
    Status,
    Undeleted,
    Updated,
    Version,
    VersionState,
    Written,
)
from shardhold.v1 import cluster_pb2, cluster_pb2_grpc, secrets_pb2, secrets_pb2_grpc

ADDRESS_VARIABLE = "SHARDHOLD_ADDRESS"
SERVER_NAME = "nexus.shardhold"  # the one DNS name in a nexus's SVID, and in nobody else's
TIMEOUT_S = 5.0  # of a call, all its tries included

# What a try may raise: an answer or a broken connection, a closed channel, an identity that is not there.
FAILURES = (grpc.RpcError, ValueError, Error)

_ABOUT_THE_PATH = (NotFoundError, DeniedError, ConflictError, IntegrityError, DeadlineError)

_LONGEST_TIMEOUT_S = 24 * 3600.0  # far beyond it gRPC treats a deadline as one that has passed
_REQUEST_ID_SIZE = 16  # bytes

_Message = TypeVar("_Message")
Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One call: the RPC's name, its request, how its response is read, and the path or prefix that it is about.

    Every call may be repeated: reads change nothing, and a change carries one request id through all repeats.
    """

    rpc: str
    request: Any
    read: Callable[[Any], Result]
    path: str = ""

    def explain(self, failure: Exception) -> Error:
        """Turn *failure*, one of `FAILURES`, into the error that the caller gets; raise it ``from None``."""
        if isinstance(failure, grpc.RpcError):
            return self._explain_answer(from_rpc(failure))
        if isinstance(failure, Error):
            return shorten(failure)
        error = ClientClosedError(f"no call is possible: {failure}")
        error.cause = failure
        return error

    def _explain_answer(self, error: Error) -> Error:
        if self.path and isinstance(error, _ABOUT_THE_PATH) and not error.message.startswith(f"{self.path}: "):
            error.message = f"{self.path}: {error.message}"
            error.args = (error.message,)
        return error


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some items of a list, and the call that fetches the next ones; None after the last."""

    items: tuple[Item, ...]
    following: "Call[Page[Item]] | None"


def put_secret(
    path: str,
    fields: Mapping[str, bytes | str],
    *,
    expected_version: int | None,
    expected_incarnation: bytes | None,
    request_id: bytes | None,
) -> Call[Written]:
    """Build the call that writes the next version."""
    request = _build(
        secrets_pb2.PutSecretRequest,
        path=path,
        fields=_encode_all(fields),
        expected_version=expected_version,
        expected_incarnation=expected_incarnation,
        request_id=_check_request_id(request_id),
    )
    return Call("PutSecret", request, _read_written, path)


def patch_secret(
    path: str,
    fields: Mapping[str, bytes | str],
    *,
    remove: Iterable[str],
    expected_version: int | None,
    expected_incarnation: bytes | None,
    request_id: bytes | None,
) -> Call[Written]:
    """Build the call that writes the next version from the current one."""
    if isinstance(remove, str):
        raise InvalidArgumentError(f"remove: got {remove!r}, want names of fields, as in [{remove!r}]")
    request = _build(
        secrets_pb2.PatchSecretRequest,
        path=path,
        fields=_encode_all(fields),
        removed_fields=list(remove),
        expected_version=expected_version,
        expected_incarnation=expected_incarnation,
        request_id=_check_request_id(request_id),
    )
    return Call("PatchSecret", request, _read_written, path)


def get_secret(path: str, *, version: int) -> Call[Secret]:
    """Build the call that reads one version; 0 is the current one."""

    def read(response: secrets_pb2.GetSecretResponse) -> Secret:
        return Secret(
            path=response.path,
            version=response.version,
            incarnation=response.incarnation,
            fields=MappingProxyType(dict(sorted(response.fields.items()))),
            created_at=response.created_at.ToDatetime(tzinfo=UTC),
        )

    return Call("GetSecret", _build(secrets_pb2.GetSecretRequest, path=path, version=version), read, path)


def list_secrets(prefix: str, *, include_deleted: bool, page_size: int, page_token: str = "") -> Call[Page[Entry]]:
    """Build the call that fetches one page; the page has the call for the next."""

    def read(response: secrets_pb2.ListSecretsResponse) -> Page[Entry]:
        token = response.next_page_token
        return Page(
            tuple(map(_read_entry, response.secrets)),
            list_secrets(prefix, include_deleted=include_deleted, page_size=page_size, page_token=token)
            if token
            else None,
        )

    request = _build(
        secrets_pb2.ListSecretsRequest,
        prefix=prefix,
        page_size=page_size,
        page_token=page_token,
        include_deleted=include_deleted,
    )
    return Call("ListSecrets", request, read, prefix)


def list_versions(path: str, *, page_size: int, page_token: str = "") -> Call[Page[Version]]:
    """Build the call that fetches one page of versions; the page has the call for the next."""

    def read(response: secrets_pb2.ListVersionsResponse) -> Page[Version]:
        token = response.next_page_token
        return Page(
            tuple(map(_read_version, response.versions)),
            list_versions(path, page_size=page_size, page_token=token) if token else None,
        )

    request = _build(secrets_pb2.ListVersionsRequest, path=path, page_size=page_size, page_token=page_token)
    return Call("ListVersions", request, read, path)


def delete_secret(
    path: str,
    versions: Iterable[int] | None,
    *,
    expected_version: int | None,
    expected_incarnation: bytes | None,
    request_id: bytes | None,
) -> Call[Deleted]:
    """Build the call that deletes the given versions, or all of them for None; an empty list is refused."""
    request = _build(
        secrets_pb2.DeleteSecretRequest,
        path=path,
        versions=_choose(versions),
        expected_version=expected_version,
        expected_incarnation=expected_incarnation,
        request_id=_check_request_id(request_id),
    )

    def read(response: secrets_pb2.DeleteSecretResponse) -> Deleted:
        return Deleted(versions=tuple(response.versions), revision=response.revision)

    return Call("DeleteSecret", request, read, path)


def undelete_secret(path: str, versions: Iterable[int], *, request_id: bytes | None) -> Call[Undeleted]:
    """Build the call that brings deleted versions back; an empty list is refused."""
    request = _build(
        secrets_pb2.UndeleteSecretRequest,
        path=path,
        versions=_require(versions),
        request_id=_check_request_id(request_id),
    )

    def read(response: secrets_pb2.UndeleteSecretResponse) -> Undeleted:
        return Undeleted(versions=tuple(response.versions), revision=response.revision)

    return Call("UndeleteSecret", request, read, path)


def destroy_secret(
    path: str,
    versions: Iterable[int] | None,
    *,
    expected_version: int | None,
    expected_incarnation: bytes | None,
    request_id: bytes | None,
) -> Call[Destroyed]:
    """Build the call that destroys the given versions, or all of them for None; an empty list is refused."""
    request = _build(
        secrets_pb2.DestroySecretRequest,
        path=path,
        versions=_choose(versions),
        expected_version=expected_version,
        expected_incarnation=expected_incarnation,
        request_id=_check_request_id(request_id),
    )

    def read(response: secrets_pb2.DestroySecretResponse) -> Destroyed:
        return Destroyed(versions=tuple(response.versions), revision=response.revision)

    return Call("DestroySecret", request, read, path)


def update_metadata(path: str, *, max_versions: int, request_id: bytes | None) -> Call[Updated]:
    """Build the call that sets how many versions are kept; 0: as the configuration says."""
    request = _build(
        secrets_pb2.UpdateSecretMetadataRequest,
        path=path,
        max_versions=max_versions,
        request_id=_check_request_id(request_id),
    )

    def read(response: secrets_pb2.UpdateSecretMetadataResponse) -> Updated:
        return Updated(revision=response.revision)

    return Call("UpdateSecretMetadata", request, read, path)


def get_status() -> Call[Status]:
    """Build the call that asks for the status of the nexus."""

    def read(response: cluster_pb2.GetStatusResponse) -> Status:
        return Status(
            state=_STATES.get(response.state, State.UNKNOWN),
            version=response.version,
            blocked_by=tuple(response.blocked_by),
        )

    return Call("GetStatus", cluster_pb2.GetStatusRequest(), read)


def find_methods(channel: grpc.Channel | grpc.aio.Channel) -> Mapping[str, Callable[..., Any]]:
    """Return a callable for each RPC over *channel*, by the RPC's name."""
    return {**vars(secrets_pb2_grpc.SecretServiceStub(channel)), **vars(cluster_pb2_grpc.ClusterServiceStub(channel))}


def check_timeout(timeout: float) -> float:
    """Return *timeout*, in seconds; `InvalidArgumentError` when it is not a usable time-out."""
    if not 0 < timeout <= _LONGEST_TIMEOUT_S:
        raise InvalidArgumentError(f"timeout: got {timeout!r}, want seconds above 0 and at most a day")
    return timeout


def choose_address(address: str | None) -> str:
    """Return *address*, or that of the environment; `InvalidArgumentError` when it is not host:port."""
    chosen = address or os.environ.get(ADDRESS_VARIABLE, "")
    if not chosen:
        raise InvalidArgumentError(f"no address: {ADDRESS_VARIABLE} is not set")
    host, _, port = chosen.rpartition(":")
    if not host or "/" in chosen or not port.isdecimal():
        raise InvalidArgumentError(f"address: got {chosen!r}, want host:port")
    return chosen


_STATES: Mapping[int, State] = MappingProxyType(
    {
        cluster_pb2.STATE_UNINITIALISED: State.UNINITIALISED,
        cluster_pb2.STATE_INITIALISING: State.INITIALISING,
        cluster_pb2.STATE_RECOVERING: State.RECOVERING,
        cluster_pb2.STATE_SEALED: State.SEALED,
        cluster_pb2.STATE_READY: State.READY,
    }
)


_VERSION_STATES: Mapping[int, VersionState] = MappingProxyType(
    {
        secrets_pb2.VERSION_STATE_LIVE: VersionState.LIVE,
        secrets_pb2.VERSION_STATE_DELETED: VersionState.DELETED,
        secrets_pb2.VERSION_STATE_DESTROYED: VersionState.DESTROYED,
    }
)


def _read_written(response: secrets_pb2.PutSecretResponse | secrets_pb2.PatchSecretResponse) -> Written:
    return Written(version=response.version, incarnation=response.incarnation, revision=response.revision)


def _read_entry(entry: secrets_pb2.SecretEntry) -> Entry:
    return Entry(
        path=entry.path,
        current_version=entry.current_version,
        incarnation=entry.incarnation,
        updated_at=entry.updated_at.ToDatetime(tzinfo=UTC),
        newest_live_version=entry.newest_live_version,
    )


def _read_version(entry: secrets_pb2.VersionEntry) -> Version:
    return Version(
        number=entry.version,
        state=_VERSION_STATES.get(entry.state, VersionState.UNKNOWN),
        created_at=entry.created_at.ToDatetime(tzinfo=UTC),
        destroyed_at=entry.destroyed_at.ToDatetime(tzinfo=UTC) if entry.HasField("destroyed_at") else None,
    )


def _choose(versions: Iterable[int] | None) -> list[int] | None:
    return None if versions is None else _require(versions, "at least one, or None for all")


def _require(versions: Iterable[int], wanted: str = "at least one") -> list[int]:
    """Return the versions as a list; one that came out empty by mistake must not stand for all."""
    chosen = list(versions)
    if not chosen:
        raise InvalidArgumentError(f"versions: got none, want {wanted}")
    return chosen


def _build(message: Callable[..., _Message], **parts: object) -> _Message:
    try:
        return message(**parts)
    except ValueError as exc:  # a number that its field cannot hold
        raise InvalidArgumentError(str(exc)) from exc


def _encode_all(fields: Mapping[str, bytes | str]) -> dict[str, bytes]:
    return {name: _encode(name, value) for name, value in fields.items()}


def _encode(name: str, value: bytes | str) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:  # which carries the value
            pass
        raise InvalidArgumentError(f"fields: the text of {name!r} is not Unicode, want bytes")
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"fields: {name!r} is {type(value).__name__}, want bytes or str")
    return bytes(value)


def _check_request_id(request_id: bytes | None) -> bytes:
    if request_id is None:
        return secrets.token_bytes(_REQUEST_ID_SIZE)
    if len(request_id) != _REQUEST_ID_SIZE:
        raise InvalidArgumentError(f"request_id: got {len(request_id)} bytes, want {_REQUEST_ID_SIZE}")
    return request_id
