"""The recovery key: what it opens and what it does not, and the salted hashes of its shares."""

import hashlib
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from common.errors import DecryptionError, InvalidArgumentError
from common.forms.codec import fields
from common.keys.recovery_key import (
    OVERHEAD,
    PUBLIC_SIZE,
    ShareHash,
    challenge_info,
    check_public_key,
    derive_public_key,
    escrow_info,
    hash_share,
    open_sealed,
    seal,
)

SEED = bytes(range(32))
INFO = escrow_info(bytes(16), 1)


def test_what_was_sealed_opens() -> None:
    """What is sealed to a seed's public key opens with the seed; a sealed root key takes 1,168 bytes."""
    public_key = derive_public_key(SEED)
    assert len(public_key) == PUBLIC_SIZE == 1216
    sealed = seal(memoryview(bytes(32)), public_key, INFO)
    assert len(sealed) == 32 + OVERHEAD == 1168
    assert open_sealed(sealed, memoryview(SEED), INFO) == bytes(32)


def test_derivation_is_what_the_design_says() -> None:
    """The key pair is HKDF-Expand of the seed under two labels, and a stock suite opens with it what we sealed."""
    label = b"shardhold-recovery-key-v1"
    key = MLKEM768X25519PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(HKDFExpand(SHA256(), 64, fields(label, b"ML-KEM-768")).derive(SEED)),
        x25519.X25519PrivateKey.from_private_bytes(HKDFExpand(SHA256(), 32, fields(label, b"X25519")).derive(SEED)),
    )
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    assert suite.decrypt(seal(b"x", derive_public_key(SEED), INFO), key, INFO) == b"x"
    assert open_sealed(suite.encrypt(b"y", key.public_key(), INFO), SEED, INFO) == b"y"


@pytest.mark.parametrize(
    ("seed", "info", "flipped"),
    [
        pytest.param(bytes(32), INFO, None, id="another seed"),
        pytest.param(SEED, escrow_info(bytes(16), 2), None, id="another generation"),
        pytest.param(SEED, escrow_info(b"x" * 16, 1), None, id="another cluster"),
        pytest.param(SEED, INFO, 0, id="flipped in the ML-KEM ciphertext"),
        pytest.param(SEED, INFO, 1100, id="flipped in the X25519 share"),
        pytest.param(SEED, INFO, 1130, id="flipped in the sealed key"),
        pytest.param(SEED, INFO, -1, id="flipped in the tag"),
    ],
)
def test_nothing_else_opens(seed: bytes, info: bytes, flipped: int | None) -> None:
    """Another seed, another info or one flipped bit does not open."""
    sealed = bytearray(seal(SEED, derive_public_key(SEED), INFO))
    if flipped is not None:
        sealed[flipped] ^= 1
    with pytest.raises(DecryptionError):
        open_sealed(bytes(sealed), seed, info)


@pytest.mark.parametrize("size", [0, 1, 100, 1119, 1135, 1167])
def test_short_input_does_not_open(size: int) -> None:
    """A cut ciphertext is a decryption error."""
    with pytest.raises(DecryptionError):
        open_sealed(seal(SEED, derive_public_key(SEED), INFO)[:size], SEED, INFO)


@pytest.mark.parametrize(
    "public_key",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(derive_public_key(SEED)[:-1], id="a byte short"),
        pytest.param(derive_public_key(SEED) + b"\0", id="a byte long"),
        pytest.param(b"\xff" * PUBLIC_SIZE, id="coefficients out of range"),
        pytest.param(derive_public_key(SEED)[:1184] + bytes(32), id="X25519 key of small order"),
    ],
)
def test_wrong_public_key_is_refused(public_key: bytes) -> None:
    """Nothing is sealed to bytes that are not a public key."""
    with pytest.raises(InvalidArgumentError, match=r"^recovery public key: "):
        check_public_key(public_key)


def test_seed_of_another_size_is_refused() -> None:
    """A seed is 32 bytes."""
    with pytest.raises(InvalidArgumentError, match="got 31 bytes"):
        derive_public_key(SEED[1:])


def test_share_hash() -> None:
    """A share matches its own hash and no other; the hash is salted, and is SHA-256 over the codec's form."""
    share = os.urandom(66)
    one, other = hash_share(memoryview(share)), hash_share(share)
    assert one.matches(share)
    assert other.matches(memoryview(bytearray(share)))
    assert one != other
    assert not one.matches(share[:-1])
    assert not ShareHash(other.salt, one.digest).matches(share)
    assert one.digest == hashlib.sha256(fields(b"shardhold-share-hash-v1", one.salt, share)).digest()


def test_infos_are_apart() -> None:
    """A challenge and an escrow never share an info."""
    infos = {
        challenge_info(bytes(16), 1, bytes(32)),
        challenge_info(bytes(16), 2, bytes(32)),
        challenge_info(bytes(16), 1, b"x" * 32),
        escrow_info(bytes(16), 1),
        escrow_info(bytes(16), 2),
    }
    assert len(infos) == 5
