"""`common.server.edge`: callers that send headers and then no message, or a slow one, or not quite one."""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest

from common.server.edge import Call
from keeper.v1 import keeper_pb2 as pb
from tests.common.server.edge_bench import CALLER, DNS, METHOD, Bench
from tests.kit.credentials import certify
from tests.kit.patience import at_most
from tests.kit.raw_calls import call
from tests.kit.refusal import read_reason
from tests.kit.waiting import WAIT_S, wait_until

HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
STRANGER = "spiffe://other.test/shardhold/nexus/n1"
STALLER = "spiffe://example.test/shardhold/nexus/staller"
NEVER_S = 3600.0  # longer than any test, so that no call ends because of its age
WORKERS = 8
DATA, HEADERS, SETTINGS, END_STREAM, ACK, END_HEADERS = 0, 1, 4, 1, 1, 4

Stalled: TypeAlias = "grpc.Future[bytes]"  # generic in its stubs only


@pytest.fixture
def stall() -> Iterator[Callable[..., list[Stalled]]]:
    """Begin calls that send headers and never a message."""
    release = threading.Event()

    def send_nothing() -> Iterator[bytes]:
        release.wait()
        yield from ()

    def begin(
        channel: grpc.Channel, count: int, *, method: str = METHOD, timeout: float | None = None
    ) -> list[Stalled]:
        stream: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(method)
        return [stream.future(send_nothing(), timeout=timeout) for _ in range(count)]

    yield begin
    release.set()


def await_code(stalled: Stalled) -> grpc.StatusCode:
    error = stalled.exception(timeout=at_most(WAIT_S))
    assert isinstance(error, grpc.RpcError)
    return error.code()


def await_ended(stalled: list[Stalled], *, left: int) -> list[grpc.StatusCode]:
    """Return the codes of the calls that ended, once at most *left* are left."""
    wait_until(lambda: sum(not one.done() for one in stalled) <= left, what=f"{left} stalled calls left")
    return [await_code(one) for one in stalled if one.done()]


@pytest.mark.parametrize("method", [METHOD, HEALTH, WATCH])
@pytest.mark.parametrize("count", [WORKERS, 4 * WORKERS])
def test_stalled_calls_of_one_caller_starve_nobody(
    serve: Callable[..., Bench], stall: Callable[..., list[Stalled]], count: int, method: str
) -> None:
    """However many calls one caller stalls, others are answered: stalled calls that hold needed workers are ended."""
    bench = serve(message_wait_s=NEVER_S)
    stalled = stall(bench.connect(STALLER), count, method=method)
    good = bench.connect()
    assert {call(good, METHOD, timeout=at_most(WAIT_S)).code for _ in range(20)} == {grpc.StatusCode.OK}
    codes = await_ended(stalled, left=WORKERS)
    assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize("method", [METHOD, HEALTH, WATCH])
@pytest.mark.parametrize("count", [8, 32])
def test_strangers_are_refused_before_their_message(
    serve: Callable[..., Bench], stall: Callable[..., list[Stalled]], count: int, method: str
) -> None:
    """A peer of another trust domain gets UNAUTHENTICATED for its headers alone, and holds no worker."""
    bench = serve(message_wait_s=NEVER_S, workers=1)
    stalled = stall(bench.connect(STRANGER), count, method=method)
    assert {await_code(one) for one in stalled} == {grpc.StatusCode.UNAUTHENTICATED}
    assert call(bench.connect(), METHOD).code is grpc.StatusCode.OK


def test_stalled_call_ends_by_itself(serve: Callable[..., Bench], stall: Callable[..., list[Stalled]]) -> None:
    """A call without a deadline ends with DEADLINE_EXCEEDED and its cause, is counted, and frees the only worker."""
    bench = serve(message_wait_s=0.5, workers=1)
    (stalled,) = stall(bench.connect(STALLER), 1)
    error = stalled.exception(timeout=at_most(WAIT_S))
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "no message within 0.5 s of the call's start"
    assert call(bench.connect(), METHOD).code is grpc.StatusCode.OK
    assert bench.count_calls("DEADLINE_EXCEEDED") == 1


