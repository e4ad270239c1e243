"""What somebody does who has keys of before and the files of a store: they try every place, whatever the tables say.

A wrap names its key by a commitment, so no place needs to be known to tell whether a key opens one.
"""

import base64
import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import DecryptionError
from common.keys.aead import TAG_SIZE
from common.keys.protected import ProtectedMemory
from common.keys.recovery_key import OVERHEAD, escrow_info, open_sealed
from nexus.keys import envelope, wrap
from nexus.keys.envelope import Place
from nexus.keys.keyring import Keyring
from nexus.keys.root_key import ROOT_KEY_SIZE, RootKey
from nexus.store.protocol import Reader

_COMMITMENT = slice(len(wrap.FORMAT) + wrap.SALT_SIZE, -(wrap.KEY_SIZE + TAG_SIZE))
_SALT = slice(len(wrap.FORMAT), len(wrap.FORMAT) + wrap.SALT_SIZE)
_LETTER = rb"[A-Za-z0-9+/]"
# A lookahead, so that places may overlap.
_WRAP = re.compile(b"(?=(" + re.escape(wrap.FORMAT) + b".{%d}))" % (wrap.WRAP_SIZE - len(wrap.FORMAT)), re.DOTALL)
_TEXT_OF_WRAP = re.compile(b"(?=(AQ[E-H]" + _LETTER + b"{%d}=))" % (4 * (wrap.WRAP_SIZE // 3)))
_TEXT_OF_ESCROW = re.compile(b"(?=(" + _LETTER + b"{%d}==))" % ((ROOT_KEY_SIZE + OVERHEAD) // 3 * 4 + 2))
_PIECE = 64  # bytes of a value that spans several pages; the key of each byte of it is known to whoever has the DEK


@dataclass(frozen=True)
class Dek:
    """The key of one version, in clear, and what its value is bound to."""

    key: bytes
    aad: bytes
    value: bytes  # as it was stored


@dataclass(frozen=True)
class Loot:
    """What somebody has who once had a root key and a copy of its store, in clear."""

    wrapping: Mapping[str, bytes]  # keys that others are wrapped under, by name
    deks: Mapping[str, Dek] = field(default_factory=dict)  # by path and version

    @classmethod
    def take_keys(cls, root_key: RootKey, keyring: Keyring) -> "Loot":
        """Copy the keys of one generation, none of a version."""
        keks = {f"KEK {number}": bytes(keyring.find_kek(number)) for number in keyring.list_keks()}
        return cls({f"keyring key {root_key.generation}": bytes(root_key.keyring_key.view), **keks})

    @classmethod
    def take(cls, root_key: RootKey, keyring: Keyring, reader: Reader, memory: ProtectedMemory) -> "Loot":
        """Copy the keys of one generation, and those of all versions in its store."""
        deks = {}
        for row in reader.scan_versions(limit=10_000):
            aad = Place(root_key.cluster_id, row.path, row.incarnation, row.version).bind(row.dek_id)
            value = reader.load_value(row) or b""
            with memory.allocate(wrap.KEY_SIZE) as dek:
                keyring.unwrap_dek(row.wrapped_dek, row.kek_id, aad, into=dek.view)
                deks[f"{row.path} {row.version}"] = Dek(bytes(dek.view), aad, value)
        return cls(cls.take_keys(root_key, keyring).wrapping, deks)


def read_files(folder: Path) -> dict[str, bytes]:
    """Read all that is in the folder of a store: database, WAL, SHM, copies, and whatever else there is."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def find_wraps(files: Mapping[str, bytes], loot: Loot) -> list[str]:
    """Name the key and the file of each place that is a wrap under one of the keys; places in the WAL repeat."""
    found = []
    for file, content in files.items():
        for place in list_wraps(content):
            for name, key in loot.wrapping.items():
                if hmac.compare_digest(wrap.make_commitment(memoryview(key), place[_SALT]), place[_COMMITMENT]):
                    found.append(f"{name} opens a wrap in {file}")
    return found


def list_wraps(content: bytes) -> Iterator[bytes]:
    """Yield every 98 bytes that begin as a wrap does, as they are or as JSON has them."""
    for match in _WRAP.finditer(content):
        yield match[1]
    for match in _TEXT_OF_WRAP.finditer(content):
        yield base64.b64decode(match[1])


def find_values(files: Mapping[str, bytes], loot: Loot) -> set[str]:
    """Name the version and the file of each place that one of the DEKs opens, a value or a piece of one."""
    found = set()
    for file, content in files.items():
        for name, dek in loot.deks.items():
            if _has_value(content, dek) or _has_piece(content, dek):
                found.add(f"the DEK of {name} opens a value in {file}")
    return found


def _has_value(content: bytes, dek: Dek) -> bool:
    """Whether the DEK opens a value of this size that stands in one piece, whatever it is."""
    for match in re.finditer(re.escape(envelope.FORMAT), content):
        try:
            AESGCM(dek.key).decrypt(bytes(12), content[match.end() : match.start() + len(dek.value)], dek.aad)
        except (InvalidTag, ValueError):
            continue
        return True
    return False


def _has_piece(content: bytes, dek: Dek) -> bool:
    """Whether a piece of the value is anywhere."""
    pieces = (dek.value[start : start + _PIECE] for start in range(0, len(dek.value) - _PIECE + 1, _PIECE))
    return any(piece in content for piece in pieces)


def open_escrows(files: Mapping[str, bytes], seed: bytes, cluster_id: bytes, *, generations: int) -> set[bytes]:
    """Return the root keys of the first *generations* that custodians get out of any place."""
    opened = set()
    for content in files.values():
        for match in _TEXT_OF_ESCROW.finditer(content):
            sealed = base64.b64decode(match[1])
            for generation in range(1, generations + 1):
                try:
                    opened.add(open_sealed(sealed, seed, escrow_info(cluster_id, generation)))
                except DecryptionError:
                    continue
    return opened
