"""The control rows of programs up to 0.1.0, read in the form of today.

Those programs kept `kcv/GENERATION`, `keyring/current`, `canary/current`, and an escrow of one copy. The first ready
replaces these rows (`nexus.lifecycle.renewal`), and from then on nothing reads the old form in that store: the new
form is the one that the manifest lists.
"""

import hashlib
from collections.abc import Container, Mapping
from typing import Final

import msgspec

from common.errors import CorruptRowError
from nexus.keys import records
from nexus.keys.records import Key, Number

_KCV: Final = "kcv"  # by generation
_KEYRING: Final = ("keyring", "current")
_CANARY: Final = ("canary", "current")


class _KcvRecord(msgspec.Struct, frozen=True):
    kcv: bytes  # 32 bytes


class _KeyringRecord(msgspec.Struct, frozen=True):
    current_kek_id: Number
    wraps: dict[str, bytes]  # 98-byte wrap by KEK number


class _EscrowRecord(msgspec.Struct, frozen=True):
    sealed: bytes


def is_old(keys: Container[Key], generation: int) -> bool:
    """Whether rows with these keys are in the old form."""
    return (records.GENERATION, str(generation)) not in keys and (_KCV, str(generation)) in keys


def convert(bodies: Mapping[Key, bytes], generation: int) -> dict[Key, bytes]:
    """Return rows of the old form in the form of today. A missing escrow stays missing.

    Raises:
        CorruptRowError: Another row is missing, or one does not decode.
    """
    escrow = (records.ESCROW, str(generation))
    keyring = _convert_keyring(records.decode(_KeyringRecord, _need(bodies, _KEYRING)), generation)
    new: dict[Key, msgspec.Struct] = {
        (records.GENERATION, str(generation)): find_generation(bodies, generation),
        (records.KEYRING, str(generation)): keyring,
    }
    if escrow in bodies:
        new[escrow] = find_escrow(bodies, generation)
    old = {(_KCV, str(generation)), _KEYRING, _CANARY}
    kept = {key: body for key, body in bodies.items() if key not in old}
    canary = {(records.CANARY, str(keyring.current_kek_id)): _need(bodies, _CANARY)}
    return kept | canary | {key: records.encode(record) for key, record in new.items()}


def find_generation(bodies: Mapping[Key, bytes], generation: int) -> records.GenerationRecord:
    """Return what rows of the old form say of a generation.

    Raises:
        CorruptRowError: Its row is missing or does not decode.
    """
    kcv = records.decode(_KcvRecord, _need(bodies, (_KCV, str(generation)))).kcv
    return records.GenerationRecord(records.GenerationState.ACTIVE, kcv)


def find_escrow(bodies: Mapping[Key, bytes], generation: int) -> records.EscrowRecord:
    """Return the escrow of a generation from rows of the old form.

    Raises:
        CorruptRowError: Its row or the genesis record is missing, or does not decode.
    """
    sealed = records.decode(_EscrowRecord, _need(bodies, (records.ESCROW, str(generation)))).sealed
    genesis = records.find_genesis(_need(bodies, records.GENESIS))
    return make_first_escrow(genesis.recovery_public_key, sealed)


def make_first_escrow(recovery_key: bytes, sealed: bytes) -> records.EscrowRecord:
    """Make the escrow that has the custodians' copy only."""
    recipient = hashlib.sha256(recovery_key).digest()
    return records.EscrowRecord((records.EscrowCopy(records.RECOVERY_COPY, recipient, sealed),))


def _convert_keyring(old: _KeyringRecord, generation: int) -> records.KeyringRecord:
    if set(old.wraps) != {str(old.current_kek_id)}:  # those programs make one KEK
        raise CorruptRowError("control row keyring/current has another KEK than the current one")
    kek = records.KekRecord(old.wraps[str(old.current_kek_id)], records.KekState.CURRENT, generation)
    return records.KeyringRecord({str(old.current_kek_id): kek})


def _need(bodies: Mapping[Key, bytes], key: Key) -> bytes:
    if key not in bodies:
        raise CorruptRowError(f"control row {'/'.join(key)} is missing or does not verify")
    return bodies[key]
