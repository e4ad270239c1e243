"""Custodians: the recovery key of a cluster, whoever submits its shares, and a cluster that needs them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from common.forms.delivery import build_share_info
from common.keys import words
from common.keys.protected import ProtectedMemory
from common.keys.recovery_key import derive_public_key, escrow_info, hash_share, seal
from common.keys.sealing import seal as seal_to
from common.keys.statement import SUBMIT_SHARE, SignedStatement, Statement, verify
from nexus.access.gate import Caller
from nexus.admin.unseal import SessionView, Submitted
from nexus.keys import records
from nexus.store.protocol import Meta
from tests.kit.authority import NOW
from tests.kit.manual_clock import ManualClock
from tests.nexus.cluster import FoundedCluster
from tests.nexus.core import AUTHORITY, IDENTITY, NexusCore, identify
from tests.nexus.failing_store import FailingStore


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
        roots=[AUTHORITY.certificate],
        cluster_id=cluster_id,
        issuer=IDENTITY.current().spiffe_id,
        audience=caller.spiffe_id,
        purpose=SUBMIT_SHARE,
        nonce=nonce,
        now=NOW,
    )


def seal_share(share: bytes, statement: Statement, session: SessionView) -> bytes:
    """Seal a share for one session, to one statement."""
    info = build_share_info(statement_digest=statement.digest(), session_id=session.session_id, genesis=session.genesis)
    return seal_to(memoryview(share), recipient=statement.public_key, info=info)


def submit(core: NexusCore, caller: Caller, session: SessionView, share: bytes) -> Submitted:
    """Submit one share as pilot does."""
    statement = ask_key(core, caller, session.session_id)
    sealed = seal_share(share, statement, session)
    return core.unseal.submit(caller, session.session_id, statement.digest(), sealed)


KEY, OTHER_KEY = make_recovery_key(), make_recovery_key()


class Lost:
    """A cluster whose nexus and keepers were all lost. Nothing runs but the calls of a test."""

    def __init__(self, folder: Path, cluster: FoundedCluster, memory: ProtectedMemory) -> None:
        self.cluster = cluster
        self.store = FailingStore(cluster.store)
        self._folder = folder
        self._memory = memory
        self.core = NexusCore(folder, self.store, memory, [])

    @property
    def clock(self) -> ManualClock:
        return self.core.clock

    @property
    def meta(self) -> Meta:
        return self.cluster.load()[0]

    def restart(self, *, sealed: bool = False) -> None:
        """Kill the nexus, and start it again on the same store."""
        self.core.close()
        if sealed != self.meta.sealed:
            self.cluster.store.write(
                lambda writer: writer.save_meta(replace(writer.load_meta(), sealed=sealed)), counts=False
            )
        self.core = NexusCore(self._folder, self.store, self._memory, [])

    def submit(self, session: SessionView, number: int, caller: Caller | None = None) -> Submitted:
        """Submit the share of one custodian."""
        return submit(self.core, caller or custodian("ann"), session, KEY.shares[number - 1])

    def prepare(self, session: SessionView, number: int, caller: Caller | None = None) -> Callable[[], Submitted]:
        """Seal a share, to be submitted later."""
        caller = caller or custodian("ann")
        statement = ask_key(self.core, caller, session.session_id)
        sealed = seal_share(KEY.shares[number - 1], statement, session)
        return lambda: self.core.unseal.submit(caller, session.session_id, statement.digest(), sealed)

    def load_sets(self) -> dict[int, records.SetState]:
        """Load the states of all sets, by number."""
        rows = [row for row in self.cluster.load()[1] if row.kind == records.SHARD_SET]
        sets = [records.decode(records.ShardSetRecord, row.body) for row in rows]
        return {one.set_number: one.state for one in sets}
