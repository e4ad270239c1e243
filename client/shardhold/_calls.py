"""What both clients share: defaults, requests, the reading of responses, and when a call is retried.

Nothing here waits. `Client` and `AsyncClient` differ only in how they wait.
"""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from time import monotonic
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import grpc
import tenacity

from shardhold._errors import CancelledError, InvalidArgumentError, UnavailableError, from_rpc
from shardhold._results import Deleted, Entry, Secret, State, Status, Written
from shardhold.v1 import cluster_pb2, cluster_pb2_grpc, secrets_pb2, secrets_pb2_grpc

ADDRESS_VARIABLE = "SHARDHOLD_ADDRESS"
SERVER_NAME = "nexus.shardhold"  # the one DNS name in a nexus's SVID, and in nobody else's
TIMEOUT_S = 5.0  # of a call, all its tries included

# Failures that pass by themselves: of the transport (no reason), of a nexus that recovers its key or waits for its own
# SVID, of a store that is unavailable. A commit with an unknown outcome too, since the request id makes a repeated
# change the same change. Never a sealed nexus.
RETRIED_REASONS = frozenset({"", "NEXUS_RECOVERING", "IDENTITY_UNAVAILABLE", "STORE_UNAVAILABLE", "OUTCOME_UNKNOWN"})

_RETRIED_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})  # the latter: by the server

_LONGEST_TIMEOUT_S = 24 * 3600.0  # far beyond it gRPC treats a deadline as one that has passed
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0  # with full jitter
_SHORTEST_TRY_S = 0.001
_REQUEST_ID_SIZE = 16  # bytes

_Message = TypeVar("_Message")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One call: the RPC's name, its request, and how its response is read.

    Every call may be repeated: reads change nothing, and a change carries one request id through all repeats.
    """

    rpc: str
    request: Any
    read: Callable[[Any], Result]


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries of a list, and the call that fetches the next ones; None after the last."""

    entries: tuple[Entry, ...]
    following: Call["Page"] | None


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
        fields={name: _encode(name, value) for name, value in fields.items()},
        expected_version=expected_version,
        expected_incarnation=expected_incarnation,
        request_id=_check_request_id(request_id),
    )

    def read(response: secrets_pb2.PutSecretResponse) -> Written:
        return Written(version=response.version, incarnation=response.incarnation, revision=response.revision)

    return Call("PutSecret", request, read)


def get_secret(path: str, *, version: int) -> Call[Secret]:
    """Build the call that reads one version; 0 is the current one."""

    def read(response: secrets_pb2.GetSecretResponse) -> Secret:
        return Secret(
            path=response.path,
            version=response.version,
            incarnation=response.incarnation,
            fields=MappingProxyType(dict(response.fields)),
            created_at=response.created_at.ToDatetime(tzinfo=UTC),
        )

    return Call("GetSecret", _build(secrets_pb2.GetSecretRequest, path=path, version=version), read)


def list_secrets(prefix: str, *, page_size: int, page_token: str = "") -> Call[Page]:
    """Build the call that fetches one page; the page has the call for the next."""

    def read(response: secrets_pb2.ListSecretsResponse) -> Page:
        token = response.next_page_token
        return Page(
            entries=tuple(
                Entry(
                    path=entry.path,
                    current_version=entry.current_version,
                    incarnation=entry.incarnation,
                    updated_at=entry.updated_at.ToDatetime(tzinfo=UTC),
                )
                for entry in response.secrets
            ),
            following=list_secrets(prefix, page_size=page_size, page_token=token) if token else None,
        )

    request = _build(secrets_pb2.ListSecretsRequest, prefix=prefix, page_size=page_size, page_token=page_token)
    return Call("ListSecrets", request, read)


def delete_secret(
    path: str,
    versions: Iterable[int] | None,
    *,
    expected_version: int | None,
    expected_incarnation: bytes | None,
    request_id: bytes | None,
) -> Call[Deleted]:
    """Build the call that deletes the given versions, or all of them for None; an empty list is refused."""
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

    def read(response: secrets_pb2.DeleteSecretResponse) -> Deleted:
        return Deleted(versions=tuple(response.versions), revision=response.revision)

    return Call("DeleteSecret", request, read)


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


class Deadline:
    """The time until which a call may be tried, and the rules for retrying it."""

    def __init__(self, timeout_s: float) -> None:
        self._at = monotonic() + timeout_s

    def left(self) -> float:
        """Return the seconds that the next try may take, always above 0."""
        return max(self._at - monotonic(), _SHORTEST_TRY_S)

    def retry_rules(self) -> dict[str, Any]:
        """Return tenacity's arguments, which are the same for `Retrying` and `AsyncRetrying`."""
        return {
            "retry": tenacity.retry_if_exception(_is_worth_repeating),
            "wait": tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
            "stop": tenacity.stop_before_delay(self.left()),
            "reraise": True,
        }


@contextmanager
def translated() -> Iterator[None]:
    """Turn what a stub raises into errors of the SDK."""
    try:
        yield
    except grpc.RpcError as exc:
        raise from_rpc(exc) from exc
    except ValueError as exc:  # what a closed channel raises
        raise CancelledError(f"no call is possible: {exc}") from exc


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


def _is_worth_repeating(error: BaseException) -> bool:
    return isinstance(error, UnavailableError) and error.code in _RETRIED_CODES and error.reason in RETRIED_REASONS


def _build(message: Callable[..., _Message], **parts: object) -> _Message:
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
