"""The connections of a pinned channel: which one a call takes, and when an older one is done. Rules:

1. gRPC binds credentials to a connection permanently, so each SVID gets a connection of its own.
2. A call takes the connection of the SVID that is current when it begins, and keeps it.
3. Closing a connection cancels its calls. A connection whose SVID is no longer current is therefore retired: it is
   closed when the last call on it has ended, or at once when there is none.

Nothing here waits, closes or locks: the channels do, each in its own way.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from shardhold._quiet import grpc
from shardhold.identity import IdentitySource, Svid

_HYBRID_SINCE = (1, 83)  # tried: grpcio 1.82.1 agrees on keys by P-256, 1.83.0 by X25519MLKEM768

_logger = logging.getLogger(__name__)

MESSAGE_LIMIT = 5 * 1024 * 1024  # bytes of one message, either way

_DEFAULTS = MappingProxyType(
    {
        # With the default backoff, a server that came back is found only after 20 s.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 500,
        # How long one attempt to connect may take, handshake included: long enough for a slow link or a busy server,
        # and short enough that a dead address leaves time for the next one within the time-out of a call.
        "grpc.min_reconnect_backoff_ms": 3_000,
        "grpc.max_send_message_length": MESSAGE_LIMIT,
        "grpc.max_receive_message_length": MESSAGE_LIMIT,
        # Finds a dead peer under a waiting call; idle connections are left alone.
        "grpc.keepalive_time_ms": 30_000,
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.keepalive_permit_without_calls": 0,
        # Connections of different SVIDs must never be shared, and no proxy stands between pinned peers.
        "grpc.use_local_subchannel_pool": 1,
        "grpc.enable_http_proxy": 0,
    }
)

_Channel = TypeVar("_Channel")


class Connection(Generic[_Channel]):
    """One gRPC channel, the SVID it was made with, and how many calls are on it."""

    def __init__(self, svid: Svid, channel: _Channel) -> None:
        self.svid = svid
        self.channel = channel
        self.calls = 0
        # gRPC's callables of this channel, one for each of ours.
        self._callables: dict[object, Any] = {}

    def bind(self, key: object, make: Callable[[Any], Any]) -> Any:
        """Return what *make* made of this channel for *key*. If two threads both make one, either is good."""
        bound = self._callables.get(key)
        if bound is None:
            bound = self._callables[key] = make(self.channel)
        return bound


class Connections(Generic[_Channel]):
    """The connection of the current SVID, and the retired ones with calls on them. Not thread-safe."""

    def __init__(self, connect: Callable[[Svid], _Channel]) -> None:
        self._connect = connect
        self.current: Connection[_Channel] | None = None
        self.retired: set[Connection[_Channel]] = set()
        self.is_closed = False

    def borrow(self, identity: IdentitySource) -> tuple[Connection[_Channel], _Channel | None]:
        """Return the connection of the current SVID, with one more call counted, and a channel to close, if any.

        Raises:
            ValueError: `close` was called.
            IdentityUnavailableError: There is no usable SVID.
        """
        if self.is_closed:
            raise ValueError("the channel is closed")
        svid = identity.current()
        idle: _Channel | None = None
        connection = self.current
        if connection is None or (connection.svid is not svid and connection.svid != svid):
            fresh = Connection(svid, self._connect(svid))
            if connection is not None and connection.calls:
                self.retired.add(connection)
            elif connection is not None:
                idle = connection.channel
            connection = self.current = fresh
        connection.calls += 1
        return connection, idle

    def give_back(self, connection: Connection[_Channel]) -> bool:
        """Count one call less; return whether it was the last of a retired connection, which must then be closed."""
        connection.calls -= 1
        if connection.calls or connection not in self.retired:
            return False
        self.retired.remove(connection)
        return True

    def close(self) -> list[_Channel]:
        """Refuse calls from now on, and return the channels to close. Idempotent."""
        self.is_closed = True
        channels = [connection.channel for connection in (*self.retired, self.current) if connection is not None]
        self.retired.clear()
        self.current = None
        return channels


def list_options(server_name: str, options: Sequence[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """Return gRPC's options for calls to *server_name*; *options* override the defaults."""
    warn_of_classical_keys(grpc.__version__)
    # The roots hold the authorities of one trust domain only, and each of its servers has one DNS name of its own: with
    # the name pinned, no workload's SVID passes for a server's. gRPC's client never checks the URI SAN.
    return tuple({**_DEFAULTS, "grpc.ssl_target_name_override": server_name, **dict(options)}.items())


def offers_hybrid_keys(version: str) -> bool:
    """Return whether this version of grpcio agrees on keys by X25519 with ML-KEM-768, if the server does as well."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) >= _HYBRID_SINCE


@functools.cache  # once for a process
def warn_of_classical_keys(version: str) -> None:
    """Log it when *version* of grpcio is older than that: grpcio does not tell what a connection agreed on."""
    if not offers_hybrid_keys(version):
        _logger.warning(
            "grpcio %s agrees on keys by P-256 alone, which traffic that is recorded today does not withstand for "
            "good; grpcio 1.83 or newer adds ML-KEM-768",
            version,
        )


def make_credentials(svid: Svid) -> grpc.ChannelCredentials:
    """Return mTLS credentials for *svid* that trust only its own trust domain."""
    return grpc.ssl_channel_credentials(
        root_certificates=svid.bundle_pem, private_key=svid.key_pem, certificate_chain=svid.certificates_pem
    )
