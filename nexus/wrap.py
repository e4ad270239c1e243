"""Wrap a 32-byte key under another one.

    wrap = format1 ‖ algorithm1 ‖ salt16 ‖ commitment32 ‖ ciphertext48

The wrapping key is only ever HKDF-Expand input: with a new salt for each wrap it gives an AEAD key that is used once,
so there is no limit of nonces, and a commitment tag, so that a wrap opens under one key only (ChaCha20-Poly1305 alone
does not commit).
"""

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from common.codec import fields
from common.derive import expand
from common.errors import DecryptionError
from common.protected import ProtectedMemory

FORMAT = b"\x01\x01"  # format 1, ChaCha20-Poly1305
KEY_SIZE = 32
SALT_SIZE = 16
WRAP_SIZE = len(FORMAT) + SALT_SIZE + 32 + KEY_SIZE + 16

# Safe because each AEAD key is derived from a random salt of its own and encrypts once. Unsafe as soon as a salt is
# reused.
_NONCE = bytes(12)


def wrap_key(key: memoryview, *, under: memoryview, aad: bytes, memory: ProtectedMemory) -> bytes:
    """Wrap *key*, 32 bytes, under *under*, 32 bytes; return 98 bytes. *aad* binds the wrap to its place."""
    salt = os.urandom(SALT_SIZE)
    ciphertext = bytearray(KEY_SIZE + 16)
    with memory.allocate(KEY_SIZE) as aead_key:
        expand(under, _info(salt, b"key"), aead_key.view)
        ChaCha20Poly1305(aead_key.view).encrypt_into(_NONCE, key, aad, ciphertext)
    return FORMAT + salt + _commitment(under, salt) + bytes(ciphertext)


def unwrap_key(wrap: bytes, *, under: memoryview, aad: bytes, memory: ProtectedMemory, into: memoryview) -> None:
    """Open *wrap* into *into*, 32 bytes of protected memory, unchanged on failure.

    Raises:
        DecryptionError: Not a wrap, not under this key, or not from this place.
    """
    if len(wrap) != WRAP_SIZE or not wrap.startswith(FORMAT):
        raise DecryptionError(
            f"wrap is {len(wrap)} bytes of format {wrap[:2].hex()}, want {WRAP_SIZE} of {FORMAT.hex()}"
        )
    salt, commitment, ciphertext = wrap[2:18], wrap[18:50], wrap[50:]
    if not hmac.compare_digest(commitment, _commitment(under, salt)):
        raise DecryptionError("wrap is under another key")
    with memory.allocate(KEY_SIZE) as aead_key, memory.allocate(KEY_SIZE) as opened:
        expand(under, _info(salt, b"key"), aead_key.view)
        try:
            # Writes what it decrypts before it has checked the tag, so not straight to where a key is expected.
            ChaCha20Poly1305(aead_key.view).decrypt_into(_NONCE, ciphertext, aad, opened.view)
        except InvalidTag as exc:
            raise DecryptionError("wrap does not open at this place") from exc
        into[:] = opened.view


def _commitment(under: memoryview, salt: bytes) -> bytes:
    tag = bytearray(32)
    expand(under, _info(salt, b"commitment"), memoryview(tag))
    return bytes(tag)


def _info(salt: bytes, use: bytes) -> bytes:
    return fields(b"shardhold-wrap-v1", salt, use)
