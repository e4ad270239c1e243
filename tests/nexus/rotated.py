"""A cluster whose root key is followed by another one: the rows that are staged before, and what a flip leaves."""

import os
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.forms.chain import Link
from common.forms.mark import Mark, SignedMark
from common.keys import shamir
from nexus.keys import manifest, records
from nexus.keys.floor import Standing
from nexus.keys.old_form import make_first_escrow
from nexus.keys.opened import Serving, make_canary
from nexus.keys.records import GenerationState, KekState, Key, SetState
from nexus.keys.root_key import RootKey
from nexus.keys.shard_set import Member, ShardSet, draw_set
from nexus.store.protocol import Meta, Writer
from tests.nexus.cluster import MADE_AT, NO_RECOVERY, FoundedCluster, SealEscrow, seal_for_nobody


@dataclass(frozen=True)
class Successor:
    """A root key that is to follow, with its rows as a flip leaves them."""

    root_key: RootKey
    secret: bytes
    record: records.ShardSetRecord
    shards: dict[str, bytes]  # by keeper
    escrow: records.EscrowRecord
    recovery: records.RecoveryKeyRecord
    bodies: dict[Key, bytes]
    kek_id: int

    @property
    def generation(self) -> str:
        """Name of its rows."""
        return str(self.root_key.generation)


def stage(cluster: FoundedCluster) -> None:
    """Write the rows of the next generation beside those of the current one, as an operation does before its flip."""
    serving = cluster.prove_without_points()
    successor = make_successor(cluster, serving, NO_RECOVERY, seal_for_nobody)
    pending = {
        (records.GENERATION, successor.generation): records.GenerationRecord(
            GenerationState.PENDING, successor.root_key.kcv
        ),
        (records.SHARD_SET, str(successor.record.set_number)): records.replace_state(
            successor.record, SetState.PENDING
        ),
    }
    put = successor.bodies | {key: records.encode(record) for key, record in pending.items()}
    floor = serving.floor
    cluster.store.write(lambda writer: manifest.change(writer, serving.root_key, floor, put=put), alone=True)
    successor.root_key.release()
    serving.release()


def rotate(
    cluster: FoundedCluster,
    *,
    recovery: records.RecoveryKeyRecord = NO_RECOVERY,
    seal_escrow: SealEscrow = seal_for_nobody,
) -> FoundedCluster:
    """Write what a flip leaves, and return the cluster with its new root key; *cluster* stays what it was."""
    serving = cluster.prove_without_points()
    successor = make_successor(cluster, serving, recovery, seal_escrow)
    link, _ = cluster.store.write(lambda writer: flip(writer, cluster, serving, successor), alone=True)
    successor.root_key.release()
    serving.release()
    return follow(cluster, successor, link)


def follow(cluster: FoundedCluster, successor: Successor, link: bytes) -> FoundedCluster:
    """Return the cluster with its new root key; *cluster* stays what it was."""
    return replace(
        cluster,
        root_key=successor.secret,
        record=successor.record,
        shards=successor.shards,
        links=(*cluster.links, link),
    )


def flip(writer: Writer, cluster: FoundedCluster, serving: Serving, successor: Successor) -> tuple[bytes, Standing]:
    """Write what a flip leaves, within the change of *writer*; return the new link, and where the store stands."""
    meta = writer.load_meta()
    old = manifest.verify(meta, writer.load_controls(), serving.root_key)
    record = _make_link(writer, cluster, successor, meta).sign(serving.root_key.sign)
    before = serving.shard_set.record
    was = records.decode(records.GenerationRecord, old.need(records.GENERATION, str(before.generation)))
    put = {
        (records.GENERATION, str(before.generation)): records.GenerationRecord(GenerationState.DECRYPT_ONLY, was.kcv),
        (records.SHARD_SET, str(before.set_number)): records.replace_state(before, SetState.DEAD),
        (records.LINK, str(len(cluster.links) + 1)): records.LinkRecord(record),
        records.RECOVERY_KEY: successor.recovery,
    }
    bodies = successor.bodies | {key: records.encode(one) for key, one in put.items()}

    def edit(meta: Meta) -> Meta:
        return replace(
            meta,
            last_generation=successor.root_key.generation,
            last_set_number=successor.record.set_number,
            last_kek_id=successor.kek_id,
            kek_id=successor.kek_id,
        )

    root_key, floor = serving.root_key, serving.floor
    standing = manifest.change(writer, root_key, floor, put=bodies, edit=edit, successor=successor.root_key)
    return record, standing


