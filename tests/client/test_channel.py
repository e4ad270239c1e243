"""The pinned channel, against real grpcio servers over mTLS."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TypeAlias

import grpc
import pytest

from pilot.dev.provider import IdentityProvider
from shardhold._calls import SERVER_NAME
from shardhold._connections import MESSAGE_LIMIT
from shardhold._errors import DeadlineError, OverloadedError, UnavailableError, from_rpc
from shardhold.channel import PinnedChannel
from shardhold.identity import IdentityUnavailableError, Svid, WorkloadAPI
from tests.client.servers import NEXUS, Server, SlowLink
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most, patience, patiently

WaitUntil: TypeAlias = Callable[..., None]


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
def channel(server: Server, identity: FixedIdentity) -> Iterator[PinnedChannel]:
    """Connect the workload to the server."""
    with PinnedChannel(server.address, identity, server_name=SERVER_NAME) as channel:
        yield channel


def _echo(channel: grpc.Channel) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary("/test/Echo")


def _wait(channel: grpc.Channel) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary("/test/Wait")


def test_rotation_drops_no_call(provider: IdentityProvider) -> None:
    """While both sides' SVIDs rotate again and again under calls from several threads, every call succeeds."""
    server_identity = WorkloadAPI(str(provider.add(NEXUS, SERVER_NAME)))
    client_identity = WorkloadAPI(str(provider.add("/team/app")))
    server = Server(server_identity)
    failures: list[Exception] = []
    stop = threading.Event()
    answered = [0] * 6

    channel = PinnedChannel(server.address, client_identity, server_name=SERVER_NAME)

    def call_on(number: int) -> None:
        while not stop.is_set():
            try:
                assert _echo(channel)(b"ping", timeout=at_most(20)) == b"ping"
                answered[number] += 1
            except grpc.RpcError as exc:
                failures.append(exc)
                return

    with channel:
        threads = [threading.Thread(target=call_on, args=(number,)) for number in range(len(answered))]
        for thread in threads:
            thread.start()
        for rotation in range(1, 21):
            before, seen = sum(answered), len(server.seen)
            provider.rotate()
            pause = threading.Event()
            while not failures and (len(server.seen) <= seen or sum(answered) < before + 20):
                pause.wait(0.005)
            assert failures == [], f"rotation {rotation}"
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(server.seen) >= 20
    server.stop()
    server_identity.close()
    client_identity.close()


def test_call_in_flight_outlives_its_svid(
    channel: PinnedChannel, server: Server, identity: FixedIdentity, ca: Authority
) -> None:
    """A call that began before the rotation ends well, and its connection is closed afterwards."""
    answers: list[bytes] = []
    thread = threading.Thread(target=lambda: answers.append(_wait(channel)(b"slow", timeout=at_most(20))))
    thread.start()
    assert patiently(server.waiting.wait, 10)
    identity.svid = ca.issue("/team/app")
    assert _echo(channel)(b"quick", timeout=at_most(10)) == b"quick"
    assert len(channel._connections.retired) == 1
    server.go_on.set()
    thread.join()
    assert answers == [b"slow"]
    assert len(channel._connections.retired) == 0


def test_stream_outlives_its_svid(
    channel: PinnedChannel, server: Server, identity: FixedIdentity, ca: Authority, wait_until: WaitUntil
) -> None:
    """A stream keeps the connection it began on, which is closed when the stream ends."""
    count: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/test/Count")
    stream = count(b"", timeout=at_most(20))
    assert next(stream) == b"first"
    identity.svid = ca.issue("/team/app")
    assert _echo(channel)(b"quick", timeout=at_most(10)) == b"quick"
    server.go_on.set()
    assert list(stream) == [b"second"]
    wait_until(lambda: not channel._connections.retired)


def test_abandoned_stream(
    channel: PinnedChannel, server: Server, identity: FixedIdentity, ca: Authority, wait_until: WaitUntil
) -> None:
    """A stream that is cancelled or forgotten holds no old connection open."""
    count: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/test/Count")
    cancelled, forgotten = count(b"", timeout=at_most(20)), count(b"", timeout=at_most(20))
    assert (next(cancelled), next(forgotten)) == (b"first", b"first")
    identity.svid = ca.issue("/team/app")
    _echo(channel)(b"", timeout=at_most(10))
    assert len(channel._connections.retired) == 1
    cancelled.cancel()
    del forgotten
    wait_until(lambda: not channel._connections.retired)


