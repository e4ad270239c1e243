"""A channel that pins the server's name and follows SVID rotation without dropping a call.

The rules are those of `shardhold._connections`; the last call that ends on a retired connection closes it.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from shardhold._connections import Connection, Connections, list_options, make_credentials
from shardhold._quiet import grpc
from shardhold.identity import IdentitySource, Svid

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

if TYPE_CHECKING:  # generic in the type stubs only
    _UnaryUnaryBase = grpc.UnaryUnaryMultiCallable[Any, Any]
    _UnaryStreamBase = grpc.UnaryStreamMultiCallable[Any, Any]
else:
    _UnaryUnaryBase = grpc.UnaryUnaryMultiCallable
    _UnaryStreamBase = grpc.UnaryStreamMultiCallable


class PinnedChannel(grpc.Channel):
    """Calls to the server whose certificate has the DNS name *server_name*, as *identity* says. Thread-safe.

    Generated stubs work on it, for unary and server-streaming calls. The caller closes *identity*; *options* are gRPC
    channel options that override the defaults. A call raises `IdentityUnavailableError` when there is no usable SVID,
    and `ValueError` once the channel is closed.
    """

    def __init__(
        self, address: str, identity: IdentitySource, *, server_name: str, options: Sequence[tuple[str, Any]] = ()
    ) -> None:
        self._address = address
        self._identity = identity
        self._options = list_options(server_name, options)
        self._lock = threading.Lock()
        self._connections: Connections[grpc.Channel] = Connections(self._connect)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._connections.is_closed

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[_Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], _Response] | None = None,
        _registered_method: bool | None = False,
    ) -> "grpc.UnaryUnaryMultiCallable[_Request, _Response]":
        """Return a callable for one unary method; it supports `__call__` and `with_call`, but not `future`."""
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
        """Return a callable for one server-streaming method. A stream keeps the connection it began on."""
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
        """Refuse: connections come and go with SVIDs, so there is no single connectivity."""
        raise NotImplementedError("PinnedChannel has no connectivity of its own; make a call instead")

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Do nothing, since there are no subscriptions."""

    def close(self) -> None:
        """Cancel the calls in flight and close all connections. Idempotent."""
        with self._lock:
            channels = self._connections.close()
        for channel in channels:
            channel.close()

    def __enter__(self) -> "PinnedChannel":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _borrow(self) -> Connection[grpc.Channel]:
        """Return the connection of the current SVID, counted as in use; give it back with `_give_back`."""
        with self._lock:
            # The SVID is fetched under the lock: a thread that fetched earlier must not bring an older one back.
            connection, idle = self._connections.borrow(self._identity)
        if idle is not None:
            idle.close()
        return connection

    def _give_back(self, connection: Connection[grpc.Channel]) -> None:
        if self._is_done_with(connection):
            connection.channel.close()

    def _give_back_from_callback(self, connection: Connection[grpc.Channel]) -> None:
        if self._is_done_with(connection):
            # gRPC runs callbacks on the channel's own thread, where closing the channel would wait for itself.
            threading.Thread(target=connection.channel.close, name="shardhold-close", daemon=True).start()

    def _is_done_with(self, connection: Connection[grpc.Channel]) -> bool:
        with self._lock:
            return self._connections.give_back(connection)

    def _connect(self, svid: Svid) -> grpc.Channel:
        return grpc.secure_channel(self._address, make_credentials(svid), options=self._options)


class _MultiCallable:
    def __init__(self, owner: PinnedChannel, make: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._make = make

    def _bind(self, connection: Connection[grpc.Channel]) -> Any:
        return connection.bind(self, self._make)


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
