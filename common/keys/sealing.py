"""Sealing of key material to one X25519 key, for one delivery: HPKE (RFC 9180), base mode, single shot.

Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. Built from primitives rather than with
`cryptography`'s own `Suite`, which leaves the KEM's shared secret on the heap: together with the ciphertext in gRPC's
buffers, that opens the message. Here, as measured by memory scans, nothing of private key, shared secret, derived keys
and plaintext stays outside the caller's buffers.

A key opens once. Both sides use sequence number 0 of a fresh context, so each AEAD key encrypts one message.
"""

import threading

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from common.errors import DecryptionError, InvalidArgumentError
from common.keys.aead import TAG_SIZE, decrypt_once, encrypt_once
from common.keys.derive import hmac_into
from common.keys.protected import wipe_bytes

KEY_SIZE = 32  # bytes of a public key, of enc and of each secret here
OVERHEAD = KEY_SIZE + TAG_SIZE  # bytes that a sealed message is longer than its plaintext

_KEM = b"KEM\x00\x20"
_HPKE = b"HPKE\x00\x20\x00\x01\x00\x03"  # KEM 0x0020, KDF 0x0001, AEAD 0x0003
_MODE_BASE = b"\x00"
_NONCE_SIZE = 12

# A key pair that protects nothing: an exchange with it overwrites what the previous one left on the stack.
_THROW_AWAY = X25519PrivateKey.generate()
_THROW_AWAY_PUBLIC = X25519PrivateKey.generate().public_key()


class OneShotKey:
    """An X25519 key pair that opens one message and is then forgotten. Thread-safe: only one call gets the key."""

    public_bytes: bytes  # 32

    def __init__(self, *, private_for_tests: X25519PrivateKey | None = None) -> None:
        """Make a key pair; only test vectors bring their own."""
        private = private_for_tests if private_for_tests is not None else X25519PrivateKey.generate()
        self.public_bytes = private.public_key().public_bytes_raw()
        self._private: X25519PrivateKey | None = private
        self._lock = threading.Lock()

    def open(self, sealed: bytes, *, info: bytes, aad: bytes = b"", into: memoryview) -> None:
        """Open *sealed*, enc ‖ ciphertext, into *into*, which is exactly as long as the plaintext.

        The key is forgotten whatever the outcome. *into* is all zero after a failure.

        Raises:
            DecryptionError: Sealed for another key, info or aad, or changed; or the key was already used.
        """
        with self._lock:
            private, self._private = self._private, None
        into[:] = bytes(len(into))
        if private is None:
            raise DecryptionError("one-shot key was already used")
        if len(sealed) != len(into) + OVERHEAD:
            raise DecryptionError(f"sealed message is {len(sealed)} bytes, want {len(into) + OVERHEAD}")
        enc, ciphertext = sealed[:KEY_SIZE], memoryview(sealed)[KEY_SIZE:]
        context = bytearray(KEY_SIZE + _NONCE_SIZE)
        try:
            with memoryview(context) as view:
                _schedule(private, enc, enc + self.public_bytes, info, view)
                decrypt_once(view[:KEY_SIZE], view[KEY_SIZE:], ciphertext, aad, into)
        except (InvalidTag, ValueError) as exc:  # ValueError: enc is a point of small order
            into[:] = bytes(len(into))
            raise DecryptionError("sealed message does not open") from exc
        finally:
            wipe_bytes(context)

    def forget(self) -> None:
        """Forget the private key unused; OpenSSL cleanses what it frees."""
        with self._lock:
            self._private = None

    def __repr__(self) -> str:
        return f"<OneShotKey {self.public_bytes.hex()}>"


def seal(
    plaintext: memoryview,
    *,
    recipient: bytes,
    info: bytes,
    aad: bytes = b"",
    ephemeral_for_tests: X25519PrivateKey | None = None,
) -> bytes:
    """Seal *plaintext* to the 32-byte public key *recipient*; return enc (32 bytes) ‖ ciphertext.

    Only test vectors bring their own ephemeral key: using one twice repeats AEAD key and nonce.

    Raises:
        InvalidArgumentError: *recipient* is not an X25519 key, or is one of small order.
    """
    if len(recipient) != KEY_SIZE:
        raise InvalidArgumentError(f"recipient key is {len(recipient)} bytes, want {KEY_SIZE}")
    private = ephemeral_for_tests if ephemeral_for_tests is not None else X25519PrivateKey.generate()
    sealed = bytearray(len(plaintext) + OVERHEAD)
    enc = private.public_key().public_bytes_raw()
    context = bytearray(KEY_SIZE + _NONCE_SIZE)
    try:
        with memoryview(context) as view, memoryview(sealed) as output:
            _schedule(private, recipient, enc + recipient, info, view)
            output[:KEY_SIZE] = enc
            encrypt_once(view[:KEY_SIZE], view[KEY_SIZE:], plaintext, aad, output[KEY_SIZE:])
    except ValueError as exc:
        raise InvalidArgumentError("recipient key is a point of small order") from exc
    finally:
        wipe_bytes(context)
    return bytes(sealed)


def _schedule(private: X25519PrivateKey, peer: bytes, kem_context: bytes, info: bytes, context: memoryview) -> None:
    """Agree on a shared secret and derive AEAD key ‖ nonce into *context*, 44 bytes (RFC 9180 §4.1 and §5.1).

    *kem_context* is enc ‖ recipient. ValueError if *peer* is a point of small order.
    """
    scratch = bytearray(2 * KEY_SIZE)
    try:
        with memoryview(scratch) as view:
            prk, secret = view[:KEY_SIZE], view[KEY_SIZE:]
            _extract_exchange(private, peer, prk)
            _expand(_KEM, prk, b"shared_secret", kem_context, secret)
            psk_id_hash, info_hash = bytearray(KEY_SIZE), bytearray(KEY_SIZE)
            _extract(_HPKE, b"", b"psk_id_hash", b"", memoryview(psk_id_hash))
            _extract(_HPKE, b"", b"info_hash", info, memoryview(info_hash))
            _extract(_HPKE, secret, b"secret", b"", prk)
            key_context = _MODE_BASE + psk_id_hash + info_hash
            _expand(_HPKE, prk, b"key", key_context, context[:KEY_SIZE])
            _expand(_HPKE, prk, b"base_nonce", key_context, context[KEY_SIZE:])
    finally:
        wipe_bytes(scratch)


def _extract_exchange(private: X25519PrivateKey, peer: bytes, into: memoryview) -> None:
    label = b"HPKE-v1" + _KEM + b"eae_prk"
    message = bytearray(len(label) + KEY_SIZE)
    message[: len(label)] = label
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(peer))
        message[len(label) :] = shared
        wipe_bytes(shared)
        _THROW_AWAY.exchange(_THROW_AWAY_PUBLIC)
        hmac_into(memoryview(b""), message, into)
    finally:
        wipe_bytes(message)


def _extract(suite: bytes, salt: bytes | memoryview, label: bytes, key: bytes, into: memoryview) -> None:
    """LabeledExtract (RFC 9180 §4); *key* is public here."""
    hmac_into(memoryview(salt), b"HPKE-v1" + suite + label + key, into)


def _expand(suite: bytes, key: memoryview, label: bytes, info: bytes | bytearray, into: memoryview) -> None:
    """LabeledExpand (RFC 9180 §4), at most 32 bytes: one block."""
    hmac_into(key, len(into).to_bytes(2, "big") + b"HPKE-v1" + suite + label + info + b"\x01", into)
