"""The verification recipient of a cluster: an age X25519 identity, by which a ready nexus opens the backups it made.

It is drawn when the first backup is made, wrapped under the current KEK, and kept in the control row
`backup-key/current`. A flip wraps it anew, so that it opens for as long as its KEK is in the keyring. The public key
stands in the row as age writes it.
"""

from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from common.errors import CorruptRowError, IntegrityError
from common.forms.bech32 import KEY_SIZE, encode_recipient
from common.forms.codec import fields
from common.keys.protected import ProtectedMemory
from nexus.keys import records
from nexus.keys.keyring import Keyring
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.records import Number

BACKUP_KEY: Final = ("backup-key", "current")


class BackupKeyRecord(msgspec.Struct, frozen=True):
    """The identity, wrapped."""

    kek_id: Number
    recipient: str  # age1…
    wrap: bytes  # 98 bytes
    made_at: Number = 0  # microseconds since 1970


def make_backup_key(keyring: Keyring, memory: ProtectedMemory, *, at: int) -> BackupKeyRecord:
    """Draw an identity, and wrap it under the current KEK."""
    with memory.allocate(KEY_SIZE) as identity:
        identity.fill_random()  # any 32 bytes are a key of X25519
        public_key = X25519PrivateKey.from_private_bytes(identity.view).public_key().public_bytes_raw()
        recipient, kek_id = encode_recipient(public_key), keyring.current_id
        return BackupKeyRecord(kek_id, recipient, keyring.wrap_dek(identity.view, kek_id, _place(recipient)), at)


def open_backup_key(record: BackupKeyRecord, keyring: Keyring, *, into: memoryview) -> None:
    """Open the identity into 32 bytes of protected memory, unchanged on failure.

    Raises:
        CorruptRowError: The keyring has no such KEK any more.
        DecryptionError: The wrap does not open.
    """
    keyring.unwrap_dek(record.wrap, record.kek_id, _place(record.recipient), into=into)


def rewrap_backup_key(row: bytes, old_keyring: Keyring, new_keyring: Keyring, *, kek_id: int | None = None) -> bytes:
    """Return the body of the row `BACKUP_KEY` with the identity wrapped under another KEK.

    Both keyrings may be one. *kek_id* is a KEK of *new_keyring*; None: its current one.

    Raises:
        CorruptRowError: *row* does not decode, or its KEK is not in *old_keyring*.
        DecryptionError: The wrap does not open.
    """
    record = records.decode(BackupKeyRecord, row)
    target = new_keyring.current_id if kek_id is None else kek_id
    with new_keyring.memory.allocate(KEY_SIZE) as identity:
        open_backup_key(record, old_keyring, into=identity.view)
        wrap = new_keyring.wrap_dek(identity.view, target, _place(record.recipient))
    return records.encode(msgspec.structs.replace(record, kek_id=target, wrap=wrap))


def carry_backup_key(flip: Change, facts: Facts, old: Keyring, new: Keyring, *, is_compromised: bool) -> Change:
    """Return *flip*, which makes the current KEK of *new* current, with the identity wrapped under that.

    *facts* are those before it, with their KEKs in *old*. Where somebody else may have the root key of before
    (*is_compromised*), they may have the identity too: it is deleted, and the next backup draws another. One that does
    not open stays as it is, for the same to happen.
    """
    row = facts.bodies.get(BACKUP_KEY)
    if row is None:
        return flip
    if is_compromised:
        return flip.join(Change(flip.current, delete=frozenset({BACKUP_KEY}), raises_epoch=False))
    try:
        put = {BACKUP_KEY: rewrap_backup_key(row, old, new)}
    except IntegrityError:
        return flip
    return flip.join(Change(flip.current, put, raises_epoch=False))


def find_backup_key(facts: Facts) -> BackupKeyRecord | None:
    """Return the row as it stands; None: no backup was made yet.

    Raises:
        CorruptRowError: It does not verify, or does not decode.
    """
    if BACKUP_KEY in facts.damaged:
        raise CorruptRowError(f"control row {'/'.join(BACKUP_KEY)} does not verify")
    body = facts.bodies.get(BACKUP_KEY)
    return None if body is None else records.decode(BackupKeyRecord, body)


def _place(recipient: str) -> bytes:
    # Bound to its public key. No DEK of a version is bound to such a place, so neither opens in the place of the other.
    return fields(b"shardhold-backup-key-v1", recipient.encode())
