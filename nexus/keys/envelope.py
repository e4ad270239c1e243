"""Seal and open the value of one secret version: AES-256-GCM under a DEK of its own, the DEK wrapped under a KEK.

    value = format1 ‖ algorithm1 ‖ ciphertext

Both are bound to cluster, path, incarnation, version and DEK: a row copied elsewhere does not open. The value is not
bound to the KEK, so that a re-wrap leaves it alone.
"""

import os
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import DecryptionError
from common.forms.codec import fields
from common.keys.protected import random_into
from nexus.keys.keyring import Keyring
from nexus.keys.wrap import KEY_SIZE

FORMAT = b"\x01\x01"  # format 1, AES-256-GCM
DEK_ID_SIZE = 16

# Safe because a DEK is random, made for one version, and encrypts once. Unsafe as soon as a DEK seals a second value.
_NONCE = bytes(12)

_PURPOSE = fields(b"shardhold-value-v1")
_pack_size = struct.Struct(">I").pack
_pack_version = struct.Struct(">IQI").pack  # with its own size before it, and that of the DEK's id after it


@dataclass(frozen=True, slots=True)
class Place:
    """Where a version lives."""

    cluster_id: bytes
    path: str
    incarnation: bytes
    version: int

    def bind(self, dek_id: bytes) -> bytes:
        """Encode the place together with the DEK's id, as associated data."""
        return bind_place(self.cluster_id, self.path, self.incarnation, self.version, dek_id)


@dataclass(frozen=True, slots=True)
class SealedValue:
    kek_id: int
    dek_id: bytes  # 16 bytes
    wrapped_dek: bytes
    value: bytes


def bind_place(cluster_id: bytes, path: str, incarnation: bytes, version: int, dek_id: bytes) -> bytes:
    """Encode a place as `Place.bind` does; *version* is from 0 to 2**64 - 1."""
    # `fields` of the five, put together by hand: it takes twice as long, and every call waits for it.
    name = path.encode()
    size, name_size, incarnation_size = _pack_size(len(cluster_id)), _pack_size(len(name)), _pack_size(len(incarnation))
    version_part = _pack_version(8, version, len(dek_id))
    return b"".join((_PURPOSE, size, cluster_id, name_size, name, incarnation_size, incarnation, version_part, dek_id))


def seal_value(body: bytes, place: Place, keyring: Keyring) -> SealedValue:
    """Encrypt *body* under a new DEK, wrapped under the current KEK."""
    dek_id, kek_id = os.urandom(DEK_ID_SIZE), keyring.current_id
    aad = place.bind(dek_id)
    with keyring.scratch.allocate(KEY_SIZE) as dek:
        random_into(dek.view)
        ciphertext = AESGCM(dek.view).encrypt(_NONCE, body, aad)
        wrapped = keyring.wrap_dek(dek.view, kek_id, aad)
    return SealedValue(kek_id, dek_id, wrapped, FORMAT + ciphertext)


def open_value(sealed: SealedValue, place: Place, keyring: Keyring) -> bytes:
    """Decrypt what `seal_value` made at the same place.

    Raises:
        CorruptRowError: The row names a KEK that is not in the keyring.
        DecryptionError: DEK or value do not open.
    """
    if not sealed.value.startswith(FORMAT):
        raise DecryptionError(f"value has format {sealed.value[:2].hex()}, want {FORMAT.hex()}")
    aad = place.bind(sealed.dek_id)
    with keyring.scratch.allocate(KEY_SIZE) as dek:
        keyring.unwrap_dek(sealed.wrapped_dek, sealed.kek_id, aad, into=dek.view)
        try:
            return AESGCM(dek.view).decrypt(_NONCE, memoryview(sealed.value)[len(FORMAT) :], aad)
        except InvalidTag as exc:
            raise DecryptionError("value does not open at this place") from exc
