"""`common.server.peer`: which caller a certificate stands for."""

import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import DeniedError, UnauthenticatedError
from common.server.peer import PeerCheck
from tests.kit.authority import Authority, usage
from tests.kit.credentials import certify

CA = Authority("example.test")
ID = "spiffe://example.test/shardhold/nexus/n1"
FOREVER = (timedelta(days=-1), timedelta(days=2))


def make_context(
    *uris: str, pem: bytes | None = None, named: Sequence[str] | None = None, version: str = "TLSv1.3"
) -> Mapping[str, Sequence[bytes]]:
    """Build what gRPC reports about a peer with these URI SANs; it names the peer only if there is one."""
    certificate = certify(CA, uris=uris, valid=FOREVER).certificate if pem is None else pem
    ids = named if named is not None else uris
    context = {"ssl_tls_version": [version.encode()], "x509_pem_cert": [certificate]}
    return context | ({"peer_spiffe_id": [uri.encode() for uri in ids]} if len(ids) == 1 else {})


def make_ca_certificate(*extensions: x509.ExtensionType) -> bytes:
    """Make a self-signed certificate with the SPIFFE ID and these extensions."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = x509.CertificateBuilder(
        x509.Name([]), x509.Name([]), key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1)
    ).add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ID)]), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_peer_that_is_not_admitted_is_refused() -> None:
    """A port that is not for everybody refuses by SPIFFE ID, once the certificate is found good."""

    def admit(spiffe_id: str) -> None:
        if spiffe_id == ID:
            raise DeniedError("not here")

    check = PeerCheck("example.test", admit=admit)
    assert check.identify(make_context(ID + "x")) == ID + "x"
    with pytest.raises(DeniedError, match="not here"):
        check.identify(make_context(ID))
    with pytest.raises(UnauthenticatedError, match=r"TLS 1\.3"):
        check.identify(make_context(ID, version="TLSv1.2"))


def test_leaf_of_own_trust_domain_is_its_spiffe_id() -> None:
    """A leaf with one SPIFFE ID of the trust domain is that caller, with or without DNS names besides."""
    check = PeerCheck("example.test")
    assert check.identify(make_context(ID)) == ID
    both = certify(CA, uris=[ID], dns=["nexus.shardhold"], valid=FOREVER).certificate
    assert check.identify(make_context(ID, pem=both)) == ID


@pytest.mark.parametrize(
    ("context", "words"),
    [
        pytest.param(make_context(ID, version="TLSv1.2"), "TLS 1.3", id="TLS 1.2"),
        pytest.param({"peer_spiffe_id": [ID.encode()]}, "TLS 1.3", id="no TLS at all"),
        pytest.param({"ssl_tls_version": [b"TLSv1.3"]}, "one URI SAN", id="no certificate"),
        pytest.param(make_context(ID, ID + "x"), "one URI SAN", id="two SPIFFE IDs"),
        pytest.param(make_context(ID, "https://example.test/"), "one URI SAN", id="SPIFFE ID and another URI"),
        pytest.param(make_context(ID, ID + "x", named=[ID]), "one URI SAN", id="two URI SANs, though gRPC says one"),
        pytest.param(make_context("https://example.test/x"), "one URI SAN", id="a URI that is no SPIFFE ID"),
        pytest.param(make_context(pem=certify(CA, dns=["a.test"]).certificate), "one URI SAN", id="DNS names only"),
        pytest.param(make_context("spiffe://other.test/a"), "another trust domain", id="foreign trust domain"),
        pytest.param(make_context("spiffe://example.test.evil/a"), "another trust domain", id="longer trust domain"),
        pytest.param(make_context("spiffe://example.test"), "one URI SAN", id="no path"),
        pytest.param(make_context("spiffe://example.test/"), "one URI SAN", id="empty path"),
        pytest.param(make_context("spiffe://example.test/a//b"), "one URI SAN", id="empty segment"),
        pytest.param(make_context("spiffe://example.test/a/"), "one URI SAN", id="slash at the end"),
        pytest.param(make_context("spiffe://example.test/a/../b"), "one URI SAN", id="two dots"),
        pytest.param(make_context("spiffe://example.test/a/."), "one URI SAN", id="one dot"),
        pytest.param(make_context("spiffe://example.test/a b"), "one URI SAN", id="space"),
        pytest.param(make_context("spiffe://example.test/a%62"), "one URI SAN", id="percent sign"),
        pytest.param(make_context("spiffe://example.test/a?b"), "one URI SAN", id="query"),
        pytest.param(make_context("spiffe://example.test:1/a"), "one URI SAN", id="port"),
        pytest.param(make_context("spiffe://Example.test/a"), "one URI SAN", id="upper case in the trust domain"),
        pytest.param(make_context("spiffe://example.test/" + 2048 * "a"), "one URI SAN", id="too long"),
        pytest.param(make_context(ID, named=[ID + "x"]), "different peers", id="gRPC and certificate differ"),
        pytest.param(make_context(ID, pem=b"no certificate"), "does not parse", id="no PEM"),
        pytest.param(
            make_context(ID, pem=make_ca_certificate(x509.BasicConstraints(True, None))),
            "want a leaf",
            id="an authority",
        ),
        pytest.param(
            make_context(ID, pem=make_ca_certificate(usage("key_cert_sign"))), "want a leaf", id="signs leaves"
        ),
        pytest.param(make_context(ID, pem=make_ca_certificate(usage("crl_sign"))), "want a leaf", id="signs CRLs"),
    ],
)
def test_other_peers_are_nobody(context: Mapping[str, Sequence[bytes]], words: str) -> None:
    """A certificate that breaks one rule is refused, and the message says which rule."""
    with pytest.raises(UnauthenticatedError, match=words):
        PeerCheck("example.test").identify(context)


@pytest.mark.parametrize(
    ("seconds", "is_valid"),
    [
        pytest.param(-60, True, id="from the first second"),
        pytest.param(-61, False, id="not yet valid"),
        pytest.param(58, True, id="to the last second"),
        pytest.param(60, False, id="expired"),
    ],
)
def test_dates_are_checked_at_every_call(seconds: int, is_valid: bool) -> None:
    """A certificate that was valid before is refused once it has expired, although it is parsed only once."""
    start = datetime.now(UTC).replace(microsecond=0)
    context = make_context(
        ID, pem=certify(CA, uris=[ID], valid=(timedelta(minutes=-1), timedelta(minutes=1))).certificate
    )
    now = start.timestamp()
    check = PeerCheck("example.test", now=lambda: now)
    assert check.identify(context) == ID
    now = start.timestamp() + seconds
    if is_valid:
        assert check.identify(context) == ID
    else:
        with pytest.raises(UnauthenticatedError, match="not valid now"):
            check.identify(context)


def test_pem_of_the_development_authority_is_plain() -> None:
    """The certificates of this table parse with another library too, so each is refused for its own reason."""
    assert ssl.PEM_cert_to_DER_cert(certify(CA, uris=[ID]).certificate.decode())
