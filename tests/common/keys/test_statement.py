"""Statements: what verifies, and that nothing else does."""

from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidArgumentError, StatementError
from common.forms.codec import fields, parse_fields
from common.keys.statement import PUT_SHARD, SignedStatement, Statement, sign, verify
from shardhold.identity import Svid
from tests.kit.authority import KEEPER, NEXUS, NOW, Authority, make_key, usage

CLUSTER, NONCE, BOOT, KEY = bytes(range(16)), bytes(range(32)), bytes(range(16, 32)), bytes(range(32, 64))


ROOT = Authority(at=NOW)
INTERMEDIATE = Authority(above=ROOT)


def sign_as(svid: Svid, **changes: Any) -> SignedStatement:
    stated = {"cluster_id": CLUSTER, "audience": NEXUS, "purpose": PUT_SHARD, "nonce": NONCE, "boot_id": BOOT}
    return sign(**{**stated, "public_key": KEY, "svid": svid, **changes})


def verify_as_asked(signed: SignedStatement, **changes: Any) -> Statement:
    asked = {"cluster_id": CLUSTER, "issuer": KEEPER, "audience": NEXUS, "purpose": PUT_SHARD, "nonce": NONCE}
    return verify(signed, **{**asked, "roots": [ROOT.certificate], "now": NOW, **changes})


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("p256", "ecdsa-p256-sha256"), ("p384", "ecdsa-p384-sha384"), ("rsa", "rsa-pss-sha256")]
)
@pytest.mark.parametrize("authority", [pytest.param(ROOT, id="root"), pytest.param(INTERMEDIATE, id="intermediate")])
def test_statement_of_each_kind_of_key_verifies(authority: Authority, kind: str, algorithm: str) -> None:
    """The algorithm follows from the key, and verifying returns what was signed."""
    signed = sign_as(authority.forge(kind))
    assert len(signed.certificates) == 1 + len(authority.chain())
    assert verify_as_asked(signed) == Statement(CLUSTER, KEEPER, NEXUS, PUT_SHARD, NONCE, BOOT, KEY, algorithm)


@pytest.mark.parametrize("kind", ["p521", "ed25519"])
def test_other_keys_neither_sign_nor_verify(kind: str) -> None:
    """A key without an algorithm of ours neither signs nor verifies."""
    svid = ROOT.forge(kind)
    with pytest.raises(StatementError, match="want P-256, P-384 or RSA"):
        sign_as(svid)
    with pytest.raises(StatementError):
        verify_as_asked(replace(sign_as(ROOT.forge()), certificates=(der(svid.leaf()),)))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"san_critical": True}, id="critical SAN"),
        pytest.param({"subject": x509.Name([]), "san_critical": True}, id="no subject"),
        pytest.param({"dns": ["one.keeper.shardhold"]}, id="a DNS SAN beside"),
        pytest.param({"purposes": ()}, id="no extended key usage"),
        pytest.param({"key_usage": usage("digital_signature", "key_encipherment")}, id="as for RSA"),
    ],
)
def test_leaves_of_other_issuers_verify(shape: dict[str, Any]) -> None:
    """Every shape of leaf that X.509-SVID allows verifies."""
    assert verify_as_asked(sign_as(ROOT.forge(**shape))).issuer == KEEPER


@pytest.mark.parametrize(
    ("uris", "shape", "message"),
    [
        pytest.param((KEEPER, NEXUS), {}, "want exactly", id="two URI SANs"),
        pytest.param((KEEPER, KEEPER), {}, "want exactly", id="the same URI SAN twice"),
        pytest.param((KEEPER + "x",), {}, "want exactly", id="another SPIFFE ID"),
        pytest.param((KEEPER.replace("keeper", "Keeper"),), {}, "want exactly", id="another case"),
        pytest.param((KEEPER,), {"ca": True}, "does not verify", id="leaf is an authority"),
        pytest.param((KEEPER,), {"key_usage": usage("key_agreement")}, "does not verify", id="leaf may not sign"),
        pytest.param(
            (KEEPER,),
            {"key_usage": usage("digital_signature", "key_cert_sign")},
            "does not verify",
            id="leaf may sign certificates",
        ),
        pytest.param(
            (KEEPER,), {"purposes": [ExtendedKeyUsageOID.CODE_SIGNING]}, "does not verify", id="leaf is for code"
        ),
    ],
)
def test_leaves_that_are_no_svid_of_the_keeper(uris: tuple[str, ...], shape: dict[str, Any], message: str) -> None:
    """A valid chain is not enough: the leaf must be able to sign and have exactly one URI SAN, the expected one."""
    svid = ROOT.forge("p256", *uris, **shape)
    with pytest.raises(StatementError, match=message):
        verify_as_asked(sign_as(replace(svid, spiffe_id=KEEPER)))


