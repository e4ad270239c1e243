"""The control rows that a cluster begins with."""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from common.clock import to_micros
from common.forms.genesis import Genesis
from common.keys.protected import ProtectedMemory
from nexus.keys import records
from nexus.keys.keyring import Keyring
from nexus.keys.old_form import make_first_escrow
from nexus.keys.opened import make_canary
from nexus.keys.records import Key
from nexus.keys.root_key import RootKey
from nexus.policy.rules import Policy, encode_policy

FIRST_KEK = 2  # SQLite stores 1 in no byte: a row would grow when it is wrapped under the next KEK
FIRST_TIMELINE = 1


def make_genesis(root_key: RootKey, recovery_key: bytes, escrow: bytes) -> Genesis:
    """Make the genesis record: the first root key, the public key of its custodians, and what is sealed to that."""
    return Genesis(
        cluster_id=root_key.cluster_id,
        generation=root_key.generation,
        kcv=root_key.kcv,
        audit_public_key=root_key.public_key,
        recovery_public_key=recovery_key,
        escrow_digest=hashlib.sha256(escrow).digest(),
    )


def make_first_rows(
    root_key: RootKey,
    genesis: Genesis,
    escrow: bytes,
    recovery: records.RecoveryKeyRecord,
    shard_set: records.ShardSetRecord,
    policies: Sequence[Policy],
    memory: ProtectedMemory,
    *,
    now: datetime,
    actor: str = "",
) -> dict[Key, bytes]:
    """Make the first KEK and the canary, and return the bodies of all rows, for `manifest.first_manifest`.

    *actor* is the SPIFFE ID of whoever initialises.
    """
    keyring = Keyring(memory)
    try:
        wrap = keyring.make_kek(FIRST_KEK, root_key)
        canary = make_canary(root_key.cluster_id, keyring)
    finally:
        keyring.release()
    at, generation = to_micros(now), str(root_key.generation)
    active = records.GenerationRecord(
        records.GenerationState.ACTIVE, root_key.kcv, created_at=at, activated_at=at, actor=actor
    )
    kek = records.KekRecord(wrap, records.KekState.CURRENT, root_key.generation, made_at=at)
    rows = {
        records.GENESIS: records.GenesisRecord(genesis.encode()),
        records.RECOVERY_KEY: recovery,
        (records.GENERATION, generation): active,
        (records.KEYRING, generation): records.KeyringRecord({str(FIRST_KEK): kek}),
        (records.CANARY, str(FIRST_KEK)): canary,
        (records.ESCROW, generation): make_first_escrow(recovery.public_key, escrow),
        (records.SHARD_SET, str(shard_set.set_number)): shard_set,
    }
    bodies = {key: records.encode(record) for key, record in rows.items()}
    return bodies | {(records.POLICY, policy.name): encode_policy(policy) for policy in policies}
