"""The development identity provider, as a SPIFFE client sees it."""

import socket as socket_module
import stat
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from time import monotonic

import grpc
import pytest
from spiffe import WorkloadApiClient
from spiffe._proto import workload_pb2, workload_pb2_grpc

from common.errors import ConfigError
from pilot.dev.ca import DevelopmentCA
from pilot.dev.provider import LONGEST_SOCKET_PATH, IdentityProvider
from tests.kit.patience import at_most, patience

HEADER = (("workload.spiffe.io", "true"),)


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[IdentityProvider]:
    """Return a provider whose SVIDs rotate when a test says so."""
    with IdentityProvider(tmp_path / "sockets", DevelopmentCA("example.org")) as provider:
        yield provider


def _open_stub(socket: Path) -> tuple[grpc.Channel, workload_pb2_grpc.SpiffeWorkloadAPIStub]:
    channel = grpc.insecure_channel(f"unix:{socket}")
    return channel, workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)  # type: ignore[no-untyped-call]


def test_each_socket_is_one_identity(provider: IdentityProvider) -> None:
    """Any client of a socket gets the identity of that socket, and its bundle."""
    for path, dns in (("/shardhold/nexus/a", "nexus.shardhold"), ("/team/app", None)):
        with WorkloadApiClient(f"unix:{provider.add(path, dns)}") as client:
            context = client.fetch_x509_context(timeout=at_most(10))
            assert str(context.default_svid.spiffe_id) == f"spiffe://example.org{path}"
            bundle = context.x509_bundle_set.get_bundle_for_trust_domain(context.default_svid.spiffe_id.trust_domain)
            assert bundle is not None
            assert client.fetch_x509_bundles(timeout=at_most(10)).bundles == {bundle}


def test_same_identity_keeps_its_socket(provider: IdentityProvider) -> None:
    """Adding an identity again returns the socket it already has."""
    assert provider.add("/team/app") == provider.add("/team/app")
    assert provider.add("/team/app") != provider.add("/team/app", "nexus.shardhold")


def test_socket_can_be_named(provider: IdentityProvider) -> None:
    """A name given for the socket is used, and belongs to one identity only."""
    assert provider.add("/team/app", name="app.sock").name == "app.sock"
    with pytest.raises(ConfigError, match=r"socket app\.sock: already belongs to another identity"):
        provider.add("/team/other", name="app.sock")
    with pytest.raises(ConfigError, match="want a file name"):
        provider.add("/team/other", name="../app.sock")


def test_socket_in_a_folder_of_its_own(provider: IdentityProvider) -> None:
    """Only the owner can open the folder; a socket that a killed provider left there is replaced."""
    (folder := provider.add("/team/app").parent / "app").mkdir(mode=0o700)
    with socket_module.socket(socket_module.AF_UNIX) as left:
        left.bind(str(folder / "workload.sock"))
    assert provider.add("/team/left", name="workload.sock", folder="app") == folder / "workload.sock"
    other = provider.add("/team/other", name="workload.sock", folder="other")
    assert stat.S_IMODE(other.parent.stat().st_mode) == 0o700
    for socket, path in ((folder / "workload.sock", "/team/left"), (other, "/team/other")):
        with WorkloadApiClient(f"unix:{socket}") as client:
            assert str(client.fetch_x509_svid(timeout=at_most(10)).spiffe_id) == f"spiffe://example.org{path}"
    with pytest.raises(ConfigError, match="already belongs to another identity"):
        provider.add("/team/third", name="workload.sock", folder="app")
    with pytest.raises(ConfigError, match="want a file name"):
        provider.add("/team/third", name="workload.sock", folder="../app")


def test_rotation_reaches_every_stream(provider: IdentityProvider) -> None:
    """All open streams of all identities get each new SVID, even more streams than a small thread pool could hold."""
    channel, stub = _open_stub(provider.add("/team/app"))
    other_channel, other_stub = _open_stub(provider.add("/team/other"))
    with channel, other_channel:
        streams = [
            stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=at_most(60)) for _ in range(40)
        ]
        streams.append(other_stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=at_most(60)))
        first = {next(stream).svids[0].x509_svid for stream in streams}
        assert len(first) == 2
        provider.rotate()
        second = {next(stream).svids[0].x509_svid for stream in streams}
        assert len(second) == 2
        assert not first & second


def test_rotation_at_half_life(tmp_path: Path) -> None:
    """An open stream gets the next SVID, unprompted, before the present one ends."""
    with IdentityProvider(tmp_path, DevelopmentCA("example.org"), lifetime=timedelta(seconds=10)) as provider:
        channel, stub = _open_stub(provider.add("/team/app"))
        with channel:
            stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=at_most(20))
            next(stream)
            began = monotonic()
            next(stream)
            assert 3 < monotonic() - began < patience(9.5)


def test_callers_that_leave_free_their_threads(provider: IdentityProvider) -> None:
    """Many streams in succession work: each gives its thread back when its caller leaves."""
    socket = provider.add("/team/app")
    channel, stub = _open_stub(socket)
    with channel:
        for _ in range(300):
            stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=at_most(20))
            next(stream)
            stream.cancel()


def test_header_is_required(provider: IdentityProvider) -> None:
    """A call without the security header, as a browser could be tricked into, gets INVALID_ARGUMENT."""
    channel, stub = _open_stub(provider.add("/team/app"))
    with channel, pytest.raises(grpc.RpcError) as caught:
        next(stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), timeout=at_most(10)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_long_path_gets_a_short_socket(provider: IdentityProvider) -> None:
    """A readable name that would be too long for a unix socket is replaced by a hash."""
    socket = provider.add("/team/" + "x" * 120)
    assert len(bytes(socket)) <= LONGEST_SOCKET_PATH
    with WorkloadApiClient(f"unix:{socket}") as client:
        assert str(client.fetch_x509_svid(timeout=at_most(10)).spiffe_id).endswith("x" * 120)


def test_long_directory_is_named(tmp_path: Path) -> None:
    """A directory too long for unix sockets is refused with its length and the limit."""
    with (
        IdentityProvider(tmp_path / ("d" * 100), DevelopmentCA("example.org")) as provider,
        pytest.raises(ConfigError, match=r"the path is \d+ bytes, a unix socket takes at most 107; choose a shorter"),
    ):
        provider.add("/team/app")


def test_directory_that_no_address_can_name(tmp_path: Path) -> None:
    """A directory with characters that socket addresses interpret is refused."""
    with pytest.raises(ConfigError, match="want a path without"):
        IdentityProvider(tmp_path / "a%20b", DevelopmentCA("example.org"))


def test_others_cannot_enter(provider: IdentityProvider) -> None:
    """Only their owner can enter the directory and the sockets."""
    socket = provider.add("/team/app")
    assert socket.parent.stat().st_mode & 0o077 == 0
    assert socket.stat().st_mode & 0o077 == 0


def test_stop_ends_streams_and_removes_sockets(tmp_path: Path) -> None:
    """After stop no stream, no socket and no rotation is left, and nothing can be added."""
    before = set(threading.enumerate())
    provider = IdentityProvider(tmp_path, DevelopmentCA("example.org"))
    channel, stub = _open_stub(provider.add("/team/app"))
    with channel:
        stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=at_most(20))
        next(stream)
        provider.stop()
        assert list(stream) == []
    assert list(tmp_path.iterdir()) == []
    assert "identity-rotation" not in {thread.name for thread in set(threading.enumerate()) - before}
    with pytest.raises(ConfigError, match="has stopped"):
        provider.add("/team/app")
    provider.stop()
