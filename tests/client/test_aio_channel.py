"""The asyncio pinned channel, against real grpcio servers over mTLS. test_channel.py tests what both channels share."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import grpc
import pytest

from pilot.dev.provider import IdentityProvider
from shardhold._aio_channel import AioPinnedChannel
from shardhold._calls import SERVER_NAME
from shardhold._connections import MESSAGE_LIMIT
from shardhold._errors import DeadlineError, OverloadedError, UnavailableError, from_rpc
from shardhold.identity import IdentityUnavailableError, WorkloadAPI
from tests.client.servers import NEXUS, Server
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most

Eventually: TypeAlias = Callable[..., Awaitable[None]]


@pytest.fixture
def server(ca: Authority) -> Iterator[Server]:
    """Run a server that is nexus.shardhold."""
    server = Server(FixedIdentity(ca.issue(NEXUS, dns=SERVER_NAME)))
    yield server
    server.stop()


@pytest.fixture
def identity(ca: Authority) -> FixedIdentity:
    """Return a workload's identity."""
    return FixedIdentity(ca.issue("/team/app"))


@pytest.fixture
def channel(server: Server, identity: FixedIdentity) -> AioPinnedChannel:
    """Make a channel, outside of any loop; each test enters it."""
    return AioPinnedChannel(server.address, identity, server_name=SERVER_NAME)


def _echo(channel: AioPinnedChannel) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary("/test/Echo")


def _wait(channel: AioPinnedChannel) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary("/test/Wait")


def _count(channel: AioPinnedChannel) -> "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]":
    return channel.unary_stream("/test/Count")


async def _ask(method: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]", request: bytes) -> bytes:
    """Make a call in a coroutine, from which tasks are made."""
    return await method(request, timeout=at_most(20))


def _check_idle(channel: AioPinnedChannel) -> None:
    """Require that no call is counted any more."""
    assert channel._connections.current is not None
    assert channel._connections.current.calls == 0
    assert channel._calls == set()


async def test_rotation_drops_no_call(provider: IdentityProvider, eventually: Eventually) -> None:
    """While both sides' SVIDs rotate again and again under calls from several tasks, every call succeeds."""
    server_identity = WorkloadAPI(str(provider.add(NEXUS, SERVER_NAME)))
    client_identity = WorkloadAPI(str(provider.add("/team/app")))
    server = Server(server_identity)
    answered, stop = [0] * 6, asyncio.Event()

    async with AioPinnedChannel(server.address, client_identity, server_name=SERVER_NAME) as channel:
        echo = _echo(channel)

        async def call_on(number: int) -> None:
            while not stop.is_set():
                assert await echo(b"ping", timeout=at_most(20)) == b"ping"
                answered[number] += 1

        async with asyncio.TaskGroup() as tasks:
            for number in range(len(answered)):
                tasks.create_task(call_on(number))
            for _ in range(20):
                calls, seen = sum(answered) + 20, len(server.seen)
                await asyncio.to_thread(provider.rotate)
                await eventually(lambda seen=seen, calls=calls: len(server.seen) > seen and sum(answered) >= calls)
            stop.set()
        assert len(server.seen) >= 20
        assert channel._connections.retired == set()
    await asyncio.to_thread(server.stop)
    server_identity.close()
    client_identity.close()


async def test_call_in_flight_outlives_its_svid(
    channel: AioPinnedChannel, server: Server, identity: FixedIdentity, ca: Authority, eventually: Eventually
) -> None:
    """A call that began before the rotation ends well, and its connection is closed afterwards."""
    async with channel:
        slow = asyncio.create_task(_ask(_wait(channel), b"slow"))
        await eventually(server.waiting.is_set)
        identity.svid = ca.issue("/team/app")
        assert await _echo(channel)(b"quick", timeout=at_most(10)) == b"quick"
        assert len(channel._connections.retired) == 1
        server.go_on.set()
        assert await slow == b"slow"
        assert channel._connections.retired == set()


