"""The control rows that a cluster begins with."""

import hashlib
from collections.abc import Sequence

from common.forms.genesis import Genesis
from common.keys.protected import ProtectedMemory
from nexus.keys import records
from nexus.keys.keyring import Keyring
from nexus.keys.manifest import Key
from nexus.keys.opened import make_canary
from nexus.keys.root_key import RootKey
from nexus.policy.rules import Policy, encode_policy

FIRST_KEK = 1
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
) -> dict[Key, bytes]:
    """Make the first KEK and the canary, and return the bodies of all rows, for `manifest.first_manifest`."""
    keyring = Keyring(memory)
    try:
        wrap = keyring.make_kek(FIRST_KEK, root_key)
        canary = make_canary(root_key.cluster_id, keyring)
    finally:
        keyring.release()
    generation = str(root_key.generation)
    rows = {
        records.GENESIS: records.GenesisRecord(genesis.encode()),
        records.KEYRING: records.KeyringRecord(FIRST_KEK, {str(FIRST_KEK): wrap}),
        records.CANARY: canary,
        records.RECOVERY_KEY: recovery,
        (records.KCV, generation): records.KcvRecord(root_key.kcv),
        (records.ESCROW, generation): records.EscrowRecord(escrow),
        (records.SHARD_SET, str(shard_set.set_number)): shard_set,
    }
    bodies = {key: records.encode(record) for key, record in rows.items()}
    return bodies | {(records.POLICY, policy.name): encode_policy(policy) for policy in policies}
