"""The verification recipient: its identity opens under the KEK that is current, and nowhere else."""

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from common.errors import CorruptRowError, DecryptionError
from common.forms.bech32 import encode_recipient
from common.keys.protected import ProtectedMemory
from nexus.keys import records
from nexus.keys.backup_key import (
    BACKUP_KEY,
    BackupKeyRecord,
    carry_backup_key,
    make_backup_key,
    open_backup_key,
    rewrap_backup_key,
)
from nexus.keys.keyring import Keyring
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Numbers
from nexus.keys.root_key import RootKey
from tests.nexus.cluster import count_free
from tests.nexus.keys.operation import made

OLD, NEW = 2, 3


@pytest.fixture
def keyring(memory: ProtectedMemory) -> Iterator[Keyring]:
    """Two KEKs, the first of which is current."""
    root_key = RootKey(memory.allocate(32), cluster_id=bytes(16), generation=1, memory=memory)
    keyring = Keyring(memory)
    for kek_id in (NEW, OLD):
        keyring.make_kek(kek_id, root_key)
    yield keyring
    keyring.release()
    root_key.release()


@pytest.fixture
def record(keyring: Keyring, memory: ProtectedMemory) -> BackupKeyRecord:
    """A row as it is made."""
    return make_backup_key(keyring, memory, at=7)


def open_it(record: BackupKeyRecord, keyring: Keyring, memory: ProtectedMemory) -> str:
    """Open the identity and return its recipient."""
    with memory.allocate(32) as identity:
        open_backup_key(record, keyring, into=identity.view)
        key = X25519PrivateKey.from_private_bytes(identity.view)
        return encode_recipient(key.public_key().public_bytes_raw())


def test_it_is_the_identity_of_its_recipient(
    record: BackupKeyRecord, keyring: Keyring, memory: ProtectedMemory
) -> None:
    """Wrapped under the current KEK; nothing of it stays in memory."""
    free = count_free(memory)
    assert record.kek_id == OLD
    assert open_it(record, keyring, memory) == record.recipient
    assert count_free(memory) == free


def test_it_is_wrapped_anew_under_another_kek(
    record: BackupKeyRecord, keyring: Keyring, memory: ProtectedMemory
) -> None:
    """Of the same keyring by its number, or of another one that has it as its current; the old one is not needed."""
    row = records.encode(record)
    for given in (NEW, None):
        keyring.current_id = OLD if given else NEW
        after = records.decode(BackupKeyRecord, rewrap_backup_key(row, keyring, keyring, kek_id=given))
        assert (after.kek_id, after.recipient, after.made_at) == (NEW, record.recipient, 7)
        assert after.wrap != record.wrap
        assert open_it(after, keyring, memory) == record.recipient
    keyring.forget_kek(OLD)
    assert open_it(after, keyring, memory) == record.recipient
    with pytest.raises(CorruptRowError, match="KEK 2"):
        rewrap_backup_key(row, keyring, keyring)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"kek_id": NEW}, id="another KEK"),
        pytest.param({"recipient": "age1other"}, id="another recipient"),
        pytest.param({"wrap": bytes(98)}, id="another wrap"),
    ],
)
def test_an_edited_row_does_not_open(
    record: BackupKeyRecord, keyring: Keyring, memory: ProtectedMemory, change: dict[str, object]
) -> None:
    """Each part is bound to the others."""
    edited = records.encode(msgspec.structs.replace(record, **change))
    with pytest.raises(DecryptionError):
        rewrap_backup_key(edited, keyring, keyring)


def make_facts(record: BackupKeyRecord | None) -> Facts:
    """Make what a flip finds, with the row of *record*."""
    facts = made.make_facts()
    rows = {} if record is None else {BACKUP_KEY: records.encode(record)}
    return replace(facts, bodies=dict(facts.bodies) | rows)


def test_a_flip_carries_it_to_the_new_kek(record: BackupKeyRecord, keyring: Keyring, memory: ProtectedMemory) -> None:
    """In its own change, beside all else; once somebody else may have it, it goes."""
    new, root_key = Keyring(memory), RootKey(memory.allocate(32), cluster_id=bytes(16), generation=2, memory=memory)
    new.make_kek(NEW, root_key)
    facts, flip = make_facts(record), Change(Numbers(2, 2, NEW), {("a", "b"): b"c"})
    carried = carry_backup_key(flip, facts, keyring, new, is_compromised=False)
    after = records.decode(BackupKeyRecord, carried.put[BACKUP_KEY])
    assert (after.kek_id, open_it(after, new, memory)) == (NEW, record.recipient)
    assert carried.put.keys() == {("a", "b"), BACKUP_KEY}
    assert (carried.current, carried.raises_epoch) == (flip.current, True)
    assert carry_backup_key(flip, facts, keyring, new, is_compromised=True).delete == {BACKUP_KEY}
    for other in (make_facts(None), make_facts(msgspec.structs.replace(record, kek_id=99))):
        assert carry_backup_key(flip, other, keyring, new, is_compromised=False) == flip
    new.release()
    root_key.release()
