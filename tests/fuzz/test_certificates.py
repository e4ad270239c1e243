"""Certificates and keys of peers, wrong in one place and signed all the same: an error of ours, or a true identity."""

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from common.errors import StatementError, UnauthenticatedError
from common.keys.statement import PUT_SHARD, SignedStatement, sign, verify
from common.server.peer import PeerCheck
from shardhold.identity import Svid
from tests.fuzz.budget import budget
from tests.fuzz.der import hostile_certificate, hostile_der, parse, resign
from tests.fuzz.mutations import hostile, mutated
from tests.kit.authority import KEEPER, NEXUS, NOW, Authority

# A later release refuses a serial number that is not positive; today it causes a warning, which none of our programs
# turns into an error.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")

AUTHORITY = Authority(at=NOW)
BELOW = Authority(above=AUTHORITY)
SVID = BELOW.forge()
LEAF, BETWEEN = SVID.chain()
DER = tuple(certificate.public_bytes(Encoding.DER) for certificate in (LEAF, BETWEEN))
BUNDLE = AUTHORITY.certificate.public_bytes(Encoding.PEM)
CLUSTER_ID, NONCE = b"c" * 16, b"n" * 32
SIGNED = sign(
    cluster_id=CLUSTER_ID,
    audience=NEXUS,
    purpose=PUT_SHARD,
    nonce=NONCE,
    boot_id=b"b" * 16,
    public_key=b"k" * 32,
    svid=SVID,
)
LEAVES = hostile_certificate(LEAF, BELOW.key)
KEY = SVID.private_key()
CHECK = PeerCheck("example.org", now=NOW.timestamp)


def to_pem(der: bytes, what: str = "CERTIFICATE") -> bytes:
    """Wrap *der* as PEM, whatever it is."""
    label = what.encode()
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label, base64.encodebytes(der), label)


def make_keys() -> list[bytes]:
    """Make a private key of each kind that the library can load, as PEM."""
    keys = (
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
        ed448.Ed448PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        x25519.X25519PrivateKey.generate(),
    )
    return [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in keys]


def verify_signed(signed: SignedStatement) -> None:
    statement = verify(
        signed,
        roots=[AUTHORITY.certificate],
        cluster_id=CLUSTER_ID,
        issuer=KEEPER,
        audience=NEXUS,
        purpose=PUT_SHARD,
        nonce=NONCE,
        now=NOW,
    )
    assert statement.issuer == KEEPER
    assert signed.statement == SIGNED.statement


@budget(8)
@given(LEAVES)
def test_statement_with_a_strange_leaf(leaf: bytes) -> None:
    """Whatever leaf the authority signed gives StatementError, or the keeper's own name and key."""
    try:
        verify_signed(SignedStatement(SIGNED.statement, SIGNED.signature, (leaf, DER[1])))
    except StatementError:
        return


@budget(4)
@given(hostile_certificate(BETWEEN, AUTHORITY.key))
def test_statement_with_a_strange_intermediate(between: bytes) -> None:
    """A changed intermediate gives StatementError, or nothing that matters was changed."""
    try:
        verify_signed(SignedStatement(SIGNED.statement, SIGNED.signature, (DER[0], between)))
    except StatementError:
        return


@budget(2)
@given(hostile(SIGNED.statement), hostile(SIGNED.signature), st.lists(hostile(*DER), max_size=9))
def test_statement_of_a_liar(statement: bytes, signature: bytes, certificates: list[bytes]) -> None:
    """A statement made entirely by someone without a key is refused."""
    for signed in (
        SignedStatement(statement, SIGNED.signature, DER),
        SignedStatement(SIGNED.statement, signature, DER),
        SignedStatement(SIGNED.statement, SIGNED.signature, tuple(certificates)),
    ):
        try:
            verify_signed(signed)
        except StatementError:
            continue


@budget(6)
@given(LEAVES.map(to_pem) | hostile(to_pem(DER[0])), hostile(KEEPER.encode()) | st.just(KEEPER.encode()))
def test_peer(pem: bytes, name: bytes) -> None:
    """Whatever certificate gRPC reports is a caller of our trust domain, or is refused."""
    context = {"ssl_tls_version": [b"TLSv1.3"], "peer_spiffe_id": [name], "x509_pem_cert": [pem]}
    try:
        caller = CHECK.identify(context)
    except UnauthenticatedError:
        return
    assert caller.startswith("spiffe://example.org/")
    assert caller.encode() == name


@budget(2)
@given(
    st.dictionaries(
        st.sampled_from(["ssl_tls_version", "peer_spiffe_id", "x509_pem_cert", "x509_subject_alternative_name"]),
        st.lists(hostile(b"TLSv1.3", KEEPER.encode(), to_pem(DER[0])), max_size=2),
    )
)
def test_authentication_context(context: dict[str, list[bytes]]) -> None:
    """Every authentication context gives a peer or a refusal of ours, whatever it holds or lacks."""
    try:
        caller = CHECK.identify(context)
    except UnauthenticatedError:
        return
    assert caller == KEEPER


PEM_LEAVES = LEAVES.map(to_pem)
KEYS = (
    st.sampled_from(make_keys())
    | mutated(SVID.key_pem)
    | hostile_der(base64.b64decode(b"".join(SVID.key_pem.splitlines()[1:-1]))).map(
        lambda der: to_pem(der, "PRIVATE KEY")
    )
    | st.just(SVID.key_pem)
)
BUNDLES = hostile_certificate(AUTHORITY.certificate, AUTHORITY.key).map(to_pem) | mutated(BUNDLE) | st.just(BUNDLE)


@budget(6)
@given(PEM_LEAVES | mutated(SVID.certificates_pem) | st.just(SVID.certificates_pem), KEYS, BUNDLES)
def test_svid(certificates: bytes, key: bytes, bundle: bytes) -> None:
    """Three files are an SVID whose parts belong together, or a ValueError, as their readers expect."""
    for parts in (
        (certificates, SVID.key_pem, BUNDLE),
        (SVID.certificates_pem, key, BUNDLE),
        (SVID.certificates_pem, SVID.key_pem, bundle),
    ):
        try:
            svid = Svid.parse(*parts)
        except ValueError:
            continue
        assert svid.spiffe_id.startswith(f"spiffe://{svid.trust_domain}/")
        assert svid.leaf().public_key() == load_pem_private_key(svid.key_pem, None).public_key()
        assert svid.bundle()


def test_what_is_signed_anew_is_good() -> None:
    """The unchanged seeds are valid: a mutation breaks only what it changes."""
    verify_signed(SIGNED)
    assert Svid.parse(SVID.certificates_pem, SVID.key_pem, BUNDLE).spiffe_id == KEEPER
    context = {"ssl_tls_version": [b"TLSv1.3"], "peer_spiffe_id": [KEEPER.encode()], "x509_pem_cert": [to_pem(DER[0])]}
    assert CHECK.identify(context) == KEEPER


def test_an_extension_that_stands_twice_is_no_svid() -> None:
    """A doubled extension is a ValueError: `cryptography`'s own error would end the thread that follows the files."""
    body = parse(LEAF.tbs_certificate_bytes)[0]
    *before, wrapped = body.children
    (extensions,) = wrapped.children
    doubled = replace(extensions, children=(*extensions.children, extensions.children[0]))
    tbs = replace(body, children=(*before, replace(wrapped, children=(doubled,)))).encode()
    with pytest.raises(ValueError, match="malformed"):
        Svid.parse(to_pem(resign(tbs, BELOW.key)), SVID.key_pem, BUNDLE)
