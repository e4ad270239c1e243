"""Sealing: RFC 9180's vector, the stock implementation as the other side, and everything that must not open."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.bindings._rust import openssl as rust_openssl
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DecryptionError, InvalidArgumentError
from common.keys.sealing import OVERHEAD, OneShotKey, seal
from tests.kit.patience import at_most, join

VECTORS = Path(__file__).parents[2] / "vectors"
SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)

# Points of small order, which RFC 7748 §6.1 asks to refuse: they give everyone the same shared secret.
SMALL_ORDER = [
    bytes(32),
    bytes((1,)) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def load(name: str, label: str) -> list[Any]:
    vectors = json.loads((VECTORS / name / "vectors.json").read_text())
    return [pytest.param({k: _decode(k, v) for k, v in vector.items()}, id=str(vector[label])) for vector in vectors]


def _decode(name: str, value: object) -> object:
    return bytes.fromhex(value) if isinstance(value, str) and name != "name" else value


def open_bytes(key: OneShotKey, sealed: bytes, info: bytes = b"", aad: bytes = b"") -> bytes:
    into = bytearray(len(sealed) - OVERHEAD)
    key.open(sealed, info=info, aad=aad, into=memoryview(into))
    return bytes(into)


@pytest.mark.parametrize("vector", load("hpke", "name"))
def test_rfc_9180_vector(vector: dict[str, bytes]) -> None:
    """With the RFC's ephemeral key we seal to exactly its bytes, and with its recipient key we open them."""
    sealed = seal(
        memoryview(vector["pt"]),
        recipient=vector["pkRm"],
        info=vector["info"],
        aad=vector["aad"],
        ephemeral_for_tests=X25519PrivateKey.from_private_bytes(vector["skEm"]),
    )
    assert sealed == vector["enc"] + vector["ct"]
    key = OneShotKey(private_for_tests=X25519PrivateKey.from_private_bytes(vector["skRm"]))
    assert key.public_bytes == vector["pkRm"]
    assert open_bytes(key, sealed, vector["info"], vector["aad"]) == vector["pt"]


@settings(deadline=None, max_examples=40)
@given(plaintext=st.binary(max_size=100), info=st.binary(max_size=100), aad=st.binary(max_size=100))
def test_the_stock_suite_opens_what_we_seal(plaintext: bytes, info: bytes, aad: bytes) -> None:
    """`cryptography`'s HPKE opens what we seal."""
    private = X25519PrivateKey.generate()
    recipient = private.public_key().public_bytes_raw()
    sealed = seal(memoryview(plaintext), recipient=recipient, info=info)
    assert SUITE.decrypt(sealed, private, info) == plaintext
    sealed = seal(memoryview(plaintext), recipient=recipient, info=info, aad=aad)
    assert rust_openssl.hpke._decrypt_with_aad(SUITE, sealed, private, info, aad) == plaintext


@settings(deadline=None, max_examples=40)
@given(plaintext=st.binary(max_size=100), info=st.binary(max_size=100), aad=st.binary(max_size=100))
def test_we_open_what_the_stock_suite_seals(plaintext: bytes, info: bytes, aad: bytes) -> None:
    """We open what `cryptography`'s HPKE seals."""
    key = OneShotKey()
    sealed = SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(key.public_bytes), info)
    assert open_bytes(key, sealed, info) == plaintext
    key = OneShotKey()
    public = X25519PublicKey.from_public_bytes(key.public_bytes)
    sealed = rust_openssl.hpke._encrypt_with_aad(SUITE, plaintext, public, info, aad)
    assert open_bytes(key, sealed, info, aad) == plaintext


def _refused(
    private: X25519PrivateKey, sealed: bytes, info: bytes = b"info", aad: bytes = b"aad", size: int = 33
) -> bool:
    """Return whether the message does not open, and leaves zeros where the plaintext would have gone."""
    into = bytearray(b"\xaa" * size)
    with pytest.raises(DecryptionError):
        OneShotKey(private_for_tests=private).open(sealed, info=info, aad=aad, into=memoryview(into))
    return into == bytes(size)