def test_leaf_without_names_is_refused() -> None:
    """A leaf without any SAN is refused."""
    leaf = ROOT.certify(make_key("p256"))
    with pytest.raises(StatementError, match="does not verify"):
        verify_as_asked(replace(sign_as(ROOT.forge()), certificates=(der(leaf),)))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"roots": []}, id="no authority"),
        pytest.param({"roots": [Authority(at=NOW).certificate]}, id="another authority of the same domain"),
        pytest.param({"now": NOW + timedelta(hours=1, seconds=1)}, id="expired"),
        pytest.param({"now": NOW - timedelta(minutes=1, seconds=1)}, id="not valid yet"),
        pytest.param({"cluster_id": bytes(16)}, id="another cluster"),
        pytest.param({"issuer": NEXUS}, id="another issuer"),
        pytest.param({"audience": KEEPER}, id="another audience"),
        pytest.param({"audience": NEXUS + "/2"}, id="a longer audience"),
        pytest.param({"purpose": "submit-share"}, id="another purpose"),
        pytest.param({"nonce": bytes(32)}, id="another nonce"),
        pytest.param({"nonce": b""}, id="no nonce"),
    ],
)
def test_what_was_not_asked_is_refused(changes: dict[str, Any]) -> None:
    """A good statement for another peer or purpose, of another time, or in answer to another question is refused."""
    signed = sign_as(ROOT.forge())
    assert verify_as_asked(signed).public_key == KEY
    with pytest.raises(StatementError):
        verify_as_asked(signed, **changes)


def test_good_until_the_last_second() -> None:
    """The chain is valid until its last second, whatever time zone the time is given in."""
    signed = sign_as(INTERMEDIATE.forge())
    for now in (NOW - timedelta(minutes=1), NOW + timedelta(hours=1)):
        assert verify_as_asked(signed, now=now).issuer == KEEPER


def _resign(
    sign_it: Callable[[Any, bytes], bytes], kind: str = "p256", algorithm: str = "ecdsa-p256-sha256"
) -> SignedStatement:
    svid = ROOT.forge(kind)
    statement = Statement(CLUSTER, KEEPER, NEXUS, PUT_SHARD, NONCE, BOOT, KEY, algorithm).encode()
    return SignedStatement(statement, sign_it(make_key(kind), statement), (der(svid.leaf()),))


def _pss(hash_: HashAlgorithm, salt: int) -> padding.PSS:
    return padding.PSS(padding.MGF1(hash_), salt)


@pytest.mark.parametrize(
    "signed",
    [
        pytest.param(lambda: _resign(_ecdsa(SHA256()), algorithm="rsa-pss-sha256"), id="P-256 states RSA"),
        pytest.param(lambda: _resign(_ecdsa(SHA256()), algorithm="ecdsa-p384-sha384"), id="P-256 states P-384"),
        pytest.param(lambda: _resign(_ecdsa(SHA256()), algorithm=""), id="P-256 states nothing"),
        pytest.param(lambda: _resign(_ecdsa(SHA384())), id="P-256 with SHA-384"),
        pytest.param(
            lambda: _resign(lambda key, data: key.sign(data, padding.PKCS1v15(), SHA256()), "rsa", "rsa-pss-sha256"),
            id="RSA, PKCS #1 v1.5",
        ),
        pytest.param(
            lambda: _resign(lambda key, data: key.sign(data, _pss(SHA384(), 48), SHA384()), "rsa", "rsa-pss-sha256"),
            id="RSA-PSS with SHA-384",
        ),
        pytest.param(
            lambda: _resign(lambda key, data: key.sign(data, _pss(SHA256(), 0), SHA256()), "rsa", "rsa-pss-sha256"),
            id="RSA-PSS without salt",
        ),
    ],
)
def test_other_algorithms_than_the_keys_are_refused(signed: Callable[[], SignedStatement]) -> None:
    """Each kind of key has one algorithm, and the statement must name that one."""
    with pytest.raises(StatementError):
        verify_as_asked(signed())


def _ecdsa(hash_: HashAlgorithm) -> Callable[[Any, bytes], bytes]:
    return lambda key, data: bytes(key.sign(data, ec.ECDSA(hash_)))


