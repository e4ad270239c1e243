"""A cluster as init leaves it: its rows in a real store, its shards in the hands of the test."""

import contextlib
import ctypes
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from common.errors import ProtectionError
from common.forms.chain import Chain, begin_chain, extend_chain
from common.forms.genesis import Genesis
from common.forms.mark import Mark, SignedMark
from common.keys import shamir
from common.keys.protected import SLOT, ProtectedBuffer, ProtectedMemory
from common.keys.recovery_key import derive_public_key
from nexus.keepers.marks import MarkBook
from nexus.keys import manifest, records
from nexus.keys.audit_chain import encode_chain, make_chain_record
from nexus.keys.first_rows import FIRST_KEK, FIRST_TIMELINE, make_first_rows, make_genesis
from nexus.keys.opened import Serving, prove
from nexus.keys.outbox import make_head
from nexus.keys.root_key import RootKey
from nexus.keys.shard_set import Member, ShardSet, draw_set
from nexus.policy.rules import Policy, superuser_policy
from nexus.store.protocol import ControlRow, Meta, Phase, Store, Writer
from nexus.store.sqlite.store import SqliteStore
from tests.kit.patience import at_most
from tests.nexus.played_keepers import PlayedKeeper

TRUST_DOMAIN = "example.org"
NEXUS_NAME = "n1"  # whose audit the cluster begins with
SUPERUSERS = superuser_policy(TRUST_DOMAIN, "/shardhold/pilot/role/ROLE/PERSON")


@dataclass
class FoundedCluster:
    """One root key, its store, and what each keeper has to hold."""

    store: Store
    memory: ProtectedMemory
    cluster_id: bytes
    root_key: bytes  # in clear: it protects nothing
    record: records.ShardSetRecord
    genesis_record: Genesis
    shards: dict[str, bytes]  # by keeper
    links: tuple[bytes, ...] = ()  # of the chain of generations

    @property
    def genesis(self) -> bytes:
        """Fingerprint of the genesis record."""
        return self.genesis_record.fingerprint

    @property
    def chain(self) -> Chain:
        """The chain of generations."""
        return extend_chain(begin_chain(self.genesis_record), self.links)

    def book(self) -> MarkBook:
        """Make an empty book of marks."""
        return MarkBook(self.genesis_record)

    def make_set(self) -> ShardSet:
        """Give the current set with its points, as after a recovery."""
        return ShardSet(self.record, self.record.label(self.cluster_id, self.genesis), self.points())

    def load(self) -> tuple[Meta, list[ControlRow]]:
        """Load meta row and control rows."""
        with self.store.read() as reader:
            return reader.load_meta(), reader.load_controls()

    def protect(self, content: bytes) -> ProtectedBuffer:
        """Put *content* into protected memory."""
        buffer = self.memory.allocate(len(content))
        buffer.view[:] = content
        return buffer

    def make_root_key(self) -> RootKey:
        """Make the root key of this cluster anew; the caller releases it."""
        return RootKey(
            self.protect(self.root_key),
            cluster_id=self.cluster_id,
            generation=self.record.generation,
            memory=self.memory,
        )

    def sign_mark(
        self,
        timeline: int,
        revision: int,
        *,
        control_revision: int = 0,
        set_number: int = 1,
        **more: Any,
    ) -> SignedMark:
        """Sign a rollback mark as the nexus of this cluster does; *more* are other fields of a mark."""
        parts = {"generation": self.chain.generation, "chain_seq": self.chain.seq, "made_at": MADE_AT, **more}
        mark = Mark(self.cluster_id, timeline, revision, control_revision, set_number=set_number, **parts).encode()
        key = self.make_root_key()
        try:
            return SignedMark(mark, key.sign(mark), self.chain.records)
        finally:
            key.release()

    def points(self) -> list[ProtectedBuffer]:
        """Give t shards, as recovery does."""
        return [self.protect(shard) for shard in list(self.shards.values())[: self.record.threshold]]

    def prove(self) -> Serving:
        """Open the store with the true key."""
        meta, rows = self.load()
        return prove(self.protect(self.root_key), self.points(), meta=meta, rows=rows, memory=self.memory)

    def prove_without_points(self) -> Serving:
        """Open the store with the true key, as custodians do."""
        meta, rows = self.load()
        return prove(self.protect(self.root_key), [], meta=meta, rows=rows, memory=self.memory)

    def keepers(self) -> list[PlayedKeeper]:
        """Give every keeper its shard."""
        label = self.record.label(self.cluster_id, self.genesis)
        keepers = [PlayedKeeper(name) for name in self.shards]
        for keeper in keepers:
            keeper.sets[self.record.set_id] = (label, self.shards[keeper.name])
        return keepers


