"""How the SDK agrees on the keys of its connections, and that it says so when they are not hybrid."""

import logging
from collections.abc import Iterator

import grpc
import pytest

from shardhold._connections import list_options, offers_hybrid_keys, warn_of_classical_keys
from shardhold.channel import PinnedChannel
from tests.client.servers import NEXUS, Server
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most
from tests.kit.tls_relay import HYBRID, P256, TlsRelay

IS_HYBRID = offers_hybrid_keys(grpc.__version__)


@pytest.fixture
def relay(ca: Authority) -> Iterator[TlsRelay]:
    server = Server(FixedIdentity(ca.issue(NEXUS, dns="nexus.shardhold")))
    with TlsRelay(server.port) as relay:
        yield relay
    server.stop()


@pytest.mark.parametrize(
    ("version", "is_hybrid"),
    [("1.80.1", False), ("1.82.1", False), ("1.83.0", True), ("1.85.1", True), ("1.100.0rc1", True), ("2.0.0", True)],
)
def test_since_when_keys_are_hybrid(version: str, is_hybrid: bool) -> None:
    """From grpcio 1.83 on; older ones know P-256 alone."""
    assert offers_hybrid_keys(version) is is_hybrid


def test_keys_are_what_this_grpcio_offers(ca: Authority, relay: TlsRelay) -> None:
    """With an older grpcio on both ends it is P-256; from 1.83 on it is X25519 with ML-KEM-768."""
    identity = FixedIdentity(ca.issue("/team/app"))
    with PinnedChannel(relay.address, identity, server_name="nexus.shardhold") as channel:
        echo: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test/Echo")
        assert echo(b"x", timeout=at_most(10)) == b"x"
    assert relay.groups == [HYBRID if IS_HYBRID else P256]


def test_it_says_once_that_keys_are_not_hybrid(caplog: pytest.LogCaptureFixture) -> None:
    """The first channel of a process warns, and names the version that would do better; hybrid keys need no word."""
    warn_of_classical_keys.cache_clear()
    with caplog.at_level(logging.WARNING, "shardhold._connections"):
        for _ in range(2):
            list_options("nexus.shardhold", ())
        for version in ("1.81.0", "1.81.0", "1.84.0"):
            warn_of_classical_keys(version)
    told = [record.getMessage() for record in caplog.records]
    assert [message.split()[1] for message in told] == [*([] if IS_HYBRID else [grpc.__version__]), "1.81.0"]
    assert all("grpcio 1.83 or newer" in message for message in told)
