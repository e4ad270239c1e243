"""Statements: a receiver's one-shot sealing key, signed by its SVID, so that a sender seals to an exact SPIFFE ID.

gRPC's client cannot check a server's SPIFFE ID, so a sender that holds key material asks for a statement first,
verifies it, and binds its digest into what it seals. The receiver forgets the key after one use or 60 s. A statement
contains, in the order of its encoding: format, cluster, issuer (the receiver), audience (the sender), purpose, the
sender's nonce, the receiver's boot id, the one-shot public key, the signature algorithm. None of that is secret; the
private key stays at the desk.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import ClientVerifier, Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store
from cryptography.x509.verification import VerificationError as ChainError

from common.clock import Clock
from common.errors import CorruptRowError, InvalidArgumentError, OverloadedError, StatementError
from common.forms.codec import fields, parse_fields
from common.keys.sealing import KEY_SIZE, OneShotKey

if TYPE_CHECKING:
    from shardhold.identity import Svid

PUT_SHARD = "put-shard"  # the purpose: a shard for a keeper
SUBMIT_SHARE = "submit-share"  # the purpose: a recovery share for a nexus
LIFETIME_S = 60.0  # seconds of the receiver's monotonic clock
NONCE_SIZE = 32  # bytes, random, the sender's
ID_SIZE = 16  # bytes of a cluster id and of a boot id

_FORMAT = b"shardhold-hpke-v1"
_MAX_CERTIFICATES = 8
_MAX_CERTIFICATE_SIZE = 16 * 1024  # bytes

# What a hostile certificate can make `cryptography` raise; several of these are not ValueErrors.
_X509_ERRORS = (
    ChainError,
    UnsupportedAlgorithm,
    ValueError,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

# No prehash choice, no SHA-1, no Ed25519: what SPIRE issues, and one hash for each kind of key.
_ECDSA_P256 = "ecdsa-p256-sha256"
_ECDSA_P384 = "ecdsa-p384-sha384"
_RSA_PSS = "rsa-pss-sha256"
_PSS = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=SHA256.digest_size)


@dataclass(frozen=True)
class Statement:
    """What the receiver states about one one-shot key."""

    cluster_id: bytes  # 16
    issuer: str  # SPIFFE ID of the receiver, who holds the private key
    audience: str  # SPIFFE ID of the sender, who asked
    purpose: str
    nonce: bytes  # 32, the sender's
    boot_id: bytes  # 16, new at each start of the receiver
    public_key: bytes  # 32, X25519
    algorithm: str  # of the signature; follows from the SVID's key

    def encode(self) -> bytes:
        """Return the bytes that are signed."""
        return fields(_FORMAT, *(part.encode() if isinstance(part, str) else part for part in astuple(self)))

    def digest(self) -> bytes:
        """Return the SHA-256 of the encoding, 32 bytes: what names this statement later."""
        return hashlib.sha256(self.encode()).digest()

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Decode what `encode` made; only the form is verified yet.

        Raises:
            StatementError: Not a statement of this format, or a part has the wrong size.
        """
        try:
            parts = parse_fields(encoded)
        except CorruptRowError as exc:
            raise StatementError(f"statement does not decode: {exc}") from exc
        if not parts or parts[0] != _FORMAT:
            raise StatementError("statement has another format")
        if len(parts) != 9:
            raise StatementError(f"statement has {len(parts)} parts, want 9")
        _, cluster_id, issuer, audience, purpose, nonce, boot_id, public_key, algorithm = parts
        try:
            statement = cls(
                cluster_id=cluster_id,
                issuer=issuer.decode(),
                audience=audience.decode(),
                purpose=purpose.decode(),
                nonce=nonce,
                boot_id=boot_id,
                public_key=public_key,
                algorithm=algorithm.decode(),
            )
        except UnicodeDecodeError as exc:
            raise StatementError("statement has text that is not UTF-8") from exc
        for name, part, size in statement._sized():
            if len(part) != size:
                raise StatementError(f"{name} is {len(part)} bytes, want {size}")
        return statement

    def _sized(self) -> tuple[tuple[str, bytes, int], ...]:
        return (
            ("cluster_id", self.cluster_id, ID_SIZE),
            ("nonce", self.nonce, NONCE_SIZE),
            ("boot_id", self.boot_id, ID_SIZE),
            ("public_key", self.public_key, KEY_SIZE),
        )


@dataclass(frozen=True)
class SignedStatement:
    """A statement as it travels."""

    statement: bytes  # encoded
    signature: bytes
    certificates: tuple[bytes, ...]  # DER; the issuer's SVID, then its intermediates