async def test_stream_outlives_its_svid(
    channel: AioPinnedChannel, server: Server, identity: FixedIdentity, ca: Authority, eventually: Eventually
) -> None:
    """A stream keeps the connection it began on, which is closed when the stream ends."""
    async with channel:
        stream = _count(channel)(b"", timeout=at_most(20))
        assert await stream.read() == b"first"
        identity.svid = ca.issue("/team/app")
        assert await _echo(channel)(b"quick", timeout=at_most(10)) == b"quick"
        assert len(channel._connections.retired) == 1
        server.go_on.set()
        assert [await stream.read(), await stream.read()] == [b"second", grpc.aio.EOF]
        await eventually(lambda: not channel._connections.retired)


async def test_abandoned_stream(
    channel: AioPinnedChannel, identity: FixedIdentity, ca: Authority, eventually: Eventually
) -> None:
    """A stream that is cancelled, or that reaches its deadline unread, holds no old connection open."""
    async with channel:
        cancelled, late = _count(channel)(b"", timeout=at_most(20)), _count(channel)(b"", timeout=3)
        assert (await cancelled.read(), await late.read()) == (b"first", b"first")
        identity.svid = ca.issue("/team/app")
        await _echo(channel)(b"", timeout=at_most(10))
        assert len(channel._connections.retired) == 1
        cancelled.cancel()
        await eventually(lambda: not channel._connections.retired)
        assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_svid_of_the_call(
    channel: AioPinnedChannel, server: Server, identity: FixedIdentity, ca: Authority
) -> None:
    """Each call uses the SVID that is current when it begins; a connection is kept while its SVID is current."""
    async with channel:
        for svid in (identity.current(), identity.current(), ca.issue("/team/app")):
            identity.svid = svid
            await _echo(channel)(b"", timeout=at_most(10))
    assert len(server.seen) == 2


async def test_no_svid(channel: AioPinnedChannel, identity: FixedIdentity) -> None:
    """Without an SVID a call raises at once, and works again once there is one."""
    svid, identity.svid = identity.svid, None
    async with channel:
        with pytest.raises(IdentityUnavailableError, match="no SVID"):
            await _echo(channel)(b"", timeout=at_most(10))
        identity.svid = svid
        assert await _echo(channel)(b"x", timeout=at_most(10)) == b"x"


async def test_message_sizes(channel: AioPinnedChannel) -> None:
    """Messages of up to 5 MiB pass, and a larger one is refused on this side."""
    async with channel:
        assert len(await _echo(channel)(b"x" * (MESSAGE_LIMIT - 64), timeout=at_most(20))) == MESSAGE_LIMIT - 64
        with pytest.raises(grpc.RpcError) as caught:
            await _echo(channel)(b"x" * (MESSAGE_LIMIT + 1), timeout=at_most(20))
        assert type(from_rpc(caught.value)) is OverloadedError


async def test_metadata_and_call(channel: AioPinnedChannel) -> None:
    """Metadata travels both ways, and the call tells its code, like any call of grpc.aio."""
    async with channel:
        call = _echo(channel)(b"x", timeout=at_most(10), metadata=grpc.aio.Metadata(("x-test", "1")))
        assert (await call, await call.code()) == (b"x", grpc.StatusCode.OK)
        assert ("x-test", "1") in set(await call.trailing_metadata())


async def test_deadline(channel: AioPinnedChannel) -> None:
    """A call's time-out is kept, and the connection is given back."""
    async with channel:
        with pytest.raises(grpc.RpcError) as caught:
            await _wait(channel)(b"", timeout=0.05)
        assert type(from_rpc(caught.value)) is DeadlineError
        _check_idle(channel)