def test_svid_of_the_call(channel: PinnedChannel, server: Server, identity: FixedIdentity, ca: Authority) -> None:
    """Each call uses the SVID that is current when it begins; a connection is kept while its SVID is current."""
    for svid in (identity.current(), identity.current(), ca.issue("/team/app")):
        identity.svid = svid
        _echo(channel)(b"", timeout=at_most(10))
    assert len(server.seen) == 2


def test_equal_svid_keeps_the_connection(channel: PinnedChannel, identity: FixedIdentity, ca: Authority) -> None:
    """A source that returns an equal SVID as a new object costs no new connection."""
    svid = identity.current()
    _echo(channel)(b"", timeout=at_most(10))
    first = channel._connections.current
    identity.svid = Svid.parse(svid.certificates_pem, svid.key_pem, svid.bundle_pem)
    _echo(channel)(b"", timeout=at_most(10))
    assert channel._connections.current is first


def test_no_svid(channel: PinnedChannel, identity: FixedIdentity) -> None:
    """Without an SVID a call raises at once, and works again once there is one."""
    svid, identity.svid = identity.svid, None
    with pytest.raises(IdentityUnavailableError, match="no SVID"):
        _echo(channel)(b"", timeout=at_most(10))
    identity.svid = svid
    assert _echo(channel)(b"x", timeout=at_most(10)) == b"x"


@pytest.mark.parametrize("size", [0, 1, MESSAGE_LIMIT - 64])
def test_message_sizes(channel: PinnedChannel, size: int) -> None:
    """Messages of up to 5 MiB pass; gRPC's own default of 4 MiB would be too small for a batch."""
    assert len(_echo(channel)(b"x" * size, timeout=at_most(20))) == size


def test_message_too_large(channel: PinnedChannel) -> None:
    """A message above the limit is refused on this side."""
    with pytest.raises(grpc.RpcError) as caught:
        _echo(channel)(b"x" * (MESSAGE_LIMIT + 1), timeout=at_most(20))
    assert type(from_rpc(caught.value)) is OverloadedError


def test_metadata_and_call(channel: PinnedChannel) -> None:
    """Metadata travels both ways, and `with_call` returns the call beside the answer."""
    answer, call = _echo(channel).with_call(b"x", timeout=at_most(10), metadata=(("x-test", "1"),))
    assert (answer, call.code()) == (b"x", grpc.StatusCode.OK)
    assert ("x-test", "1") in {(item[0], item[1]) for item in call.trailing_metadata()}


def test_deadline(channel: PinnedChannel) -> None:
    """A call's time-out is kept, and the connection is given back."""
    with pytest.raises(grpc.RpcError) as caught:
        _wait(channel)(b"", timeout=0.05)
    assert type(from_rpc(caught.value)) is DeadlineError
    assert channel._connections.current is not None
    assert channel._connections.current.calls == 0


@pytest.mark.parametrize(
    ("path", "dns"),
    [
        pytest.param("/team/app", None, id="a workload's SVID"),
        pytest.param("/shardhold/keeper/k1", "k1.keeper.shardhold", id="a keeper's SVID"),
        pytest.param("/team/app", "127.0.0.1.example", id="another DNS name"),
    ],
)
def test_server_of_another_name(ca: Authority, identity: FixedIdentity, path: str, dns: str | None) -> None:
    """A server of the same trust domain without the pinned name is refused: no workload passes for the nexus."""
    server = Server(FixedIdentity(ca.issue(path, dns=dns)))
    with PinnedChannel(server.address, identity, server_name=SERVER_NAME) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            _echo(channel)(b"", timeout=at_most(10))
        error = from_rpc(caught.value)
        assert (type(error), error.reason) == (UnavailableError, "")
        assert "no nexus of this trust domain" in error.hint
    assert server.seen == set()
    server.stop()


