"""The keyring: KEKs open under their root key, cluster, generation and number only."""

import os

import pytest

from common.errors import CorruptRowError, DecryptionError
from common.forms.codec import fields, u32
from common.keys.protected import ProtectedMemory
from nexus.keys.keyring import Keyring, bind_kek
from nexus.keys.root_key import RootKey
from tests.nexus.cluster import is_wiped

SECRET = os.urandom(32)
CLUSTER = os.urandom(16)


def make_root_key(
    memory: ProtectedMemory, secret: bytes = SECRET, cluster_id: bytes = CLUSTER, generation: int = 1
) -> RootKey:
    buffer = memory.allocate(32)
    buffer.view[:] = secret
    return RootKey(buffer, cluster_id=cluster_id, generation=generation, memory=memory)


def unwrap(keyring: Keyring, wrap: bytes, kek_id: int, aad: bytes) -> bytes:
    with keyring.memory.allocate(32) as into:
        keyring.unwrap_dek(wrap, kek_id, aad, into=into.view)
        return bytes(into.view)


def test_a_stored_kek_opens_what_the_new_one_wrapped(memory: ProtectedMemory) -> None:
    """Made by one nexus, opened by the next: the same KEK."""
    root_key, made, opened = make_root_key(memory), Keyring(memory), Keyring(memory)
    stored = made.make_kek(7, root_key)
    dek = os.urandom(32)
    wrap = made.wrap_dek(memoryview(dek), made.current_id, b"place")
    opened.open_kek(7, stored, root_key)
    assert unwrap(opened, wrap, 7, b"place") == dek


def test_the_newest_kek_wraps_and_older_ones_still_open(memory: ProtectedMemory) -> None:
    """A keyring holds several KEKs; each wrap says which it is under."""
    root_key, keyring = make_root_key(memory), Keyring(memory)
    keyring.make_kek(1, root_key)
    dek = os.urandom(32)
    old = keyring.wrap_dek(memoryview(dek), keyring.current_id, b"place")
    keyring.make_kek(2, root_key)
    assert keyring.current_id == 2
    assert unwrap(keyring, old, 1, b"place") == dek
    new = keyring.wrap_dek(memoryview(dek), keyring.current_id, b"place")
    assert unwrap(keyring, new, 2, b"place") == dek
    with pytest.raises(DecryptionError):
        unwrap(keyring, new, 1, b"place")


@pytest.mark.parametrize(
    ("secret", "cluster_id", "generation", "kek_id"),
    [
        pytest.param(os.urandom(32), CLUSTER, 1, 1, id="another root key"),
        pytest.param(SECRET, os.urandom(16), 1, 1, id="another cluster"),
        pytest.param(SECRET, CLUSTER, 2, 1, id="another generation"),
        pytest.param(SECRET, CLUSTER, 1, 2, id="another number"),
    ],
)
def test_a_kek_opens_at_its_own_place_only(
    memory: ProtectedMemory, secret: bytes, cluster_id: bytes, generation: int, kek_id: int
) -> None:
    """A KEK opens at its own place only, and a failure leaves nothing in protected memory."""
    root_key = make_root_key(memory)
    made = Keyring(memory)
    stored = made.make_kek(1, root_key)
    elsewhere, keyring = make_root_key(memory, secret, cluster_id, generation), Keyring(memory)
    with pytest.raises(DecryptionError):
        keyring.open_kek(kek_id, stored, elsewhere)
    for owner in (root_key, made, elsewhere):
        owner.release()
    assert is_wiped(memory)


@pytest.mark.parametrize(("name", "value"), [("generation", 2), ("cluster_id", bytes(16))])
def test_the_place_of_a_kek_is_bound_besides_the_key_that_wraps_it(
    memory: ProtectedMemory, name: str, value: object
) -> None:
    """A KEK opens only for its cluster and generation, under the same keyring key too."""
    root_key, keyring = make_root_key(memory), Keyring(memory)
    stored = keyring.make_kek(1, root_key)
    setattr(root_key, name, value)
    with pytest.raises(DecryptionError, match="at this place"):
        Keyring(memory).open_kek(1, stored, root_key)


def test_the_number_of_the_kek_is_bound_into_the_wrap_of_a_dek(memory: ProtectedMemory) -> None:
    """One KEK under two numbers opens only what names its number."""
    root_key, keyring = make_root_key(memory), Keyring(memory)
    keyring.make_kek(1, root_key)
    wrap = keyring.wrap_dek(memoryview(bytes(32)), keyring.current_id, b"place")
    keyring._keks[2] = keyring._keks[1]
    with pytest.raises(DecryptionError, match="at this place"):
        unwrap(keyring, wrap, 2, b"place")


def test_a_row_that_names_a_kek_which_is_not_there_is_named(memory: ProtectedMemory) -> None:
    """It is corrupt, and never read with another KEK."""
    root_key, keyring = make_root_key(memory), Keyring(memory)
    keyring.make_kek(1, root_key)
    wrap = keyring.wrap_dek(memoryview(bytes(32)), keyring.current_id, b"place")
    with pytest.raises(CorruptRowError, match="KEK 9"):
        unwrap(keyring, wrap, 9, b"place")


def test_release_wipes_all_keks(memory: ProtectedMemory) -> None:
    """A released keyring opens nothing."""
    root_key, keyring = make_root_key(memory), Keyring(memory)
    keyring.make_kek(1, root_key)
    keyring.make_kek(2, root_key)
    wrap = keyring.wrap_dek(memoryview(bytes(32)), keyring.current_id, b"place")
    keyring.release()
    root_key.release()
    assert is_wiped(memory)
    with pytest.raises(CorruptRowError):
        unwrap(keyring, wrap, 2, b"place")


def test_the_place_of_a_dek_is_the_encoding_of_its_parts() -> None:
    """It is put together by hand, byte for byte as the codec does."""
    for place in (b"", b"place" * 99):
        assert bind_kek(place, 7) == fields(b"shardhold-dek-v1", place, u32(7))