async def test_cancelled_task(channel: AioPinnedChannel, server: Server, eventually: Eventually) -> None:
    """A cancelled task cancels its call at the server too, and gives the connection back."""
    async with channel:
        task = asyncio.create_task(_ask(_wait(channel), b""))
        await eventually(server.waiting.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(server.wait_ended.is_set)
        _check_idle(channel)


@pytest.mark.parametrize("steps", range(6))
async def test_task_cancelled_early(channel: AioPinnedChannel, steps: int) -> None:
    """At whichever step of its start a call is cancelled, it gives the connection back."""
    async with channel:
        await _echo(channel)(b"", timeout=at_most(10))
        task = asyncio.create_task(_ask(_wait(channel), b""))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        _check_idle(channel)


async def test_server_of_another_name(ca: Authority, identity: FixedIdentity) -> None:
    """A server of the same trust domain without the pinned name is refused."""
    server = Server(FixedIdentity(ca.issue("/team/app")))
    async with AioPinnedChannel(server.address, identity, server_name=SERVER_NAME) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await _echo(channel)(b"", timeout=at_most(10))
        error = from_rpc(caught.value)
        assert (type(error), error.reason) == (UnavailableError, "")
        assert "no nexus of this trust domain" in error.hint
    assert server.seen == set()
    server.stop()


async def test_call_that_cannot_be_made(channel: AioPinnedChannel) -> None:
    """A call with arguments that gRPC refuses gives the connection back."""
    async with channel:
        with pytest.raises(TypeError):
            _echo(channel)(b"", timeout="soon")  # type: ignore[arg-type]
        _check_idle(channel)


async def test_closed(channel: AioPinnedChannel, server: Server, eventually: Eventually) -> None:
    """Closing cancels calls and streams in flight, may be repeated, and later calls are refused."""
    calls: list[Any] = [_wait(channel)(b"", timeout=at_most(20)), _count(channel)(b"", timeout=at_most(20))]
    await eventually(server.waiting.is_set)
    await channel.close()
    await channel.close()
    assert channel.is_closed
    assert [call.cancelled() for call in calls] == [True, True]
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    with pytest.raises(ValueError, match="the channel is closed"):
        _echo(channel)(b"", timeout=at_most(10))


async def test_close_ends_retired_connections(
    channel: AioPinnedChannel, server: Server, identity: FixedIdentity, ca: Authority, eventually: Eventually
) -> None:
    """Closing also cancels the calls of older SVIDs."""
    slow = _wait(channel)(b"", timeout=at_most(20))
    await eventually(server.waiting.is_set)
    identity.svid = ca.issue("/team/app")
    await _echo(channel)(b"", timeout=at_most(10))
    await channel.close()
    assert slow.cancelled()
    await eventually(server.wait_ended.is_set)


def test_belongs_to_one_loop(channel: AioPinnedChannel) -> None:
    """In any loop but that of its first use, calls and `close` are refused with a clear message."""

    async def call() -> None:
        assert await _echo(channel)(b"x", timeout=at_most(10)) == b"x"

    with asyncio.Runner() as runner:
        runner.run(call())
        failures: list[BaseException] = []

        def call_elsewhere() -> None:
            for attempt in (call, channel.close):
                with pytest.raises(RuntimeError, match="belongs to another event loop") as caught:
                    asyncio.run(attempt())
                failures.append(caught.value)

        thread = threading.Thread(target=call_elsewhere)
        thread.start()
        thread.join()
        assert len(failures) == 2
        runner.run(call())
        runner.run(channel.close())
    with pytest.raises(RuntimeError, match="no running event loop"):
        _echo(channel)(b"x", timeout=at_most(10))


def test_never_closed(channel: AioPinnedChannel, identity: FixedIdentity, ca: Authority) -> None:
    """A program that ends its loop without closing, and with a forgotten stream, gets no warning."""

    async def use() -> Any:
        stream = _count(channel)(b"", timeout=at_most(20))
        await stream.read()
        identity.svid = ca.issue("/team/app")
        await _echo(channel)(b"", timeout=at_most(10))
        return stream

    stream = asyncio.run(use())
    del stream
    gc.collect()


async def test_unsupported(channel: AioPinnedChannel) -> None:
    """Client streams and connectivity are refused with a clear message."""
    with pytest.raises(NotImplementedError, match="unary and server-streaming"):
        channel.stream_unary("/test/Echo")
    with pytest.raises(NotImplementedError, match="unary and server-streaming"):
        channel.stream_stream("/test/Echo")
    with pytest.raises(NotImplementedError, match="connectivity"):
        channel.get_state()
    with pytest.raises(NotImplementedError, match="connectivity"):
        await channel.channel_ready()
    with pytest.raises(NotImplementedError, match="connectivity"):
        await channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE)