def test_foreign_client_is_refused(server: Server) -> None:
    """A client of another authority is refused in the handshake, and the error has a hint about it."""
    stranger = Authority("example.org").issue("/team/app")
    with PinnedChannel(server.address, FixedIdentity(stranger), server_name=SERVER_NAME) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            _echo(channel)(b"", timeout=at_most(10))
        assert "of an authority that is not known here" in from_rpc(caught.value).hint


def test_client_that_only_the_server_refuses(server: Server, ca: Authority) -> None:
    """A client that trusts a server that does not trust it gets the hint, although TLS 1.3 refuses it late."""
    other = Authority("example.org").issue("/team/app")
    half_trusted = Svid.parse(other.certificates_pem, other.key_pem, other.bundle_pem + ca.bundle_pem)
    with PinnedChannel(server.address, FixedIdentity(half_trusted), server_name=SERVER_NAME) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            _echo(channel)(b"", timeout=at_most(10))
        error = from_rpc(caught.value)
        assert type(error) is UnavailableError
        assert "no server accepted this SVID" in error.hint
    assert server.seen == set()


def test_nothing_listens(server: Server, identity: FixedIdentity) -> None:
    """Where nothing listens, the hint says so."""
    server.stop()
    with PinnedChannel(server.address, identity, server_name=SERVER_NAME) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            _echo(channel)(b"", timeout=at_most(10))
        assert "nothing listens there" in from_rpc(caught.value).hint


def test_attempts_to_connect_come_often(identity: FixedIdentity) -> None:
    """A server that returns is found soon: the seventh attempt comes after 2 s; gRPC's own backoff takes 20 s."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with PinnedChannel(address, identity, server_name=SERVER_NAME) as channel:
            limit = patience(12)
            waiting = threading.Thread(target=_wait_for, args=(channel, limit))
            waiting.start()
            deadline = monotonic() + limit
            for _ in range(7):
                deaf.settimeout(max(0.001, deadline - monotonic()))
                deaf.accept()[0].close()
        waiting.join()


def _wait_for(channel: PinnedChannel, seconds: float) -> None:
    with contextlib.suppress(grpc.RpcError):
        _echo(channel)(b"", timeout=seconds, wait_for_ready=True)


def test_long_way(server: Server, identity: FixedIdentity) -> None:
    """A server with a round trip of half a second is reached: an attempt to connect has time for its handshakes."""
    link = SlowLink(server.port, delay_s=0.25)
    with PinnedChannel(link.address, identity, server_name=SERVER_NAME) as channel:
        assert _echo(channel)(b"x", timeout=at_most(30), wait_for_ready=True) == b"x"
    link.close()


def test_options_of_the_caller_win(server: Server, identity: FixedIdentity) -> None:
    """An option given to the channel replaces the default."""
    options = (("grpc.max_send_message_length", 10),)
    with PinnedChannel(server.address, identity, server_name=SERVER_NAME, options=options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            _echo(channel)(b"x" * 11, timeout=at_most(10))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_it_does_not_do(channel: PinnedChannel) -> None:
    """Futures, client streams and connectivity are refused with a clear message."""
    with pytest.raises(NotImplementedError, match="use the callable itself, or with_call"):
        _echo(channel).future(b"")
    with pytest.raises(NotImplementedError, match="unary and server-streaming"):
        channel.stream_unary("/test/Echo")
    with pytest.raises(NotImplementedError, match="unary and server-streaming"):
        channel.stream_stream("/test/Echo")
    with pytest.raises(NotImplementedError, match="connectivity"):
        channel.subscribe(print)
    channel.unsubscribe(print)


def test_closed(channel: PinnedChannel, server: Server) -> None:
    """Closing cancels calls in flight, may be repeated, and later calls are refused."""
    failures: list[Exception] = []

    def call() -> None:
        try:
            _wait(channel)(b"", timeout=at_most(20))
        except grpc.RpcError as exc:
            failures.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    assert patiently(server.waiting.wait, 10)
    channel.close()
    channel.close()
    thread.join()
    assert len(failures) == 1
    with pytest.raises(ValueError, match="the channel is closed"):
        _echo(channel)(b"", timeout=at_most(10))