def test_one_flipped_bit_anywhere_does_not_open() -> None:
    """One flipped bit of enc, ciphertext or tag does not open; nor does another info, aad, key or length.

    X25519 ignores the highest bit of enc (RFC 7748 §5); the KEM's context is what refuses a flip of that bit.
    """
    private = X25519PrivateKey.generate()
    recipient = private.public_key().public_bytes_raw()
    sealed = seal(memoryview(b"x" * 33), recipient=recipient, info=b"info", aad=b"aad")
    assert open_bytes(OneShotKey(private_for_tests=private), sealed, b"info", b"aad") == b"x" * 33
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        assert _refused(private, bytes(changed))
    assert _refused(private, sealed, info=b"Info")
    assert _refused(private, sealed, aad=b"")
    assert _refused(X25519PrivateKey.generate(), sealed)
    assert _refused(private, sealed, size=32)
    assert _refused(private, sealed + b"\x00")
    assert _refused(private, sealed[:47], size=1)
    assert _refused(private, b"")


@pytest.mark.parametrize("point", [pytest.param(point, id=point.hex()[:8]) for point in SMALL_ORDER])
def test_points_of_small_order_are_refused(point: bytes) -> None:
    """A point of small order is refused as recipient and as enc: everyone would know the shared secret."""
    with pytest.raises(InvalidArgumentError, match="small order"):
        seal(memoryview(b"x"), recipient=point, info=b"")
    assert _refused(X25519PrivateKey.generate(), point + bytes(17), size=1)


@pytest.mark.parametrize("size", [0, 31, 33, 1216])
def test_what_is_no_key_is_refused(size: int) -> None:
    """A recipient key that is not 32 bytes is refused."""
    with pytest.raises(InvalidArgumentError, match=f"{size} bytes, want 32"):
        seal(memoryview(b"x"), recipient=bytes(size), info=b"")


def test_a_key_opens_once() -> None:
    """After one use the key is gone, whether it opened or not; so it is once forgotten."""
    used, failed, forgotten = OneShotKey(), OneShotKey(), OneShotKey()
    messages = [seal(memoryview(b"x"), recipient=key.public_bytes, info=b"") for key in (used, failed, forgotten)]
    assert open_bytes(used, messages[0]) == b"x"
    with pytest.raises(DecryptionError, match="does not open"):
        open_bytes(failed, messages[1], info=b"other")
    forgotten.forget()
    for key, message in zip((used, failed, forgotten), messages, strict=True):
        with pytest.raises(DecryptionError, match="already used"):
            open_bytes(key, message)


def test_of_many_threads_one_gets_the_key() -> None:
    """When many threads race for one key, exactly one gets it."""
    key, outcomes, start = OneShotKey(), list[bytes](), threading.Barrier(8)
    sealed = seal(memoryview(b"x"), recipient=key.public_bytes, info=b"")

    def work() -> None:
        start.wait(at_most(10))
        try:
            outcomes.append(open_bytes(key, sealed))
        except DecryptionError:
            outcomes.append(b"")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread, 10)
    assert sorted(outcomes) == [b""] * 7 + [b"x"]


def test_keys_and_messages_are_never_the_same() -> None:
    """Each key pair and each sealing is drawn anew."""
    keys = {OneShotKey().public_bytes for _ in range(20)}
    sealed = {seal(memoryview(b"x"), recipient=min(keys), info=b"") for _ in range(20)}
    assert len(keys) == len(sealed) == 20


def test_a_key_shows_its_public_half_only() -> None:
    """The repr of a key shows only its public key."""
    key = OneShotKey()
    assert repr(key) == f"<OneShotKey {key.public_bytes.hex()}>"


@pytest.mark.parametrize("vector", load("chacha20_poly1305", "tcId"))
def test_the_cipher_under_it_gives_the_vectors(vector: dict[str, bytes]) -> None:
    """ChaCha20-Poly1305 as we call it, on views and in place, gives the vectors; one flipped tag bit does not open."""
    size = len(vector["msg"])
    cipher = ChaCha20Poly1305(memoryview(vector["key"]))
    sealed, opened = bytearray(size + 16), bytearray(size)
    cipher.encrypt_into(vector["iv"], memoryview(vector["msg"]), vector["aad"], memoryview(sealed))
    assert sealed == vector["ct"] + vector["tag"]
    cipher.decrypt_into(vector["iv"], memoryview(sealed), vector["aad"], memoryview(opened))
    assert opened == vector["msg"]
    for bit in range(8 * size, 8 * (size + 16)):
        sealed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidTag):
            cipher.decrypt_into(vector["iv"], sealed, vector["aad"], opened)
        sealed[bit // 8] ^= 1 << bit % 8
