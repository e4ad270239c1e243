"""`common.server.tls`: what a server presents and accepts, over rotations."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from common import errors
from common.server.edge import Call, GrpcServer, Method
from keeper.v1 import keeper_pb2 as pb
from tests.kit.authority import Authority
from tests.kit.credentials import certify
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.raw_calls import call, connect

METHOD = "/keeper.v1.KeeperService/GetStatus"
DNS = "k1.keeper.shardhold"
PATH = "/shardhold/keeper/k1"


@pytest.fixture
def ca() -> Authority:
    return Authority("example.test")


@pytest.fixture
def identity(ca: Authority) -> FixedIdentity:
    return FixedIdentity(ca.issue(PATH, dns=DNS))


@pytest.fixture
def port(identity: FixedIdentity) -> Iterator[int]:
    """Return the port of a server with *identity*."""

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(version=call.caller)

    server = GrpcServer(
        [Method(METHOD, pb.GetStatusRequest, pb.GetStatusResponse, answer)],
        address="127.0.0.1:0",
        identity=identity,
        trust_domain="example.test",
    )
    try:
        yield server.start()
    finally:
        server.stop(0)


def fetch_serial(port: int, ca: Authority, directory: Path) -> int:
    """Return the serial number of the certificate that the server presents, by Python's own TLS."""
    credentials = certify(ca, uris=["spiffe://example.test/a"])
    pem = directory / "client.pem"
    pem.write_bytes(credentials.certificate + credentials.key)
    context = ssl.create_default_context(cadata=ca.bundle_pem.decode())
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname=DNS) as secure,
    ):
        certificate = secure.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def call_as(port: int, ca: Authority, server_ca: Authority) -> grpc.StatusCode:
    """Call as a client of *ca* that trusts *server_ca*; return the code."""
    credentials = certify(ca, uris=["spiffe://example.test/a"], roots=server_ca)
    with connect(port, credentials, ca, server_name=DNS) as channel:
        return call(channel, METHOD).code


def test_new_connections_see_the_new_svid(port: int, identity: FixedIdentity, ca: Authority, tmp_path: Path) -> None:
    """After a rotation the next connection is shown the new certificate; without one, the same."""
    first = fetch_serial(port, ca, tmp_path)
    assert first == identity.current().leaf().serial_number == fetch_serial(port, ca, tmp_path)
    identity.svid = ca.issue(PATH, dns=DNS)
    assert fetch_serial(port, ca, tmp_path) == identity.current().leaf().serial_number != first


def test_connections_stay_over_a_rotation(port: int, identity: FixedIdentity, ca: Authority) -> None:
    """A connection that was open before a rotation stays open."""
    credentials = certify(ca, uris=["spiffe://example.test/a"])
    with connect(port, credentials, ca, server_name=DNS) as channel:
        assert call(channel, METHOD).code is grpc.StatusCode.OK
        identity.svid = ca.issue(PATH, dns=DNS)
        assert call(channel, METHOD).code is grpc.StatusCode.OK


def test_client_roots_rotate_too(port: int, identity: FixedIdentity, ca: Authority) -> None:
    """When the authority changes, clients of the new one are let in and those of the old one are not."""
    newer = Authority("example.test")
    assert call_as(port, newer, ca) is grpc.StatusCode.UNAVAILABLE
    assert call_as(port, ca, ca) is grpc.StatusCode.OK
    identity.svid = newer.issue(PATH, dns=DNS)
    assert call_as(port, newer, newer) is grpc.StatusCode.OK
    assert call_as(port, ca, newer) is grpc.StatusCode.UNAVAILABLE


def test_last_svid_stays_while_there_is_none(port: int, identity: FixedIdentity, ca: Authority, tmp_path: Path) -> None:
    """When the source has lost its SVID, connections are still made with the last one; no call on them is served."""
    last = identity.current()
    identity.svid = None
    assert fetch_serial(port, ca, tmp_path) == last.leaf().serial_number
    assert call_as(port, ca, ca) is grpc.StatusCode.UNAVAILABLE
    identity.svid = last
    assert call_as(port, ca, ca) is grpc.StatusCode.OK


def test_start_without_an_svid_fails(identity: FixedIdentity) -> None:
    """A server does not start without an SVID: it would serve nobody."""
    identity.svid = None
    server = GrpcServer([], address="127.0.0.1:0", identity=identity, trust_domain="example.test")
    with pytest.raises(errors.IdentityUnavailableError):
        server.start()
    server.stop(0)
