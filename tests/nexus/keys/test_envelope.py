"""Values: they open at the place where they were sealed, and nothing else ever comes out."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CorruptRowError, DecryptionError
from common.forms.codec import fields, u32, u64
from common.keys.protected import Level, ProtectedMemory
from nexus.keys.envelope import Place, SealedValue, open_value, seal_value
from nexus.keys.keyring import Keyring, bind_kek
from nexus.keys.root_key import RootKey

MEMORY = ProtectedMemory(highest=Level.LOCKED)
CLUSTER = os.urandom(16)
PLACE = Place(CLUSTER, "team/app/db", os.urandom(16), 3)
BODY = b"a body of some fields"


def _make_keyring() -> Keyring:
    key = MEMORY.allocate(32)
    key.fill_random()
    root_key = RootKey(key, cluster_id=CLUSTER, generation=1, memory=MEMORY)
    keyring = Keyring(MEMORY)
    keyring.make_kek(1, root_key)
    keyring.make_kek(2, root_key)
    return keyring


KEYRING = _make_keyring()
SEALED = seal_value(BODY, PLACE, KEYRING)

names = st.text("abcdefgh/._-", min_size=1, max_size=20)
ids = st.binary(min_size=16, max_size=16)


@settings(deadline=None, max_examples=30)
@given(
    body=st.binary(max_size=300),
    place=st.builds(Place, ids, names, ids, st.integers(min_value=1, max_value=2**63 - 1)),
)
def test_a_value_opens_at_its_own_place(body: bytes, place: Place) -> None:
    """Any value, an empty one too, opens at its place; the ciphertext is 18 bytes longer."""
    sealed = seal_value(body, place, KEYRING)
    assert len(sealed.value) == 2 + len(body) + 16
    assert open_value(sealed, place, KEYRING) == body


@given(
    place=st.builds(Place, st.binary(max_size=20), names, st.binary(max_size=20), st.integers(0, 2**64 - 1)), dek_id=ids
)
def test_a_place_is_encoded_as_the_fields_that_it_is_made_of(place: Place, dek_id: bytes) -> None:
    """What is put together by hand is what `fields` gives, so older rows open."""
    parts = (place.cluster_id, place.path.encode(), place.incarnation, u64(place.version), dek_id)
    bound = fields(b"shardhold-value-v1", *parts)
    assert place.bind(dek_id) == bound
    assert bind_kek(bound, 7) == fields(b"shardhold-dek-v1", bound, u32(7))


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(replace(PLACE, cluster_id=os.urandom(16)), id="another cluster"),
        pytest.param(replace(PLACE, path="team/app/db2"), id="another path"),
        pytest.param(replace(PLACE, incarnation=os.urandom(16)), id="another incarnation"),
        pytest.param(replace(PLACE, version=4), id="another version"),
    ],
)
def test_a_row_copied_elsewhere_does_not_open(place: Place) -> None:
    """A row does not open at another path, version or incarnation, or in another cluster."""
    with pytest.raises(DecryptionError):
        open_value(SEALED, place, KEYRING)


def test_a_dek_moved_along_does_not_help() -> None:
    """Value and DEK are each bound to the place: both of one row, put to another, open nothing."""
    other = seal_value(b"another body", replace(PLACE, version=4), KEYRING)
    for mixed in (
        replace(SEALED, value=other.value),
        replace(SEALED, wrapped_dek=other.wrapped_dek),
        replace(SEALED, dek_id=other.dek_id),
        replace(other, wrapped_dek=SEALED.wrapped_dek, dek_id=SEALED.dek_id),
    ):
        for place in (PLACE, replace(PLACE, version=4)):
            with pytest.raises(DecryptionError):
                open_value(mixed, place, KEYRING)


@pytest.mark.parametrize(
    ("sealed", "error"),
    [
        pytest.param(replace(SEALED, dek_id=os.urandom(16)), DecryptionError, id="another DEK id"),
        pytest.param(replace(SEALED, dek_id=b""), DecryptionError, id="no DEK id"),
        pytest.param(replace(SEALED, kek_id=1), DecryptionError, id="another KEK"),
        pytest.param(replace(SEALED, kek_id=3), CorruptRowError, id="unknown KEK"),
        pytest.param(replace(SEALED, value=b""), DecryptionError, id="no value"),
        pytest.param(replace(SEALED, value=SEALED.value[:2]), DecryptionError, id="format only"),
        pytest.param(replace(SEALED, value=SEALED.value[:17]), DecryptionError, id="less than a tag"),
        pytest.param(replace(SEALED, value=SEALED.value[:-1]), DecryptionError, id="one byte short"),
        pytest.param(replace(SEALED, value=SEALED.value + b"\0"), DecryptionError, id="one byte more"),
        pytest.param(replace(SEALED, value=b"\x02" + SEALED.value[1:]), DecryptionError, id="unknown format"),
        pytest.param(replace(SEALED, wrapped_dek=SEALED.wrapped_dek[:-1]), DecryptionError, id="short wrap"),
    ],
)
def test_a_damaged_row_is_an_error(sealed: SealedValue, error: type[Exception]) -> None:
    """A damaged row is an error, never an empty value or a part of one."""
    with pytest.raises(error):
        open_value(sealed, PLACE, KEYRING)


def test_no_flipped_bit_of_value_wrap_or_id_is_accepted() -> None:
    """Every bit of what is stored is bound."""
    puts: list[tuple[bytes, Callable[[bytes], SealedValue]]] = [
        (SEALED.value, lambda changed: replace(SEALED, value=changed)),
        (SEALED.wrapped_dek, lambda changed: replace(SEALED, wrapped_dek=changed)),
        (SEALED.dek_id, lambda changed: replace(SEALED, dek_id=changed)),
    ]
    for stored, put in puts:
        for bit in range(8 * len(stored)):
            changed = bytearray(stored)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(DecryptionError):
                open_value(put(bytes(changed)), PLACE, KEYRING)


def test_each_value_has_a_dek_of_its_own() -> None:
    """The same body at the same place twice: nothing of it repeats."""
    one, two = seal_value(BODY, PLACE, KEYRING), seal_value(BODY, PLACE, KEYRING)
    assert one.dek_id != two.dek_id
    assert one.value != two.value
    assert one.wrapped_dek != two.wrapped_dek


def test_the_value_is_not_bound_to_the_kek() -> None:
    """A re-wrap under another KEK leaves the value alone."""
    aad = PLACE.bind(SEALED.dek_id)
    with MEMORY.allocate(32) as dek:
        KEYRING.unwrap_dek(SEALED.wrapped_dek, SEALED.kek_id, aad, into=dek.view)
        KEYRING.current_id = 1
        try:
            rewrapped = replace(SEALED, kek_id=1, wrapped_dek=KEYRING.wrap_dek(dek.view, 1, aad))
        finally:
            KEYRING.current_id = 2
    assert open_value(rewrapped, PLACE, KEYRING) == BODY


def test_places_never_run_into_each_other() -> None:
    """Path and incarnation are told apart by the codec, not by a separator."""
    dek_id = bytes(16)
    one = Place(CLUSTER, "team/a", b"b" * 16, 1)
    two = Place(CLUSTER, "team/ab", b"b" * 15, 1)
    assert one.bind(dek_id) != two.bind(dek_id)