FoundCluster = Callable[..., FoundedCluster]
SealEscrow = Callable[[bytes, bytes, int], bytes]  # root key, cluster id, generation
MADE_AT = 1_700_000_000_000_000  # microseconds
MADE_AT_TIME = datetime.fromtimestamp(MADE_AT // 1_000_000, UTC)
NO_RECOVERY = records.RecoveryKeyRecord(derive_public_key(bytes(32)), 1, ())  # whose shares nobody has


def seal_for_nobody(secret: bytes, cluster_id: bytes, generation: int) -> bytes:
    """Make an escrow that nothing opens."""
    return b"opens for nobody"


def members(count: int) -> list[Member]:
    """Name *count* keepers."""
    return [
        Member(f"keeper-{i}", f"spiffe://{TRUST_DOMAIN}/shardhold/keeper/keeper-{i}", f"keeper-{i}.test:8443")
        for i in range(1, count + 1)
    ]


def found(
    store: Store,
    memory: ProtectedMemory,
    *,
    keepers: int = 5,
    threshold: int = 3,
    policies: Sequence[Policy] = (SUPERUSERS,),
    recovery: records.RecoveryKeyRecord = NO_RECOVERY,
    seal_escrow: SealEscrow = seal_for_nobody,
) -> FoundedCluster:
    """Write the rows of a cluster as `nexus.admin.initialise` does, without its two phases."""
    cluster_id = os.urandom(16)
    secret = os.urandom(32)
    escrow = seal_escrow(secret, cluster_id, 1)
    buffer = memory.allocate(32)
    buffer.view[:] = secret
    root_key = RootKey(buffer, cluster_id=cluster_id, generation=1, memory=memory)
    genesis = make_genesis(root_key, recovery.public_key, escrow)
    record, points = draw_set(
        root_key.view,
        members(keepers),
        threshold=threshold,
        generation=1,
        set_number=1,
        timeline=FIRST_TIMELINE,
        cluster_id=cluster_id,
        memory=memory,
    )
    shard_set = ShardSet(record, record.label(cluster_id, genesis.fingerprint), points)
    shards = {}
    for member in record.members:
        with memory.allocate(shamir.SHARD_SIZE) as shard:
            shard_set.derive_shard(member.x, shard)
            shards[member.name] = bytes(shard.view)
    shard_set.release()
    bodies = make_first_rows(root_key, genesis, escrow, recovery, record, policies, memory, now=MADE_AT_TIME)

    def write(writer: Writer) -> None:
        meta = replace(
            writer.load_meta(),
            phase=Phase.INITIALISED,
            cluster_id=cluster_id,
            timeline=FIRST_TIMELINE,
            last_generation=1,
            last_set_number=1,
            last_kek_id=FIRST_KEK,
            kek_id=FIRST_KEK,
            epoch=1,
        )
        rows = bodies | encode_chain(NEXUS_NAME, make_chain_record(meta.position))
        writer.save_meta(manifest.first_manifest(meta, rows, root_key, writer))
        writer.save_audit_head(make_head(root_key, NEXUS_NAME, 0, 0, bytes(32), revision=0))

    store.write(write)
    root_key.release()
    return FoundedCluster(store, memory, cluster_id, secret, record, genesis, shards)


def open_store(folder: Path) -> SqliteStore:
    """Open the store that tests keep in *folder*."""
    return SqliteStore.open(folder / "nexus.db")


def tamper(folder: Path, sql: str, *parameters: object) -> None:
    """Change the database behind Shardhold's back, as somebody without the root key can."""
    with closing(sqlite3.connect(folder / "nexus.db", timeout=at_most(5))) as connection, connection:
        assert connection.execute(sql, parameters).rowcount == 1, sql


def add_set(folder: Path, cluster: FoundedCluster, *, set_number: int) -> None:
    """Add a row that says it is the current set, with keepers of somebody's own choice and a fitting digest."""
    evil = [msgspec.structs.replace(one, spiffe_id=f"spiffe://{TRUST_DOMAIN}/evil") for one in cluster.record.members]
    record = msgspec.structs.replace(
        cluster.record, set_id=bytes(16), set_number=set_number, members=tuple(evil), state=records.SetState.CURRENT
    )
    body = records.encode(record)
    digest = manifest.row_digest(cluster.cluster_id, records.SHARD_SET, "added", body)
    tamper(folder, "INSERT INTO control VALUES (?, ?, ?, ?)", records.SHARD_SET, "added", body, digest)


def is_wiped(memory: ProtectedMemory) -> bool:
    """Whether every buffer was given back, and every byte is zero."""
    (first, last), *_ = memory.ranges
    memory.allocate(last - first).release()  # raises when anything is still held
    return ctypes.string_at(first, last - first) == bytes(last - first)


def count_free(memory: ProtectedMemory) -> int:
    """Count the slots that nothing holds. Only where no other thread allocates."""
    taken: list[ProtectedBuffer] = []
    with contextlib.suppress(ProtectionError):
        while True:
            taken.append(memory.allocate(SLOT))
    for buffer in taken:
        buffer.release()
    return len(taken)