def sign(
    *, cluster_id: bytes, audience: str, purpose: str, nonce: bytes, boot_id: bytes, public_key: bytes, svid: "Svid"
) -> SignedStatement:
    """State as *svid* that *public_key* is its one-shot key.

    The SVID's key signs TLS handshakes too; what is signed there begins with 64 spaces and a context, so neither kind
    of signature can pass for the other.

    Raises:
        InvalidArgumentError: An id, nonce or key of the wrong size.
        StatementError: The SVID's key is none of P-256, P-384, RSA.
    """
    key = svid.private_key()
    leaf, *_ = chain = svid.chain()
    statement = Statement(
        cluster_id=cluster_id,
        issuer=svid.spiffe_id,
        audience=audience,
        purpose=purpose,
        nonce=nonce,
        boot_id=boot_id,
        public_key=public_key,
        algorithm=_choose_algorithm(leaf),
    )
    for name, part, size in statement._sized():
        if len(part) != size:
            raise InvalidArgumentError(f"{name} is {len(part)} bytes, want {size}")
    encoded = statement.encode()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(encoded, ec.ECDSA(SHA384() if statement.algorithm == _ECDSA_P384 else SHA256()))
    elif isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(encoded, _PSS, SHA256())
    else:
        raise StatementError(f"SVID has a key of type {type(key).__name__}, want P-256, P-384 or RSA")
    certificates = tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)
    return SignedStatement(statement=encoded, signature=signature, certificates=certificates)


def verify(
    signed: SignedStatement,
    *,
    roots: Sequence[x509.Certificate],
    cluster_id: bytes,
    issuer: str,
    audience: str,
    purpose: str,
    nonce: bytes,
    now: datetime,
) -> Statement:
    """Verify *signed* for the sender who asked with *nonce*, and return what it states.

    Args:
        signed: As received; nothing about it is trusted.
        roots: The authorities of the issuer's trust domain, of no other.
        cluster_id: As asked.
        issuer: The exact SPIFFE ID that the key material is for.
        audience: The sender's own SPIFFE ID.
        purpose: As asked.
        nonce: As asked, 32 bytes, never used before.
        now: Time-zone aware; the chain must be valid then.

    Raises:
        StatementError: Anything at all is not as required; the message says what.
    """
    leaf = _verify_chain(signed.certificates, roots, issuer, now)
    algorithm = _choose_algorithm(leaf)
    _verify_signature(leaf, algorithm, signed)
    statement = Statement.decode(signed.statement)
    for name, got, want in (
        ("algorithm", statement.algorithm, algorithm),
        ("cluster", statement.cluster_id.hex(), cluster_id.hex()),
        ("issuer", statement.issuer, issuer),
        ("audience", statement.audience, audience),
        ("purpose", statement.purpose, purpose),
        ("nonce", statement.nonce.hex(), nonce.hex()),
    ):
        if got != want:
            raise StatementError(f"statement has {name} {got!r}, want {want!r}")
    return statement