def _flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # of a negative serial number
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(7, id="a bit of every byte"),  # at each of the eight places in turn
        pytest.param(1, id="every bit", marks=pytest.mark.slow),
    ],
)
def test_one_flipped_bit_anywhere_is_refused(step: int) -> None:
    """One flipped bit of the statement, the signature, the leaf or the intermediate is refused."""
    signed = sign_as(INTERMEDIATE.forge())
    verify_as_asked(signed)
    parts = (signed.statement, signed.signature, *signed.certificates)
    for index, part in enumerate(parts):
        for bit in range(0, 8 * len(part), step):
            statement, signature, *certificates = (
                _flip(each, bit) if i == index else each for i, each in enumerate(parts)
            )
            with pytest.raises(StatementError):
                verify_as_asked(SignedStatement(statement, signature, tuple(certificates)))


@settings(deadline=None, max_examples=150)
@given(
    statement=st.binary(max_size=200) | st.lists(st.binary(max_size=33), max_size=10).map(lambda parts: fields(*parts)),
    signature=st.binary(max_size=80),
    certificates=st.lists(st.binary(max_size=100) | st.just(der(ROOT.forge().leaf())), max_size=3),
)
def test_garbage_is_refused_with_our_error(statement: bytes, signature: bytes, certificates: list[bytes]) -> None:
    """Whatever arrives, a bad statement raises StatementError and nothing else."""
    with pytest.raises(StatementError):
        verify_as_asked(SignedStatement(statement, signature, tuple(certificates)))
    with pytest.raises(StatementError):
        Statement.decode(statement)


@pytest.mark.parametrize(
    ("certificates", "message"),
    [
        pytest.param(lambda good: (), "0 certificates", id="none"),
        pytest.param(lambda good: good * 5, "10 certificates", id="too many"),
        pytest.param(lambda good: (bytes(17 * 1024),), "longer than", id="too long"),
        pytest.param(lambda good: (good[0] + b"\x00",), "does not parse", id="trailing byte"),
        pytest.param(lambda good: (good[0],), "does not verify", id="intermediate missing"),
        pytest.param(lambda good: good[::-1], "does not verify", id="wrong order"),
        pytest.param(lambda good: (der(ROOT.certificate),), "does not verify", id="the root itself"),
    ],
)
def test_malformed_chains(certificates: Callable[[tuple[bytes, ...]], tuple[bytes, ...]], message: str) -> None:
    """A chain is the leaf, then its intermediates up to the root, and only a few of them; anything else is refused."""
    signed = sign_as(INTERMEDIATE.forge())
    with pytest.raises(StatementError, match=message):
        verify_as_asked(replace(signed, certificates=certificates(signed.certificates)))


def test_encoding_keeps_every_part() -> None:
    """Decoding gives the statement back, and the encoding has each part in order after the format."""
    statement = Statement.decode(sign_as(ROOT.forge()).statement)
    assert Statement.decode(statement.encode()) == statement
    first, *parts = parse_fields(statement.encode())
    assert first == b"shardhold-hpke-v1"
    values = [getattr(statement, field.name) for field in dataclass_fields(statement)]
    assert parts == [value.encode() if isinstance(value, str) else value for value in values]
    digests = {statement.digest(), *(replace(statement, **{name: other}).digest() for name, other in _others())}
    assert len(digests) == 9


def _others() -> list[tuple[str, Any]]:
    names = [field.name for field in dataclass_fields(Statement)]
    return [(name, "x" if name in {"issuer", "audience", "purpose", "algorithm"} else b"x") for name in names]


@pytest.mark.parametrize(
    ("name", "value"),
    [("cluster_id", bytes(15)), ("nonce", bytes(31)), ("nonce", b""), ("boot_id", bytes(17)), ("public_key", b"")],
)
def test_parts_of_the_wrong_size(name: str, value: Any) -> None:
    """A part of the wrong size is neither signed nor decoded."""
    with pytest.raises(InvalidArgumentError, match=f"{name} is {len(value)} bytes"):
        sign_as(ROOT.forge(), **{name: value})
    statement = Statement.decode(sign_as(ROOT.forge()).statement)
    with pytest.raises(StatementError, match=f"{name} is {len(value)} bytes"):
        Statement.decode(replace(statement, **{name: value}).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda parts: [b"shardhold-hpke-v2", *parts[1:]], "another format", id="another format"),
        pytest.param(lambda parts: parts[:-1], "8 parts", id="a part missing"),
        pytest.param(lambda parts: [*parts, b""], "10 parts", id="a part more"),
        pytest.param(lambda parts: [*parts[:2], b"\xff", *parts[3:]], "UTF-8", id="issuer not UTF-8"),
        pytest.param(lambda parts: [], "another format", id="nothing"),
    ],
)
def test_other_forms_do_not_decode(change: Callable[[list[bytes]], list[bytes]], message: str) -> None:
    """Only an encoding of exactly nine parts in this format decodes."""
    parts = parse_fields(sign_as(ROOT.forge()).statement)
    with pytest.raises(StatementError, match=message):
        Statement.decode(fields(*change(parts)))
