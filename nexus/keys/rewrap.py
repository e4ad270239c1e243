"""Bring versions to the current KEK: the cryptography of the keyring job, which it does outside any change.

1. What is made is opened again and compared before anybody stores it.
2. A version that does not open raises `DecryptionError` or `CorruptRowError`. If what was just made does not open, the
   machine is at fault and not the row: that is a bare `IntegrityError`.
3. Lean: DEKs and their copies are in one protected buffer for a whole batch. The keys of their wraps are not: each of
   them opens a single DEK, so they are outside the promise of protected memory. The end of a batch overwrites what the
   last calls left on the C stack. Salts come from the kernel for many wraps at once.
"""

import hmac
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from common.errors import CorruptRowError, DecryptionError, IntegrityError
from common.keys.aead import TAG_SIZE
from common.keys.protected import random_into, wipe_bytes
from nexus.keys import envelope
from nexus.keys.envelope import DEK_ID_SIZE, bind_place
from nexus.keys.keyring import Keyring, bind_kek
from nexus.keys.wrap import (
    FORMAT,
    KEY_SIZE,
    NONCE,
    SALT_SIZE,
    USE_AS_COMMITMENT,
    USE_AS_KEY,
    WRAP_SIZE,
    describe_use,
    unwrap_key,
    wrap_key,
)
from nexus.store.rewrapping import Reseal, Rewrap, WrappedRow

_KEY_BLOCK, _COMMITMENT_BLOCK = USE_AS_KEY + b"\x01", USE_AS_COMMITMENT + b"\x01"  # the first of HKDF-Expand
_SALT_AT: Final = len(FORMAT)
_COMMITMENT_AT: Final = _SALT_AT + SALT_SIZE
_CIPHERTEXT_AT: Final = WRAP_SIZE - KEY_SIZE - TAG_SIZE
_SALTS: Final = 64  # that one call of the kernel gives: it takes as long as the cryptography of a few


