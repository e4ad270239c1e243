"""ChaCha20-Poly1305 on keys in protected memory, leaving no copy of the key elsewhere.

Measured by scanning /proc/PID/mem: on some processors (seen with AVX2 and without AVX-512) OpenSSL's ChaCha20 leaves
its key on the C stack. So each call here is followed by one of the same shape under a key that protects nothing, which
overwrites that place.
"""

import functools

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

TAG_SIZE = 16  # bytes that a ciphertext is longer than its plaintext

# It only ever encrypts zeros, so its key and nonce may repeat.
_THROW_AWAY = ChaCha20Poly1305(bytes(32))
_NONCE = bytes(12)


def encrypt_once(
    key: memoryview, nonce: bytes | memoryview, plaintext: memoryview, aad: bytes, into: bytearray | memoryview
) -> None:
    """Encrypt *plaintext* into *into*, 16 bytes longer. Safe only for a key that has encrypted nothing before."""
    ChaCha20Poly1305(key).encrypt_into(nonce, plaintext, aad, into)
    _THROW_AWAY.encrypt_into(_NONCE, bytes(len(plaintext)), b"", bytearray(len(into)))


def decrypt_once(
    key: memoryview, nonce: bytes | memoryview, ciphertext: bytes | memoryview, aad: bytes, into: memoryview
) -> None:
    """Decrypt *ciphertext* into *into*, which is 16 bytes shorter, and which may hold anything after a failure.

    Raises:
        InvalidTag: The ciphertext or *aad* was changed, or the key is the wrong one.
    """
    try:
        ChaCha20Poly1305(key).decrypt_into(nonce, ciphertext, aad, into)
    finally:
        _THROW_AWAY.decrypt_into(_NONCE, _encrypt_zeros(len(into)), b"", bytearray(len(into)))


@functools.lru_cache
def _encrypt_zeros(size: int) -> bytes:
    return _THROW_AWAY.encrypt(_NONCE, bytes(size), None)
