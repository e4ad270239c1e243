"""What custodians bring a cluster back with: the recovery key, and the copy of the root key that is sealed to it."""

import hashlib
from collections.abc import Sequence

from common.errors import CorruptRowError
from common.forms.genesis import Genesis
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
    genesis: Genesis, recovery: records.RecoveryKeyRecord, escrow: records.EscrowRecord
) -> records.EscrowCopy:
    """Return the copy that custodians open, once recovery key and escrow are those of the genesis record.

    Raises:
        CorruptRowError: They are not.
    """
    if genesis.recovery_public_key != recovery.public_key:
        raise CorruptRowError("recovery key is not the one of the genesis record")
    if len(escrow.copies) != 1 or hashlib.sha256(escrow.copies[0].sealed).digest() != genesis.escrow_digest:
        raise CorruptRowError("escrow is not the one of the genesis record")
    return escrow.copies[0]