class StatementDesk:
    """The receiver's open one-shot keys, by statement digest: each for one use, for 60 s. Thread-safe."""

    def __init__(self, clock: Clock, *, limit: int = 64, per_audience: int | None = None) -> None:
        """Keep at most *limit* keys at a time, and of each audience at most *per_audience*: its oldest goes."""
        self._clock = clock
        self._limit = limit
        self._per_audience = per_audience
        self._lock = threading.Lock()
        self._open: dict[bytes, tuple[float, Statement, OneShotKey]] = {}  # oldest first

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def issue(
        self, *, cluster_id: bytes, audience: str, purpose: str, nonce: bytes, boot_id: bytes, svid: "Svid"
    ) -> SignedStatement:
        """Make a one-shot key, keep it, and sign a statement of it for *audience*.

        Raises:
            OverloadedError: The limit of open keys is reached.
            InvalidArgumentError: An id or the nonce has the wrong size.
            StatementError: The SVID's key is none of P-256, P-384, RSA.
        """
        self.expire()
        with self._lock:
            self._make_room(audience)
        key = OneShotKey()
        signed = sign(
            cluster_id=cluster_id,
            audience=audience,
            purpose=purpose,
            nonce=nonce,
            boot_id=boot_id,
            public_key=key.public_bytes,
            svid=svid,
        )
        statement = Statement.decode(signed.statement)
        with self._lock:
            self._make_room(audience)  # again, since signing takes a while
            self._open[statement.digest()] = (self._clock.monotonic() + LIFETIME_S, statement, key)
        return signed

    def take(self, digest: bytes) -> tuple[Statement, OneShotKey]:
        """Hand out the key of the statement with *digest*, once.

        It does not check who asks: whoever calls this must compare the peer with the statement's audience.

        Raises:
            StatementError: There is no such statement, it was used, or it is too old.
        """
        self.expire()
        with self._lock:
            entry = self._open.pop(digest, None)
        if entry is None:
            raise StatementError("statement is unknown, used or older than 60 s")
        _, statement, key = entry
        return statement, key

    def expire(self) -> None:
        """Forget the keys that are too old. `issue` and `take` do it; an idle receiver calls it now and then."""
        with self._lock:
            now = self._clock.monotonic()
            for digest, (due, _, key) in list(self._open.items()):
                if due > now:
                    break
                del self._open[digest]
                key.forget()

    def withdraw(self, audience: str) -> None:
        """Forget all keys of *audience*."""
        with self._lock:
            self._withdraw(audience, keep=0)

    def _withdraw(self, audience: str, *, keep: int) -> None:
        digests = [digest for digest, (_, statement, _) in self._open.items() if statement.audience == audience]
        for digest in digests[: max(0, len(digests) - keep)]:
            _, _, key = self._open.pop(digest)
            key.forget()

    def _make_room(self, audience: str) -> None:
        if self._per_audience is not None:
            self._withdraw(audience, keep=self._per_audience - 1)
        if len(self._open) >= self._limit:
            raise OverloadedError(f"{len(self._open)} statements are open, want at most {self._limit}")


def _verify_chain(
    certificates: Sequence[bytes], roots: Sequence[x509.Certificate], issuer: str, now: datetime
) -> x509.Certificate:
    if not 1 <= len(certificates) <= _MAX_CERTIFICATES:
        raise StatementError(f"{len(certificates)} certificates, want 1 to {_MAX_CERTIFICATES}")
    if any(len(der) > _MAX_CERTIFICATE_SIZE for der in certificates):
        raise StatementError(f"a certificate is longer than {_MAX_CERTIFICATE_SIZE} bytes")
    if not roots:
        raise StatementError("no authority of the trust domain is known")
    try:
        leaf, *intermediates = (_load(der) for der in certificates)
    except _X509_ERRORS as exc:
        raise StatementError("a certificate does not parse") from exc
    try:
        _build_verifier(roots, now).verify(leaf, intermediates)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _X509_ERRORS as exc:
        raise StatementError(f"certificate chain does not verify: {exc}") from exc
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [issuer]:
        raise StatementError(f"certificate is of {uris}, want exactly {issuer!r}")
    return leaf


def _load(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    # The count of unused bits before the signature is the one byte that neither the signature nor the parser checks.
    if not der.endswith(b"\x00" + certificate.signature):
        raise ValueError("the signature is not in whole bytes")
    return certificate


def _build_verifier(roots: Sequence[x509.Certificate], now: datetime) -> ClientVerifier:
    # Subject and criticality of the SAN are up to the issuer: SPIRE gives every subject the same name and leaves the
    # SAN non-critical.
    leaf_policy = (
        ExtensionPolicy.webpki_defaults_ee()
        .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
        .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_key_usage)
    )
    return (
        PolicyBuilder()
        .store(Store(list(roots)))
        .time(now)
        .extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=leaf_policy)
        .build_client_verifier()
    )


def _check_key_usage(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage) -> None:
    # X.509-SVID §4.3: a leaf signs, but never certificates.
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise ValueError("leaf does not have the key usage of an X.509-SVID")


def _choose_algorithm(leaf: x509.Certificate) -> str:
    try:
        key = leaf.public_key()
    except _X509_ERRORS as exc:
        raise StatementError("SVID has a key that does not parse") from exc
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return _ECDSA_P256
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return _ECDSA_P384
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA_PSS
    raise StatementError(f"SVID has a key of type {type(key).__name__}, want P-256, P-384 or RSA")


def _verify_signature(leaf: x509.Certificate, algorithm: str, signed: SignedStatement) -> None:
    # The algorithm comes from the verified key, never from what the statement says about itself.
    key = leaf.public_key()
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            scheme = ec.ECDSA(SHA384() if algorithm == _ECDSA_P384 else SHA256())
            key.verify(signed.signature, signed.statement, scheme)
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signed.signature, signed.statement, _PSS, SHA256())
    except InvalidSignature as exc:
        raise StatementError("signature does not verify") from exc
