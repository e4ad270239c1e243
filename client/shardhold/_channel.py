"""A channel that pins the server's name and follows SVID rotation without dropping a call.

gRPC binds credentials to a channel for good, and closing a channel cancels its calls. So each SVID gets a connection of
its own; a call uses the connection of the SVID that is current when it begins, and an older connection is closed by the
last call that ends on it.
"""

import threading
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from shardhold._identity import IdentitySource, Svid

MESSAGE_LIMIT = 5 * 1024 * 1024  # bytes of one message, either way

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

if TYPE_CHECKING:  # generic in the type stubs only
    _UnaryUnaryBase = grpc.UnaryUnaryMultiCallable[Any, Any]
    _UnaryStreamBase = grpc.UnaryStreamMultiCallable[Any, Any]
else:
    _UnaryUnaryBase = grpc.UnaryUnaryMultiCallable
    _UnaryStreamBase = grpc.UnaryStreamMultiCallable

_DEFAULTS = MappingProxyType(
    {
        # The default backoff finds a server that came back only after 20 s.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 500,
        "grpc.max_reconnect_backoff_ms": 500,
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


class PinnedChannel(grpc.Channel):
    """Calls to the server whose certificate has the DNS name *server_name*, as whoever *identity* says. Thread-safe.

    Generated stubs work on it: unary and server-streaming calls. *identity* stays the caller's to close; *options* are
    gRPC channel options that go before the defaults here. A call raises `IdentityUnavailableError` when there is no
    usable SVID, and `ValueError` once the channel is closed.
    """

    def __init__(
        self, address: str, identity: IdentitySource, *, server_name: str, options: Sequence[tuple[str, Any]] = ()
    ) -> None:
        self._address = address
        self._identity = identity
        # The roots hold the authorities of one trust domain only, and each of its servers has one DNS name of its own:
        # with the name pinned, no workload's SVID passes for a server. gRPC's client never looks at the URI SAN.
        self._options = tuple({**_DEFAULTS, "grpc.ssl_target_name_override": server_name, **dict(options)}.items())
        self._lock = threading.Lock()
        self._current: _Connection | None = None
        self._retired: set[_Connection] = set()
        self._closed = False

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[_Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], _Response] | None = None,
        _registered_method: bool | None = False,
    ) -> "grpc.UnaryUnaryMultiCallable[_Request, _Response]":
        """Return a callable for one unary method; `future` is not supported, `__call__` and `with_call` are."""
        return _UnaryUnary(
            self,
            lambda channel: channel.unary_unary(
                method, request_serializer, response_deserializer, _registered_method=_registered_method
            ),
        )

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[_Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], _Response] | None = None,
        _registered_method: bool | None = False,
    ) -> "grpc.UnaryStreamMultiCallable[_Request, _Response]":
        """Return a callable for one server-streaming method. A stream keeps the connection that it began on."""
        return _UnaryStream(
            self,
            lambda channel: channel.unary_stream(
                method, request_serializer, response_deserializer, _registered_method=_registered_method
            ),
        )

    def stream_unary(self, *args: object, **kwargs: object) -> Any:
        """Refuse: no contract of Shardhold streams requests."""
        raise NotImplementedError("PinnedChannel has unary and server-streaming calls only")

    def stream_stream(self, *args: object, **kwargs: object) -> Any:
        """Refuse: no contract of Shardhold streams requests."""
        raise NotImplementedError("PinnedChannel has unary and server-streaming calls only")

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        """Refuse: connections come and go with SVIDs, so that there is no one connectivity."""
        raise NotImplementedError("PinnedChannel has no connectivity of its own; make a call instead")

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Do nothing, since nothing can be subscribed."""

    def close(self) -> None:
        """Cancel the calls in flight and close all connections. Idempotent."""
        with self._lock:
            self._closed = True
            connections = [*self._retired, *((self._current,) if self._current else ())]
            self._retired.clear()
            self._current = None
        for connection in connections:
            connection.channel.close()

    def __enter__(self) -> "PinnedChannel":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _borrow(self) -> "_Connection":
        """Return the connection of the current SVID, counted as in use; give it back with `_give_back`."""
        idle: _Connection | None = None
        with self._lock:
            if self._closed:
                raise ValueError("the channel is closed")
            # Asked for under the lock: a thread that asked earlier must not bring an older SVID back.
            svid = self._identity.current()
            connection = self._current
            if connection is None or (connection.svid is not svid and connection.svid != svid):
                fresh = _Connection(svid, self._connect(svid))
                if connection is not None and connection.calls:
                    self._retired.add(connection)
                else:
                    idle = connection
                connection = self._current = fresh
            connection.calls += 1
        if idle is not None:
            idle.channel.close()
        return connection

    def _give_back(self, connection: "_Connection") -> None:
        if self._is_done_with(connection):
            connection.channel.close()

    def _give_back_from_callback(self, connection: "_Connection") -> None:
        if self._is_done_with(connection):
            # gRPC runs callbacks on the channel's own thread, where closing the channel would wait for itself.
            threading.Thread(target=connection.channel.close, name="shardhold-close", daemon=True).start()

    def _is_done_with(self, connection: "_Connection") -> bool:
        """Count one call less, and return whether that was the last one of a retired connection."""
        with self._lock:
            connection.calls -= 1
            if connection.calls or connection not in self._retired:
                return False
            self._retired.remove(connection)
            return True

    def _connect(self, svid: Svid) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=svid.bundle_pem, private_key=svid.key_pem, certificate_chain=svid.certificates_pem
        )
        return grpc.secure_channel(self._address, credentials, options=self._options)


class _Connection:
    """One gRPC channel, the SVID it was made with, and how many calls are on it."""

    def __init__(self, svid: Svid, channel: grpc.Channel) -> None:
        self.svid = svid
        self.channel = channel
        self.calls = 0
        # gRPC's callables of this channel, one for each of ours.
        self.callables: dict[object, Any] = {}


class _MultiCallable:
    def __init__(self, owner: PinnedChannel, make: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._make = make

    def _bind(self, connection: _Connection) -> Any:
        bound = connection.callables.get(self)
        if bound is None:  # two threads may both make one; either is good
            bound = connection.callables[self] = self._make(connection.channel)
        return bound


class _UnaryUnary(_MultiCallable, _UnaryUnaryBase):
    def __call__(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        connection = self._owner._borrow()
        try:
            return self._bind(connection)(request, *args, **kwargs)
        finally:
            self._owner._give_back(connection)

    def with_call(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        connection = self._owner._borrow()
        try:
            return self._bind(connection).with_call(request, *args, **kwargs)
        finally:
            self._owner._give_back(connection)

    def future(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("PinnedChannel calls wait for their answer: use the callable itself, or with_call")


class _UnaryStream(_MultiCallable, _UnaryStreamBase):
    def __call__(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        connection = self._owner._borrow()
        try:
            stream = self._bind(connection)(request, *args, **kwargs)
        except BaseException:
            self._owner._give_back(connection)
            raise
        if not stream.add_callback(lambda: self._owner._give_back_from_callback(connection)):
            self._owner._give_back(connection)  # it has ended already
        return stream
