"""What custodians bring a cluster back with: the recovery key, and the copy of the root key that is sealed to it."""

import hashlib
from collections.abc import Sequence

from common.errors import CorruptRowError
from common.forms.chain import Chain
from nexus.keys import manifest, old_form, records
from nexus.store.protocol import ControlRow


def find_escrow(rows: Sequence[ControlRow], generation: int) -> records.EscrowRecord:
    """Return the escrow of a generation, which nothing has verified yet.

    Raises:
        CorruptRowError: It is missing, or does not decode.
    """
    bodies = {(row.kind, row.name): row.body for row in rows}
    if old_form.is_old(manifest.list_keys(rows), generation):
        return old_form.find_escrow(bodies, generation)
    key = records.ESCROW, str(generation)
    if key not in bodies:
        raise CorruptRowError(f"control row {'/'.join(key)} is missing")
    return records.decode(records.EscrowRecord, bodies[key])


def find_custodians_copy(
    chain: Chain, recovery: records.RecoveryKeyRecord, escrow: records.EscrowRecord
) -> records.EscrowCopy:
    """Return the copy that custodians open, once recovery key and escrow are those of the chain.

    Raises:
        CorruptRowError: They are not.
    """
    source = f"link {chain.seq} of the chain" if chain.links else "the genesis record"
    recipient = hashlib.sha256(recovery.public_key).digest()
    if recipient != chain.recovery_digest:
        raise CorruptRowError(f"recovery key is not the one of {source}")
    if _digest(escrow, chain) != chain.escrow_digest:
        raise CorruptRowError(f"escrow is not the one of {source}")
    for copy in escrow.copies:
        if (copy.kind, copy.recipient) == (records.RECOVERY_COPY, recipient):
            return copy
    raise CorruptRowError("escrow has no copy for the recovery key")


def _digest(escrow: records.EscrowRecord, chain: Chain) -> bytes:
    """Return the digest that the chain should have; the genesis record names that of its one copy."""
    if chain.links or len(escrow.copies) != 1:
        return escrow.digest
    return hashlib.sha256(escrow.copies[0].sealed).digest()
