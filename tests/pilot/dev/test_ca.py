"""The development authority: what its SVIDs look like."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from common.errors import ConfigError
from pilot.dev.ca import DevelopmentCA

CA = DevelopmentCA("example.org")


def test_svid_is_shaped_like_spires() -> None:
    """An SVID is P-256, one URI SAN, one DNS SAN, only digitalSignature, both purposes, no CA, a little backdated."""
    before = datetime.now(UTC)
    svid = CA.issue("/shardhold/nexus/a", dns="nexus.shardhold", lifetime=timedelta(minutes=5))
    leaf = svid.leaf()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    key = leaf.public_key()

    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org/shardhold/nexus/a"]
    assert names.get_values_for_type(x509.DNSName) == ["nexus.shardhold"]
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert basic.critical
    assert not basic.value.ca
    assert svid.not_before < before
    assert before + timedelta(minutes=4) < svid.expires_at <= before + timedelta(minutes=5, seconds=1)


def test_workload_has_no_dns_name() -> None:
    """A workload's SVID cannot pass for a server's: it has no DNS SAN and no common name to match."""
    leaf = CA.issue("/team/app").leaf()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []
    assert leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME) == []


def test_chain_verifies() -> None:
    """The leaf verifies against the bundle as a client, and another authority's bundle refuses it."""
    leaf = CA.issue("/team/app").leaf()
    PolicyBuilder().store(Store([CA.certificate])).build_client_verifier().verify(leaf, [])
    stranger = DevelopmentCA("example.org")
    with pytest.raises(x509.verification.VerificationError):
        PolicyBuilder().store(Store([stranger.certificate])).build_client_verifier().verify(leaf, [])


def test_each_svid_is_new() -> None:
    """Serials and keys are never used twice."""
    first, second = CA.issue("/team/app"), CA.issue("/team/app")
    assert first.leaf().serial_number != second.leaf().serial_number
    assert first.key_pem != second.key_pem


def test_bundle_is_the_authority() -> None:
    """It holds one certificate, which names the trust domain."""
    (authority,) = x509.load_pem_x509_certificates(CA.bundle_pem)
    assert authority == CA.certificate
    names = authority.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("team/app", id="no slash in front"),
        pytest.param("/team/app/", id="slash at the end"),
        pytest.param("/team//app", id="empty segment"),
        pytest.param("/team/../app", id="dots"),
        pytest.param("/team/a b", id="space"),
        pytest.param("/", id="root"),
    ],
)
def test_bad_path(path: str) -> None:
    """A path that is not a SPIFFE path is refused and named."""
    with pytest.raises(ConfigError, match="SPIFFE path"):
        CA.issue(path)


def test_bad_trust_domain() -> None:
    """A trust domain with a capital or a slash is refused."""
    with pytest.raises(ConfigError, match="trust domain"):
        DevelopmentCA("Example.org/x")


def test_shortest_lifetime() -> None:
    """Five seconds is the shortest lifetime; a shorter one is refused by name."""
    CA.issue("/team/app", lifetime=timedelta(seconds=5))
    with pytest.raises(ConfigError, match=r"lifetime of SVIDs: got 4 s, want at least 5 s"):
        CA.issue("/team/app", lifetime=timedelta(seconds=4))


def test_repr_has_no_key() -> None:
    """The repr of an authority or an SVID shows no key material."""
    svid = CA.issue("/team/app")
    assert "PRIVATE" not in repr(svid)
    assert repr(CA) == "DevelopmentCA('example.org')"
