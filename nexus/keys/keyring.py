"""The KEKs of a cluster: random, numbered, in protected memory; stored wrapped under the keyring key."""

import struct

from common.errors import CorruptRowError, WrongStateError
from common.forms.codec import fields, u32, u64
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from nexus.keys.root_key import RootKey
from nexus.keys.wrap import KEY_SIZE, Scratch, unwrap_key, wrap_key

_DEK_PURPOSE, _KEK_SIZE = fields(b"shardhold-dek-v1"), u32(4)
_pack = struct.Struct(">I").pack


class Keyring:
    """Wraps and opens DEKs. Owns its buffers; `release` wipes them."""

    def __init__(self, memory: ProtectedMemory) -> None:
        self.memory = memory
        self.scratch = Scratch(memory)  # for DEKs
        self.current_id = 0
        self._keks: dict[int, ProtectedBuffer] = {}

    def make_kek(self, kek_id: int, root_key: RootKey) -> bytes:
        """Make a new KEK, current from here on, and return it wrapped under *root_key*."""
        kek = self.memory.allocate(KEY_SIZE)
        kek.fill_random()
        self._keks[kek_id] = kek
        self.current_id = kek_id
        return self.wrap_kek(kek_id, root_key)

    def take_current(self, other: "Keyring") -> None:
        """Take over the current KEK of *other*, which is current here from then on; *other* is empty afterwards."""
        kek = other._keks.pop(other.current_id)
        other.release()
        self._keks[other.current_id] = kek
        self.current_id = other.current_id

    def wrap_kek(self, kek_id: int, root_key: RootKey) -> bytes:
        """Return a KEK of this keyring wrapped under *root_key*."""
        under, aad = root_key.keyring_key.view, _kek_aad(root_key, kek_id)
        return wrap_key(self._keks[kek_id].view, under=under, aad=aad, memory=self.memory)

    def list_keks(self) -> list[int]:
        """Return the numbers of the KEKs, in order."""
        return sorted(self._keks)

    def open_kek(self, kek_id: int, wrap: bytes, root_key: RootKey) -> None:
        """Take in a stored KEK.

        Raises:
            DecryptionError: The wrap is not of this KEK, cluster and generation.
        """
        kek = self.memory.allocate(KEY_SIZE)
        try:
            under = root_key.keyring_key.view
            unwrap_key(wrap, under=under, aad=_kek_aad(root_key, kek_id), memory=self.memory, into=kek.view)
        except BaseException:
            kek.release()
            raise
        self._keks[kek_id] = kek

    def wrap_dek(self, dek: memoryview, kek_id: int, aad: bytes) -> bytes:
        """Wrap a DEK under KEK *kek_id*; *aad* names its place and is joined by the KEK's number."""
        return wrap_key(dek, under=self._keks[kek_id].view, aad=bind_kek(aad, kek_id), memory=self.scratch)

    def unwrap_dek(self, wrap: bytes, kek_id: int, aad: bytes, *, into: memoryview) -> None:
        """Open a DEK that was wrapped under KEK *kek_id*.

        Raises:
            CorruptRowError: There is no such KEK.
            DecryptionError: The wrap does not open at this place.
        """
        unwrap_key(wrap, under=self.find_kek(kek_id), aad=bind_kek(aad, kek_id), memory=self.scratch, into=into)

    def find_kek(self, kek_id: int) -> memoryview:
        """Return a KEK, 32 bytes, valid as long as the keyring is borrowed.

        Raises:
            CorruptRowError: There is no such KEK.
        """
        kek = self._keks.get(kek_id)
        if kek is None:
            raise CorruptRowError(f"row names KEK {kek_id}, which is not in the keyring")
        return kek.view

    def forget_kek(self, kek_id: int) -> None:
        """Wipe a KEK, which no row depends on and which nobody uses any more; without it nothing happens.

        Raises:
            WrongStateError: It is the current one.
        """
        if kek_id == self.current_id:
            raise WrongStateError(f"KEK {kek_id} is current")
        if (kek := self._keks.pop(kek_id, None)) is not None:
            kek.release()

    def release(self) -> None:
        """Wipe all KEKs."""
        for kek in list(self._keks.values()):
            kek.release()
        self._keks.clear()
        self.scratch.release()


def _kek_aad(root_key: RootKey, kek_id: int) -> bytes:
    return fields(b"shardhold-kek-v1", root_key.cluster_id, u64(root_key.generation), u32(kek_id))


def bind_kek(place: bytes, kek_id: int) -> bytes:
    """Encode the associated data of a DEK's wrap: its *place*, as `nexus.keys.envelope` binds it, and the KEK."""
    # By hand, as in `nexus.keys.envelope`.
    return b"".join((_DEK_PURPOSE, _pack(len(place)), place, _KEK_SIZE, _pack(kek_id)))
