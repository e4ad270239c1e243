"""Wrap a 32-byte key under another one.

    wrap = format1 ‖ algorithm1 ‖ salt16 ‖ commitment32 ‖ ciphertext48

The wrapping key is only ever HKDF-Expand input: with a new salt for each wrap it gives an AEAD key that is used once,
so there is no limit of nonces, and a commitment tag, so that a wrap opens under one key only (ChaCha20-Poly1305 alone
does not commit).
"""

import hmac
import os
from collections import deque
from types import TracebackType
from typing import Self

from cryptography.exceptions import InvalidTag

from common.errors import DecryptionError
from common.forms.codec import fields, u32
from common.keys.aead import TAG_SIZE, decrypt_once, encrypt_once
from common.keys.derive import expand
from common.keys.protected import ProtectedBuffer, ProtectedMemory

FORMAT = b"\x01\x01"  # format 1, ChaCha20-Poly1305
KEY_SIZE = 32
SALT_SIZE = 16
WRAP_SIZE = len(FORMAT) + SALT_SIZE + 32 + KEY_SIZE + TAG_SIZE

# Safe because each AEAD key is derived from a random salt of its own and encrypts once. Unsafe as soon as a salt is
# reused.
NONCE = bytes(12)

_PURPOSE = fields(b"shardhold-wrap-v1") + u32(SALT_SIZE)  # and the salt follows
USE_AS_KEY, USE_AS_COMMITMENT = fields(b"key"), fields(b"commitment")
_ZEROS = bytes(2 * KEY_SIZE)


class Scratch:
    """Protected memory for keys that live for one call. Thread-safe.

    A buffer is wiped after the call and kept for the next one: to make one costs as much as all cryptography of a wrap.
    """

    def __init__(self, memory: ProtectedMemory) -> None:
        self._memory = memory
        self._idle: deque[ProtectedBuffer] = deque()

    def allocate(self, size: int) -> "Loan":
        """Lend *size* bytes, at most 64, all zero, to a `with` block."""
        return Loan(self, size)

    def take(self) -> ProtectedBuffer:
        try:
            return self._idle.pop()
        except IndexError:
            return self._memory.allocate(2 * KEY_SIZE)

    def put_back(self, buffer: ProtectedBuffer) -> None:
        buffer.view[:] = _ZEROS
        self._idle.append(buffer)

    def release(self) -> None:
        """Give back what is not lent now."""
        while self._idle:
            self._idle.pop().release()


class Loan:
    """A buffer of a `Scratch`, for one block; *view* must not outlive it."""

    __slots__ = ("_buffer", "_scratch", "_size", "view")

    def __init__(self, scratch: Scratch, size: int) -> None:
        self._scratch = scratch
        self._size = size
        self._buffer: ProtectedBuffer
        self.view: memoryview

    def __enter__(self) -> Self:
        self._buffer = self._scratch.take()
        self.view = self._buffer.view[: self._size]
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._scratch.put_back(self._buffer)


def wrap_key(key: memoryview, *, under: memoryview, aad: bytes, memory: ProtectedMemory | Scratch) -> bytes:
    """Wrap *key*, 32 bytes, under *under*, 32 bytes; return 98 bytes. *aad* binds the wrap to its place."""
    salt = os.urandom(SALT_SIZE)
    commitment = make_commitment(under, salt)
    ciphertext = bytearray(KEY_SIZE + TAG_SIZE)
    with memory.allocate(KEY_SIZE) as aead_key:
        expand(under, describe_use(salt, USE_AS_KEY), aead_key.view)
        encrypt_once(aead_key.view, NONCE, key, aad, ciphertext)
    return FORMAT + salt + commitment + bytes(ciphertext)


def unwrap_key(
    wrap: bytes, *, under: memoryview, aad: bytes, memory: ProtectedMemory | Scratch, into: memoryview
) -> None:
    """Open *wrap* into *into*, 32 bytes of protected memory, unchanged on failure.

    Raises:
        DecryptionError: Not a wrap, not under this key, or not from this place.
    """
    if len(wrap) != WRAP_SIZE or not wrap.startswith(FORMAT):
        raise DecryptionError(
            f"wrap is {len(wrap)} bytes of format {wrap[:2].hex()}, want {WRAP_SIZE} of {FORMAT.hex()}"
        )
    salt, commitment, ciphertext = wrap[2:18], wrap[18:50], wrap[50:]
    if not hmac.compare_digest(commitment, make_commitment(under, salt)):
        raise DecryptionError("wrap is under another key")
    with memory.allocate(2 * KEY_SIZE) as scratch:
        aead_key, opened = scratch.view[:KEY_SIZE], scratch.view[KEY_SIZE:]
        expand(under, describe_use(salt, USE_AS_KEY), aead_key)
        try:
            # Writes what it decrypts before it has checked the tag, so not straight to where a key is expected.
            decrypt_once(aead_key, NONCE, ciphertext, aad, opened)
        except InvalidTag as exc:
            raise DecryptionError("wrap does not open at this place") from exc
        into[:] = opened


def make_commitment(under: memoryview, salt: bytes) -> bytes:
    """Return the 32 bytes that bind a wrap to the key it is under."""
    # The first block of HKDF-Expand, as `expand` makes it, without the care that a key needs: this one is public.
    return hmac.digest(under, describe_use(salt, USE_AS_COMMITMENT) + b"\x01", "sha256")


def is_committed(wrap: bytes, under: memoryview) -> bool:
    """Whether *wrap* says that it is under this key, 32 bytes; no other key opens it then."""
    salt, commitment = wrap[len(FORMAT) : len(FORMAT) + SALT_SIZE], wrap[len(FORMAT) + SALT_SIZE :][:32]
    return hmac.compare_digest(commitment, make_commitment(under, salt))


def describe_use(salt: bytes, use: bytes) -> bytes:
    """Return what HKDF-Expand gets beside the wrapping key: `fields(b"shardhold-wrap-v1", salt, …)`.

    *use* is one of `USE_AS_KEY` and `USE_AS_COMMITMENT`. Put together by hand: `fields` costs as much as the HMAC.
    """
    return _PURPOSE + salt + use
