"""How one root key follows another: what is made of the new one, and the link that leads to it.

1. A new root key is random, and so is the KEK that comes with it. They are in protected memory only; the store gets the
   root key sealed to the custodians, and the KEKs wrapped under the new root key.
2. Until the new key is current, nothing but its canary is sealed under the new KEK.
3. The link is signed in the change that makes the new key current, with the key of before: one that was signed earlier
   would outlive an operation that is taken back. It stands in the operation unsigned until then.
"""

import contextlib
import hashlib
from dataclasses import dataclass, replace

from common.errors import CorruptRowError
from common.forms.chain import Link, decode_link
from common.keys.opener import seal_escrow
from common.keys.protected import ProtectedMemory
from common.keys.recovery_key import escrow_info
from nexus.keys import records
from nexus.keys.keyring import Keyring
from nexus.keys.old_form import make_first_escrow
from nexus.keys.opened import Serving, make_canary
from nexus.keys.operation.evidence import NewKey
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Numbers
from nexus.keys.operation.staging import next_numbers
from nexus.keys.records import MAX_KEK_ID
from nexus.keys.root_key import ROOT_KEY_SIZE, RootKey
from nexus.keys.successor import StagedKey
from nexus.store.protocol import Meta

_NOWHERE = bytes(32)  # in place of the digest of the record before, until the link is signed


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """What a new root key is made by; nothing of it is secret."""

    numbers: Numbers
    cluster_id: bytes
    recovery_key: bytes  # the public key that it is sealed to


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A new root key, and what was sealed to the custodians. Owns the key."""

    staged: StagedKey
    escrow: records.EscrowRecord


def is_escrow_possible(serving: Serving) -> bool:
    """Whether a new root key can be sealed to the custodians: the recovery key is the one that the chain names."""
    recovery = serving.recovery
    return recovery is not None and hashlib.sha256(recovery.public_key).digest() == serving.chain.recovery_digest


def plan_key(serving: Serving, facts: Facts) -> KeyPlan:
    """Plan a root key after those of *facts*.

    Raises:
        CorruptRowError: The recovery key does not verify, or is not the one that the chain names.
    """
    if serving.recovery is None or not is_escrow_possible(serving):
        raise CorruptRowError("control row recovery-key/current does not verify: a new root key would have no way back")
    return KeyPlan(next_numbers(facts, renews_key=True), serving.cluster_id, serving.recovery.public_key)


def make_key(plan: KeyPlan, memory: ProtectedMemory) -> StagedKey:
    """Make a root key and its KEK; the caller owns them.

    Raises:
        CorruptRowError: No KEK can have this number. Nothing authenticates the ones that the store has given out.
    """
    if plan.numbers.kek_id > MAX_KEK_ID:
        raise CorruptRowError(f"the next KEK would have the number {plan.numbers.kek_id}, want at most {MAX_KEK_ID}")
    with contextlib.ExitStack() as on_failure:
        key = memory.allocate(ROOT_KEY_SIZE)
        on_failure.callback(key.release)
        key.fill_random()
        root_key = RootKey(key, cluster_id=plan.cluster_id, generation=plan.numbers.generation, memory=memory)
        on_failure.callback(root_key.release)
        keyring = Keyring(memory)
        on_failure.callback(keyring.release)
        keyring.make_kek(plan.numbers.kek_id, root_key)
        on_failure.pop_all()
        return StagedKey(root_key, keyring)


def seal_to_custodians(staged: StagedKey, plan: KeyPlan) -> MadeKey:
    """Seal a new root key to the recovery key, in a child process. Takes over *staged*, and wipes it on failure.

    Raises:
        UnavailableError: The child cannot be started, died, or was not done in time.
    """
    try:
        info = escrow_info(plan.cluster_id, plan.numbers.generation)
        sealed = seal_escrow(staged.root_key.view, plan.recovery_key, info)
        return MadeKey(staged, make_first_escrow(plan.recovery_key, sealed))
    except BaseException:
        staged.release()
        raise


def describe_key(serving: Serving, facts: Facts, made: MadeKey) -> NewKey:
    """Return what the rows of a new root key are made of, with its link unsigned; nothing of it is secret.

    The KEKs that *facts* have are wrapped anew; one that is retired may be in memory yet.
    """
    root_key, old, new = made.staged.root_key, serving.keyring, made.staged.keyring
    wraps = {kek_id: old.wrap_kek(kek_id, root_key) for kek_id in map(int, facts.keyring.keks)}
    wraps[new.current_id] = new.wrap_kek(new.current_id, root_key)
    canary = make_canary(root_key.cluster_id, new)
    return NewKey(root_key.kcv, wraps, made.escrow, canary, _make_link(root_key, made.escrow))


def sign_link(unsigned: bytes, serving: Serving, meta: Meta, *, revision: int) -> bytes:
    """Sign the link of a new key with the key of before, for the change of *revision* on top of *meta* (rule 3)."""
    link, _ = decode_link(unsigned)
    placed = replace(
        link,
        seq=serving.chain.seq + 1,
        before=serving.chain.digest,
        timeline=meta.timeline,
        revision=revision,
        control_revision=meta.control_revision + 1,
    )
    return placed.sign(serving.root_key.sign)


def _make_link(root_key: RootKey, escrow: records.EscrowRecord) -> bytes:
    link = Link(
        root_key.cluster_id,
        seq=0,
        before=_NOWHERE,
        timeline=0,
        revision=0,
        control_revision=0,
        generation=root_key.generation,
        kcv=root_key.kcv,
        audit_public_key=root_key.public_key,
        recovery_digest=escrow.copies[0].recipient,
        escrow_digest=escrow.digest,
    )
    return link.sign(lambda message: b"")