class Rewrapper:
    """Used by one thread, in a `with` block of one batch, while the keyring is borrowed."""

    def __init__(self, keyring: Keyring, cluster_id: bytes) -> None:
        self._keyring = keyring
        self._cluster_id = cluster_id
        self._kek_id = keyring.current_id
        self._buffer = keyring.memory.allocate(2 * KEY_SIZE)
        self._dek, self._again = self._buffer.view[:KEY_SIZE], self._buffer.view[KEY_SIZE:]
        self._salts = _draw_salts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """Wipe the buffer, and overwrite what the calls left on the stack (rule 3)."""
        try:
            self._buffer.view[:] = bytes(2 * KEY_SIZE)
            zeros = wrap_key(self._dek, under=self._dek, aad=b"", memory=self._keyring.scratch)
            unwrap_key(zeros, under=self._dek, aad=b"", memory=self._keyring.scratch, into=self._again)
        finally:
            for view in (self._dek, self._again):
                view.release()
            self._buffer.release()

    def rewrap(self, row: WrappedRow) -> Rewrap:
        """Wrap the DEK of a version under the current KEK.

        Raises:
            CorruptRowError, DecryptionError: The version does not open (rule 2).
            IntegrityError: What was made does not.
        """
        place = self._bind(row, row.dek_id)
        self._open_row(row, place)
        return Rewrap(row, self._kek_id, self._wrap(place))

    def reseal(self, row: WrappedRow, value: bytes) -> Reseal:
        """Seal a version, whose ciphertext is *value*, under a new DEK; raises as `rewrap`."""
        old = self._bind(row, row.dek_id)
        self._open_row(row, old)
        body = _decrypt(self._dek, value, old)
        try:
            dek_id = os.urandom(DEK_ID_SIZE)
            new = self._bind(row, dek_id)
            random_into(self._dek)
            # Safe with a fixed nonce for the reason that `nexus.keys.envelope` gives: this DEK seals nothing else.
            sealed = envelope.FORMAT + AESGCM(self._dek).encrypt(NONCE, body, new)
            wrapped = self._wrap(new)
            self._compare(sealed, new, body)
        finally:
            wipe_bytes(body)
        return Reseal(row, self._kek_id, dek_id, wrapped, sealed)

    def _bind(self, row: WrappedRow, dek_id: bytes) -> bytes:
        if row.version < 0:
            raise CorruptRowError("row has a version that nothing comes to by counting")
        try:
            return bind_place(self._cluster_id, row.path, row.incarnation, row.version, dek_id)
        except UnicodeEncodeError as exc:  # the path has surrogates
            raise CorruptRowError("row has a path that does not decode") from exc

    def _open_row(self, row: WrappedRow, place: bytes) -> None:
        under = self._keyring.find_kek(row.kek_id)
        self._open(row.wrapped_dek, under, bind_kek(place, row.kek_id), self._dek)

    def _open(self, wrap: bytes, under: memoryview, aad: bytes, into: memoryview) -> None:
        """As `nexus.keys.wrap.unwrap_key`, but *into* may hold anything after a failure."""
        if len(wrap) != WRAP_SIZE or not wrap.startswith(FORMAT):
            raise DecryptionError(f"wrap is {len(wrap)} bytes of format {wrap[:2].hex()}, want {WRAP_SIZE}")
        key, commitment = _derive(under, wrap[_SALT_AT:_COMMITMENT_AT])
        if not hmac.compare_digest(wrap[_COMMITMENT_AT:_CIPHERTEXT_AT], commitment):
            raise DecryptionError("wrap is under another key")
        try:
            ChaCha20Poly1305(key).decrypt_into(NONCE, wrap[_CIPHERTEXT_AT:], aad, into)
        except InvalidTag as exc:
            raise DecryptionError("wrap does not open at this place") from exc

    def _wrap(self, place: bytes) -> bytes:
        """Wrap the DEK that is in the buffer under the current KEK, open the wrap again, and compare (rule 1)."""
        under, salt = self._keyring.find_kek(self._kek_id), next(self._salts)
        key, commitment = _derive(under, salt)
        aad = bind_kek(place, self._kek_id)
        # Safe with a fixed nonce: the key of a wrap comes from a salt of its own.
        wrap = FORMAT + salt + commitment + ChaCha20Poly1305(key).encrypt(NONCE, self._dek, aad)
        try:
            self._open(wrap, self._keyring.find_kek(self._kek_id), aad, self._again)
        except DecryptionError as exc:
            raise IntegrityError("a new wrap does not open") from exc
        if not hmac.compare_digest(self._again, self._dek):
            raise IntegrityError("a new wrap opens to another key")
        return wrap

    def _compare(self, sealed: bytes, aad: bytes, body: bytearray) -> None:
        """Open a new value with the DEK that its wrap gave back, and compare (rule 1)."""
        try:
            again = _decrypt(self._again, sealed, aad)
        except DecryptionError as exc:
            raise IntegrityError("a new value does not open") from exc
        is_same = hmac.compare_digest(again, body)
        wipe_bytes(again)
        if not is_same:
            raise IntegrityError("a new value opens to another one")


def _draw_salts() -> Iterator[bytes]:
    while True:
        drawn = os.urandom(_SALTS * SALT_SIZE)
        for at in range(0, len(drawn), SALT_SIZE):
            yield drawn[at : at + SALT_SIZE]


def _derive(under: memoryview, salt: bytes) -> tuple[bytes, bytes]:
    """Return key and commitment of a wrap, as `nexus.keys.wrap` makes them, without the care for the key (rule 3)."""
    info = describe_use(salt, b"")
    return hmac.digest(under, info + _KEY_BLOCK, "sha256"), hmac.digest(under, info + _COMMITMENT_BLOCK, "sha256")


def _decrypt(dek: memoryview, value: bytes, aad: bytes) -> bytearray:
    """Open *value*; the caller wipes what it gets."""
    size = len(value) - len(envelope.FORMAT) - TAG_SIZE
    if size < 0 or not value.startswith(envelope.FORMAT):
        raise DecryptionError(f"value is {len(value)} bytes of format {value[:2].hex()}")
    body = bytearray(size)
    try:
        AESGCM(dek).decrypt_into(NONCE, memoryview(value)[len(envelope.FORMAT) :], aad, body)
    except InvalidTag as exc:
        wipe_bytes(body)
        raise DecryptionError("value does not open at this place") from exc
    return body
