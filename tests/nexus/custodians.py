"""Custodians: the recovery key of a cluster, and whoever submits its shares."""

import os
from dataclasses import dataclass

from common import words
from common.delivery import build_share_info
from common.recovery_key import derive_public_key, escrow_info, hash_share, seal
from common.sealing import seal as seal_to
from common.statement import SUBMIT_SHARE, SignedStatement, Statement, verify
from nexus import records
from nexus.gate import Caller
from nexus.unseal import Submitted
from tests.common.authority import NOW
from tests.nexus.core import IDENTITY, NexusCore, identify


@dataclass(frozen=True)
class RecoveryKey:
    """A seed and its shares, in clear: they protect nothing."""

    seed: bytes
    shares: tuple[bytes, ...]  # in wire form, in the order of the custodians' numbers
    record: records.RecoveryKeyRecord

    def seal_escrow(self, root_key: bytes, cluster_id: bytes, generation: int) -> bytes:
        """Seal a root key as init does."""
        return seal(root_key, self.record.public_key, escrow_info(cluster_id, generation))


def make_recovery_key(threshold: int = 2, count: int = 3) -> RecoveryKey:
    """Make what pilot makes at init."""
    seed = os.urandom(32)
    shares = tuple(words.encode_share(share) for share in words.split(seed, threshold, count))
    hashes = [hash_share(share) for share in shares]
    stored = tuple(records.ShareHashRecord(one.salt, one.digest) for one in hashes)
    return RecoveryKey(seed, shares, records.RecoveryKeyRecord(derive_public_key(seed), threshold, stored))


def custodian(person: str) -> Caller:
    """Make the caller who may submit shares and nothing else."""
    return identify(f"shardhold/pilot/role/recover/{person}")


def ask_key(core: NexusCore, caller: Caller, session_id: bytes) -> Statement:
    """Ask for a one-shot key, and verify what comes as pilot does."""
    nonce = os.urandom(32)
    return check(core.unseal.state_key(caller, session_id, nonce), core, caller, nonce)


def check(signed: SignedStatement, core: NexusCore, caller: Caller, nonce: bytes) -> Statement:
    """Verify a statement of the nexus for *caller*."""
    with core.store.read() as reader:
        cluster_id = reader.load_meta().cluster_id
    return verify(
        signed,
        roots=[IDENTITY.authority.certificate],
        cluster_id=cluster_id,
        issuer=IDENTITY.svid.spiffe_id,
        audience=caller.spiffe_id,
        purpose=SUBMIT_SHARE,
        nonce=nonce,
        now=NOW,
    )


def seal_share(share: bytes, statement: Statement, session_id: bytes) -> bytes:
    """Seal a share for one session, to one statement."""
    info = build_share_info(statement_digest=statement.digest(), session_id=session_id)
    return seal_to(memoryview(share), recipient=statement.public_key, info=info)


def submit(core: NexusCore, caller: Caller, session_id: bytes, share: bytes) -> Submitted:
    """Submit one share as pilot does."""
    statement = ask_key(core, caller, session_id)
    return core.unseal.submit(caller, session_id, statement.digest(), seal_share(share, statement, session_id))
