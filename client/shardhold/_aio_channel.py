"""The asyncio twin of `shardhold.channel`: a pinned channel that follows SVID rotation without dropping a call.

The rules are those of `shardhold._connections`. Sources of SVIDs live in threads and know no event loop, so nothing is
pushed into this channel: each call asks for the SVID as it begins, which never waits.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from shardhold._connections import Connection, Connections, list_options, make_credentials
from shardhold._quiet import grpc
from shardhold.identity import IdentitySource, Svid

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

if TYPE_CHECKING:  # generic in the type stubs only
    _UnaryUnaryBase = grpc.aio.UnaryUnaryMultiCallable[Any, Any]
    _UnaryStreamBase = grpc.aio.UnaryStreamMultiCallable[Any, Any]
    _AnyCall = grpc.aio.UnaryUnaryCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any]
else:
    _UnaryUnaryBase = grpc.aio.UnaryUnaryMultiCallable
    _UnaryStreamBase = grpc.aio.UnaryStreamMultiCallable


class AioPinnedChannel(grpc.aio.Channel):
    """Calls to the server whose certificate has the DNS name *server_name*, under the identity from *identity*.

    It can be created anywhere, and belongs to the event loop of its first use: every use in another loop raises
    `RuntimeError`. Generated stubs work on it, for unary and server-streaming calls. The caller closes *identity*;
    *options* are gRPC channel options that override the defaults. A call raises `IdentityUnavailableError` when there
    is no usable SVID, and `ValueError` once the channel is closed.
    """

    def __init__(
        self, address: str, identity: IdentitySource, *, server_name: str, options: Sequence[tuple[str, Any]] = ()
    ) -> None:
        self._address = address
        self._identity = identity
        self._options = list_options(server_name, options)
        self._connections: Connections[grpc.aio.Channel] = Connections(self._connect)
        self._calls: set[_AnyCall] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._connections.is_closed

    def bind_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running event loop, to which this channel belongs from now on.

        Raises:
            RuntimeError: No loop runs here, or the channel belongs to another one.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise RuntimeError(
                "this belongs to another event loop: make one for each loop, or move the call to its loop with "
                "asyncio.run_coroutine_threadsafe"
            )
        return loop

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[_Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], _Response] | None = None,
        _registered_method: bool | None = False,
    ) -> "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]":
        """Return a callable for one unary method."""
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
    ) -> "grpc.aio.UnaryStreamMultiCallable[_Request, _Response]":
        """Return a callable for one server-streaming method. A stream keeps the connection it began on."""
        return _UnaryStream(
            self,
            lambda channel: channel.unary_stream(
                method, request_serializer, response_deserializer, _registered_method=_registered_method
            ),
        )

    def stream_unary(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: no contract of Shardhold streams requests."""
        raise NotImplementedError("AioPinnedChannel has unary and server-streaming calls only")

    def stream_stream(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: no contract of Shardhold streams requests."""
        raise NotImplementedError("AioPinnedChannel has unary and server-streaming calls only")

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Refuse: connections come and go with SVIDs, so there is no single connectivity."""
        raise NotImplementedError("AioPinnedChannel has no connectivity of its own; make a call instead")

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Refuse, as `get_state`."""
        self.get_state()

    async def channel_ready(self) -> None:
        """Refuse, as `get_state`."""
        self.get_state()

    async def close(self, grace: float | None = None) -> None:
        """Cancel the calls in flight and close all connections. Idempotent; there is no *grace*."""
        self.bind_loop()
        channels = self._connections.close()
        for call in list(self._calls):  # channels of older grpcio versions would miss some
            call.cancel()
        for channel in channels:
            await channel.close()
        await asyncio.gather(*self._closing)

    async def __aenter__(self) -> "AioPinnedChannel":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _borrow(self) -> Connection[grpc.aio.Channel]:
        """Return the connection of the current SVID, counted as in use; give it back with `_give_back`."""
        self.bind_loop()
        connection, idle = self._connections.borrow(self._identity)
        if idle is not None:
            self._close_soon(idle)
        return connection

    def _give_back_after(self, call: "_AnyCall", connection: Connection[grpc.aio.Channel]) -> None:
        def give_back(_: object) -> None:
            if call in self._calls:  # gRPC may report twice: the cancellation, and the end
                self._calls.remove(call)
                self._give_back(connection)

        self._calls.add(call)
        call.add_done_callback(give_back)

    def _give_back(self, connection: Connection[grpc.aio.Channel]) -> None:
        if self._connections.give_back(connection):
            self._close_soon(connection.channel)

    def _close_soon(self, channel: grpc.aio.Channel) -> None:
        if self._loop is None or self._loop.is_closed():
            return  # not closed before its loop ended: garbage collection ends both
        closing = self._loop.create_task(channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _connect(self, svid: Svid) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self._address, make_credentials(svid), options=self._options)


class _MultiCallable:
    def __init__(self, owner: AioPinnedChannel, make: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._make = make

    def __call__(self, request: Any, **kwargs: Any) -> Any:
        connection = self._owner._borrow()
        try:
            call = connection.bind(self, self._make)(request, **kwargs)
        except BaseException:
            self._owner._give_back(connection)
            raise
        self._owner._give_back_after(call, connection)
        return call


class _UnaryUnary(_MultiCallable, _UnaryUnaryBase):
    pass


class _UnaryStream(_MultiCallable, _UnaryStreamBase):
    pass