def test_stalled_calls_are_let_be_with_workers_to_spare(
    serve: Callable[..., Bench], stall: Callable[..., list[Stalled]]
) -> None:
    """More slow calls than allowed end only when they are too old, and complete calls of their caller are answered.

    On a busy machine, the messages of honest calls are as late as these.
    """
    bench = serve(message_wait_s=1.0)
    channel = bench.connect(STALLER)
    stalled = stall(channel, WORKERS // 2)
    while not any(one.done() for one in stalled):
        assert call(channel, METHOD, timeout=at_most(WAIT_S)).code is grpc.StatusCode.OK
    assert set(await_ended(stalled, left=0)) == {grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.mark.parametrize("timeout", [pytest.param(None, id="cancelled"), pytest.param(0.2, id="deadline")])
def test_caller_may_give_up_before_its_message(
    serve: Callable[..., Bench],
    stall: Callable[..., list[Stalled]],
    capsys: pytest.CaptureFixture[str],
    timeout: float | None,
) -> None:
    """A cancellation or a deadline ends the wait at once, without a log line; the method is not reached."""
    reached: list[Call] = []

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        reached.append(call)
        return pb.GetStatusResponse()

    bench = serve(answer, message_wait_s=NEVER_S, workers=1)
    channel, other = bench.connect(STALLER), bench.connect()
    assert call(channel, METHOD).code is grpc.StatusCode.OK  # connected, so that the stalled call goes out at once
    (stalled,) = stall(channel, 1, timeout=timeout)
    if timeout is None:
        unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = other.unary_unary(METHOD)
        queued = unary.future(b"")
        stalled.cancel()
        assert queued.result(timeout=at_most(WAIT_S)) == b""
    else:
        assert await_code(stalled) is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: call(other, METHOD).code is grpc.StatusCode.OK, what="a call after it")
    assert {one.caller for one in reached[1:]} == {CALLER}
    logged = capsys.readouterr()
    assert "call failed" not in logged.out + logged.err


def test_stream_without_a_message_is_refused(serve: Callable[..., Bench]) -> None:
    """A call that ends without a message is INVALID_ARGUMENT."""
    stream: grpc.StreamUnaryMultiCallable[bytes, bytes] = serve().connect().stream_unary(METHOD)
    with pytest.raises(grpc.RpcError) as caught:
        stream(iter(()), timeout=at_most(10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert read_reason(caught.value) == "INVALID_ARGUMENT"


def test_messages_behind_the_first_are_not_read(serve: Callable[..., Bench]) -> None:
    """The first message of a stream is the request; whatever follows, even garbage, changes nothing."""
    reached: list[Call] = []

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        reached.append(call)
        return pb.GetStatusResponse(version="done")

    stream: grpc.StreamUnaryMultiCallable[bytes, bytes] = serve(answer).connect().stream_unary(METHOD)
    answered = stream(iter((b"", b"\xff\xff", b"")), timeout=at_most(10))
    assert pb.GetStatusResponse.FromString(answered).version == "done"
    assert len(reached) == 1


def test_rush_of_one_caller_is_served(serve: Callable[..., Bench]) -> None:
    """Far more complete calls at once than workers, all of one caller, are all answered."""
    channel = serve().connect()
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
    rush = [unary.future(b"", timeout=at_most(WAIT_S)) for _ in range(200)]
    assert {pb.GetStatusResponse.FromString(one.result()).version for one in rush} == {CALLER}


def test_asyncio_clients_are_served(serve: Callable[..., Bench]) -> None:
    """A plain unary call of grpc.aio is answered."""
    bench = serve()
    credentials = certify(bench.ca, uris=[CALLER])
    secrets = grpc.ssl_channel_credentials(credentials.roots, credentials.key, credentials.certificate)

    async def ask() -> bytes:
        options = [("grpc.ssl_target_name_override", DNS)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{bench.port}", secrets, options=options) as channel:
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            return await unary(b"", timeout=at_most(WAIT_S))

    assert pb.GetStatusResponse.FromString(asyncio.run(ask())).version == CALLER


class RawCall:
    """A call on a connection of its own whose bytes the test sends, one HTTP/2 frame at a time."""

    def __init__(self, bench: Bench, directory: Path) -> None:
        credentials = certify(bench.ca, uris=[CALLER])
        context = ssl.create_default_context(cadata=credentials.roots.decode())
        (directory / "svid.pem").write_bytes(credentials.certificate + credentials.key)
        context.load_cert_chain(directory / "svid.pem")
        context.set_alpn_protocols(["h2"])
        raw = socket.create_connection(("127.0.0.1", bench.port), WAIT_S)
        self._socket = context.wrap_socket(raw, server_hostname=DNS)
        self._received = self._socket.makefile("rb")

    def begin(self) -> None:
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send(SETTINGS, 0, b"", stream=0)
        self._received.read(int.from_bytes(self._received.read(9)[:3], "big"))  # the server's own come first
        self.send(SETTINGS, ACK, b"", stream=0)
        names = {":method": "POST", ":scheme": "https", ":path": METHOD, ":authority": DNS}
        names |= {"content-type": "application/grpc", "te": "trailers"}
        block = b"".join(  # literals without indexing, RFC 7541 section 6.2.2
            b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
            for name, value in names.items()
        )
        self.send(HEADERS, END_HEADERS, block)

    def send(self, kind: int, flags: int, payload: bytes, *, stream: int = 1) -> None:
        self._socket.sendall(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

    def send_raw(self, garbage: bytes) -> None:
        self._socket.sendall(garbage)

    def read_data(self) -> bytes:
        """Return what came in DATA frames until the stream or the connection ended."""
        data = b""
        while len(head := self._received.read(9)) == 9:
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = self._received.read(int.from_bytes(head[:3], "big"))
            data += payload if kind == DATA else b""
            if stream == 1 and (kind == 3 or (kind in (DATA, HEADERS) and flags & END_STREAM)):
                break
        return data

    def close(self) -> None:
        self._received.close()
        self._socket.close()


def test_slow_honest_message_arrives(
    serve: Callable[..., Bench], stall: Callable[..., list[Stalled]], tmp_path: Path
) -> None:
    """A message in pieces, slow enough that others are refused meanwhile, is answered."""
    bench = serve(message_wait_s=NEVER_S)
    channel = bench.connect(STALLER)
    raw = RawCall(bench, tmp_path)
    raw.begin()
    body = pb.GetStatusResponse(version="x" * 100).SerializeToString()  # unknown fields of a request are no error
    message = b"\x00" + struct.pack(">I", len(body)) + body
    for piece in (message[:3], message[3:40], message[40:90]):
        raw.send(DATA, 0, piece)
        stalled = stall(channel, 2 * WORKERS)  # some are ended once they are slow, so the message is slower still
        await_ended(stalled, left=WORKERS)
        for one in stalled:
            one.cancel()
        wait_until(lambda: call(channel, METHOD).code is grpc.StatusCode.OK, what="an end of the stalled calls")
    raw.send(DATA, END_STREAM, message[90:])
    answered = raw.read_data()
    raw.close()
    assert pb.GetStatusResponse.FromString(answered[5:]).version == CALLER


@pytest.mark.parametrize(
    ("garbage", "flags"),
    [
        pytest.param(b"\x00\xff\xff\xff\xff", 0, id="message of 4 GiB"),
        pytest.param(b"\x02\x00\x00\x00\x01x", 0, id="unknown flag"),
        pytest.param(b"\x00\x00\x00\x00\x09x", END_STREAM, id="message that ends early"),
        pytest.param(b"\x00\x00", END_STREAM, id="half a length"),
        pytest.param(b"\x00\x00\x00\x00\x09x", 0, id="message that stops"),
    ],
)
def test_garbage_in_place_of_a_message_ends_the_call(
    serve: Callable[..., Bench], tmp_path: Path, garbage: bytes, flags: int
) -> None:
    """Bytes that are not a message end their call without an answer, and the only worker is free again."""
    bench = serve(workers=1, message_wait_s=0.5)
    raw = RawCall(bench, tmp_path)
    raw.begin()
    raw.send(DATA, flags, garbage)
    assert raw.read_data() == b""
    raw.close()
    assert call(bench.connect(), METHOD, timeout=at_most(WAIT_S)).code is grpc.StatusCode.OK


@pytest.mark.parametrize("cut", [pytest.param(True, id="connection cut"), pytest.param(False, id="garbage frames")])
def test_broken_connection_frees_the_worker(serve: Callable[..., Bench], tmp_path: Path, cut: bool) -> None:
    """A connection that breaks between headers and message ends its call and frees the worker."""
    bench = serve(workers=1, message_wait_s=NEVER_S)
    raw = RawCall(bench, tmp_path)
    raw.begin()
    if not cut:
        raw.send_raw(b"\xff" * 64)
        assert raw.read_data() == b""
    raw.close()
    assert call(bench.connect(), METHOD, timeout=at_most(WAIT_S)).code is grpc.StatusCode.OK


def test_stop_does_not_wait_for_stalled_calls(serve: Callable[..., Bench], stall: Callable[..., list[Stalled]]) -> None:
    """A stop ends within its grace period even if calls have sent no message."""
    bench = serve(message_wait_s=NEVER_S)
    stalled = stall(bench.connect(STALLER), 2 * WORKERS)
    await_ended(stalled, left=WORKERS)
    bench.server.stop(0.1)
    assert {await_code(one) for one in stalled} == {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