def _make_link(writer: Writer, cluster: FoundedCluster, successor: Successor, meta: Meta) -> Link:
    chain = cluster.chain
    return Link(
        cluster.cluster_id,
        chain.seq + 1,
        before=chain.digest,
        timeline=meta.timeline,
        revision=writer.revision,
        control_revision=meta.control_revision + 1,
        generation=successor.root_key.generation,
        kcv=successor.root_key.kcv,
        audit_public_key=successor.root_key.public_key,
        recovery_digest=successor.escrow.copies[0].recipient,
        escrow_digest=successor.escrow.digest,
    )


def make_successor(
    cluster: FoundedCluster,
    serving: Serving,
    recovery: records.RecoveryKeyRecord = NO_RECOVERY,
    seal_escrow: SealEscrow = seal_for_nobody,
) -> Successor:
    """Make a root key that is to follow that of *serving*; the caller releases it."""
    meta, memory = cluster.load()[0], cluster.memory
    number, secret = meta.last_generation + 1, os.urandom(32)
    root_key = RootKey(cluster.protect(secret), cluster_id=cluster.cluster_id, generation=number, memory=memory)
    old, keyring, kek_id = serving.shard_set.record, serving.keyring, meta.last_kek_id + 1
    known = {name: keyring.wrap_kek(name, root_key) for name in keyring.list_keks()}
    keks = {str(name): records.KekRecord(wrap, KekState.OLD, old.generation) for name, wrap in known.items()}
    keks[str(kek_id)] = records.KekRecord(keyring.make_kek(kek_id, root_key), KekState.CURRENT, number)
    record, points = draw_set(
        root_key.view,
        [Member(member.name, member.spiffe_id, member.address) for member in old.members],
        threshold=old.threshold,
        generation=number,
        set_number=meta.last_set_number + 1,
        timeline=meta.timeline,
        cluster_id=cluster.cluster_id,
        memory=memory,
    )
    shard_set = ShardSet(record, record.label(cluster.cluster_id, cluster.genesis), points)
    shards = {}
    for member in record.members:
        with memory.allocate(shamir.SHARD_SIZE) as shard:
            shard_set.derive_shard(member.x, shard)
            shards[member.name] = bytes(shard.view)
    shard_set.release()
    escrow = make_first_escrow(recovery.public_key, seal_escrow(secret, cluster.cluster_id, number))
    rows = {
        (records.GENERATION, str(number)): records.GenerationRecord(GenerationState.ACTIVE, root_key.kcv),
        (records.KEYRING, str(number)): records.KeyringRecord(keks),
        (records.CANARY, str(kek_id)): make_canary(cluster.cluster_id, keyring),
        (records.ESCROW, str(number)): escrow,
        (records.SHARD_SET, str(record.set_number)): record,
    }
    bodies = {key: records.encode(one) for key, one in rows.items()}
    return Successor(root_key, secret, record, shards, escrow, recovery, bodies, kek_id)


def sign_by_successor(cluster: FoundedCluster, *, revision: int) -> SignedMark:
    """Sign a mark by the generation that would follow; its flip, at the same *revision*, is not in the store."""
    signer, root_key = Ed25519PrivateKey.generate(), cluster.make_root_key()
    chain, public_key = cluster.chain, signer.public_key().public_bytes_raw()
    link = Link(
        cluster.cluster_id,
        chain.seq + 1,
        before=chain.digest,
        timeline=1,
        revision=revision,
        control_revision=9,
        generation=chain.generation + 1,
        kcv=bytes(32),
        audit_public_key=public_key,
        recovery_digest=bytes(32),
        escrow_digest=bytes(32),
    )
    record = link.sign(root_key.sign)
    root_key.release()
    mark = Mark(cluster.cluster_id, 1, revision, 9, link.generation, 2, MADE_AT, chain_seq=link.seq).encode()
    return SignedMark(mark, signer.sign(mark), (*chain.records, record))
