"""All keys of a running cluster that no readable page may hold, found from its store, shares and keepers."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from shamir_mnemonic import Share

from common.keys import shamir
from common.keys.protected import Level, ProtectedMemory
from common.keys.recovery_key import escrow_info, open_sealed
from common.keys.words import combine, encode_share
from nexus.keys import manifest, records
from nexus.keys.keyring import Keyring
from nexus.keys.root_key import RootKey
from nexus.store.protocol import ControlRow
from pilot.custody.card import read_words
from tests.kit.cluster import Cluster
from tests.kit.process_memory import list_regions, read_region


@dataclass(frozen=True, slots=True)
class StoredCluster:
    """What the store reveals to anyone who can read its file."""

    cluster_id: bytes
    rows: tuple[ControlRow, ...]
    shard_set: records.ShardSetRecord

    def body(self, kind: str, name: str) -> bytes:
        """Return the body of one control row."""
        return next(row.body for row in self.rows if (row.kind, row.name) == (kind, name))

    def find_set(self, state: records.SetState) -> records.ShardSetRecord:
        """Return the one set in this state."""
        rows = [records.decode(records.ShardSetRecord, row.body) for row in self.rows if row.kind == records.SHARD_SET]
        (found,) = (record for record in rows if record.state is state)
        return found


def load_stored(cluster: Cluster) -> StoredCluster:
    """Read the store of a running cluster, from this process."""
    with closing(sqlite3.connect(f"file:{cluster.directory.data / 'nexus.db'}?mode=ro", uri=True)) as database:
        (cluster_id,) = database.execute("SELECT cluster_id FROM meta").fetchone()
        rows = tuple(
            ControlRow(*row) for row in database.execute("SELECT kind, name, body, digest FROM control").fetchall()
        )
    return StoredCluster(cluster_id, rows, manifest.find_current_set(cluster_id, rows))


def derive_keys(stored: StoredCluster, recovery_shares: Path) -> dict[str, bytes]:
    """Open the escrow with the share cards of a folder, and derive every key that comes from the root key.

    The set of *stored* says which generation's.
    """
    words = [read_words(card.read_text()) for card in sorted(recovery_shares.iterdir())]
    seed = combine(words[:3])
    generation = stored.shard_set.generation
    escrow = records.decode(records.EscrowRecord, stored.body(records.ESCROW, str(generation))).copies[0].sealed
    keys: dict[str, bytes] = {}
    for number, share in enumerate(words, start=1):
        keys[f"recovery share {number}"] = encode_share(share)
        keys[f"words of share {number}"] = share.encode()
        keys[f"value of share {number}"] = Share.from_mnemonic(share).value
    keys |= {"recovery seed": seed, "root key": open_sealed(escrow, seed, escrow_info(stored.cluster_id, generation))}
    with _opened(stored, keys["root key"]) as (root_key, keyring):
        keys["keyring key"] = bytes(root_key.keyring_key.view)
        keys["control key"] = bytes(root_key._control_key.view)
        keys["request key"] = bytes(root_key._request_key.view)
        keys["outbox key"] = bytes(root_key._outbox_key.view)
        keys |= {f"KEK {number}": bytes(kek.view) for number, kek in keyring._keks.items()}
    return keys


def derive_audit_seed(stored: StoredCluster, root_key: bytes) -> bytes:
    """Derive the seed of the audit key, which OpenSSL keeps in its own memory while it signs, and wipes afterwards."""
    with _opened(stored, root_key) as (opened, keyring), opened._derive(b"audit", keyring.memory) as seed:
        return bytes(seed.view)


def find_shards(pid: int, stored: StoredCluster) -> Iterator[tuple[str, bytes]]:
    """Find the shards in a process's protected pages by their commitments. Root can read those at level 2."""
    known = {member.commitment: member.name for member in stored.shard_set.members}
    for region in list_regions(pid):
        if region.is_protected:
            for _, piece in read_region(pid, region):
                for offset in range(0, len(piece) - shamir.SHARD_SIZE, 64):
                    shard = memoryview(piece)[offset : offset + shamir.SHARD_SIZE]
                    owner = known.get(
                        shamir.commitment(shard, cluster_id=stored.cluster_id, set_id=stored.shard_set.set_id)
                    )
                    if owner is not None:
                        # Its last byte is x, which is not secret.
                        yield f"shard of {owner}", bytes(shard[:-1])


@contextmanager
def _opened(stored: StoredCluster, key: bytes) -> Iterator[tuple[RootKey, Keyring]]:
    memory = ProtectedMemory(highest=Level.LOCKED)
    buffer = memory.allocate(len(key))
    buffer.view[:] = key
    generation = stored.shard_set.generation
    root_key = RootKey(buffer, cluster_id=stored.cluster_id, generation=generation, memory=memory)
    keyring = Keyring(memory)
    record = records.decode(records.KeyringRecord, stored.body(records.KEYRING, str(generation)))
    for number, kek in record.keks.items():
        keyring.open_kek(int(number), kek.wrap, root_key)
    try:
        yield root_key, keyring
    finally:
        keyring.release()
        root_key.release()
