"""The recovery key: what opens the escrow of the root key, and the challenge that proves its shares at init.

A 32-byte seed gives, by HKDF-Expand, the key pair of HPKE MLKEM768_X25519 with HKDF-SHA256 and ChaCha20-Poly1305: a
copy of the escrow recorded today stays closed to a quantum computer of tomorrow. Custodians keep the seed, as words.

Opening with the seed leaves copies of it in library memory that cannot be wiped: a nexus does it only in the child of
`common.keys.opener`, pilot in its own short-lived process. Sealing a root key leaves copies of that key, so the opener
does that too.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import DecryptionError, InvalidArgumentError
from common.forms.codec import fields, u64

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite

SEED_SIZE = 32
MLKEM_PUBLIC_SIZE = 1184
X25519_PUBLIC_SIZE = 32
PUBLIC_SIZE = MLKEM_PUBLIC_SIZE + X25519_PUBLIC_SIZE  # 1216
OVERHEAD = 1088 + 32 + 16  # ML-KEM ciphertext, X25519 share, tag: 1168 bytes for a sealed root key
SALT_SIZE = 16

_FORMAT = b"shardhold-recovery-key-v1"
_SHARE_HASH_FORMAT = b"shardhold-share-hash-v1"


def derive_public_key(seed: bytes | bytearray | memoryview) -> bytes:
    """Return the public key of *seed* (32 bytes): 1184 bytes of ML-KEM-768, then 32 of X25519."""
    mlkem_seed, x25519_seed = _derive_seeds(seed)
    from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

    return (
        mlkem.MLKEM768PrivateKey.from_seed_bytes(mlkem_seed).public_key().public_bytes_raw()
        + x25519.X25519PrivateKey.from_private_bytes(x25519_seed).public_key().public_bytes_raw()
    )


def check_public_key(public_key: bytes) -> None:
    """Check that something can be sealed to *public_key*, 1216 bytes.

    Raises:
        InvalidArgumentError: Wrong size, or not a valid pair of keys.
    """
    seal(bytes(SEED_SIZE), public_key, b"")


def seal(plaintext: bytes | bytearray | memoryview, public_key: bytes, info: bytes) -> bytes:
    """Seal *plaintext* to *public_key*, bound to *info*: enc, then ciphertext; 1136 bytes longer than *plaintext*.

    Raises:
        InvalidArgumentError: *public_key* is not 1216 bytes of a valid pair of keys.
    """
    if len(public_key) != PUBLIC_SIZE:
        raise InvalidArgumentError(f"recovery public key: got {len(public_key)} bytes, want {PUBLIC_SIZE}")
    try:
        return _suite().encrypt(plaintext, _load_public_key(public_key), info)
    except ValueError as exc:
        # ML-KEM coefficients out of range, or an X25519 key of small order.
        raise InvalidArgumentError(
            "recovery public key: is not a valid pair of an ML-KEM-768 and an X25519 key"
        ) from exc


def open_sealed(sealed: bytes, seed: bytes | bytearray | memoryview, info: bytes) -> bytes:
    """Open what `seal` sealed to the public key of *seed* (32 bytes).

    Raises:
        DecryptionError: The seed or *info* is another one, or *sealed* is not what was sealed.
    """
    from cryptography.exceptions import InvalidTag

    try:
        return _suite().decrypt(sealed, _load_private_key(seed), info)
    except (InvalidTag, ValueError) as exc:
        raise DecryptionError(
            "sealed to the recovery key, and does not open: the words are others, or the data was changed"
        ) from exc


def challenge_info(cluster_id: bytes, attempt: int, genesis: bytes) -> bytes:
    """Return the HPKE info of the challenge of an init attempt."""
    return fields(b"shardhold-init-challenge-v1", cluster_id, u64(attempt), genesis)


def escrow_info(cluster_id: bytes, generation: int) -> bytes:
    """Return the HPKE info of the escrow of a generation's root key."""
    return fields(b"shardhold-escrow-v1", cluster_id, u64(generation))


@dataclass(frozen=True, slots=True)
class ShareHash:
    """The salted hash by which a nexus recognises a recovery share that it has not seen."""

    salt: bytes  # 16 bytes
    digest: bytes  # SHA-256, 32 bytes

    def matches(self, share: bytes | bytearray | memoryview) -> bool:
        """Return whether this is the hash of *share*, in the wire form of `common.keys.words`. Leaves no copy of it."""
        return hmac.compare_digest(_hash(self.salt, share), self.digest)


def hash_share(share: bytes | bytearray | memoryview) -> ShareHash:
    """Hash a recovery share, in the wire form of `common.keys.words`, with a new salt."""
    salt = os.urandom(SALT_SIZE)
    return ShareHash(salt, _hash(salt, share))


def _hash(salt: bytes, share: bytes | bytearray | memoryview) -> bytes:
    # The codec's form, fed part by part so that the share is never copied into one buffer.
    digest = hashlib.sha256(fields(_SHARE_HASH_FORMAT, salt))
    digest.update(len(share).to_bytes(4, "big"))
    digest.update(share)
    return digest.digest()


def _derive_seeds(seed: bytes | bytearray | memoryview) -> tuple[bytes, bytes]:
    if len(seed) != SEED_SIZE:
        raise InvalidArgumentError(f"recovery seed: got {len(seed)} bytes, want {SEED_SIZE}")
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

    # The seed is uniform, so there is nothing to extract (RFC 5869 section 3.3).
    mlkem_seed = HKDFExpand(SHA256(), 64, fields(_FORMAT, b"ML-KEM-768")).derive(bytes(seed))
    x25519_seed = HKDFExpand(SHA256(), 32, fields(_FORMAT, b"X25519")).derive(bytes(seed))
    return mlkem_seed, x25519_seed


def _load_private_key(seed: bytes | bytearray | memoryview) -> "MLKEM768X25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

    mlkem_seed, x25519_seed = _derive_seeds(seed)
    return MLKEM768X25519PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(mlkem_seed),
        x25519.X25519PrivateKey.from_private_bytes(x25519_seed),
    )


def _load_public_key(public_key: bytes) -> "MLKEM768X25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
    from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey

    return MLKEM768X25519PublicKey(
        mlkem.MLKEM768PublicKey.from_public_bytes(public_key[:MLKEM_PUBLIC_SIZE]),
        x25519.X25519PublicKey.from_public_bytes(public_key[MLKEM_PUBLIC_SIZE:]),
    )


def _suite() -> "Suite":
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
