"""Wraps of keys: they open under one key at one place, and nothing else ever comes out."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DecryptionError
from common.forms.codec import fields
from common.keys.protected import Level, ProtectedMemory
from nexus.keys.wrap import SALT_SIZE, USE_AS_COMMITMENT, USE_AS_KEY, WRAP_SIZE, describe_use, unwrap_key, wrap_key

MEMORY = ProtectedMemory(highest=Level.LOCKED)
KEY = os.urandom(32)
UNDER = os.urandom(32)
AAD = b"place"

keys = st.binary(min_size=32, max_size=32)


def wrap(key: bytes = KEY, under: bytes = UNDER, aad: bytes = AAD) -> bytes:
    return wrap_key(memoryview(key), under=memoryview(under), aad=aad, memory=MEMORY)


def unwrap(wrapped: bytes, under: bytes = UNDER, aad: bytes = AAD) -> bytes:
    with MEMORY.allocate(32) as into:
        into.view[:] = b"\xee" * 32
        try:
            unwrap_key(wrapped, under=memoryview(under), aad=aad, memory=MEMORY, into=into.view)
        except DecryptionError:
            assert into.view == b"\xee" * 32, "the target changed on failure"
            raise
        return bytes(into.view)


@settings(deadline=None, max_examples=30)
@given(key=keys, under=keys, aad=st.binary(max_size=64))
def test_a_wrap_opens_to_its_key_under_its_key_at_its_place(key: bytes, under: bytes, aad: bytes) -> None:
    """What was wrapped comes back, 98 bytes, format first."""
    wrapped = wrap(key, under, aad)
    assert len(wrapped) == WRAP_SIZE == 98
    assert wrapped[:2] == b"\x01\x01"
    assert unwrap(wrapped, under, aad) == key


@settings(deadline=None, max_examples=30)
@given(other=keys.filter(lambda key: key != UNDER))
def test_a_wrap_does_not_open_under_another_key(other: bytes) -> None:
    """The commitment says so before anything is decrypted: a wrap has one key only."""
    with pytest.raises(DecryptionError, match="under another key"):
        unwrap(wrap(), other)


@settings(deadline=None, max_examples=30)
@given(other=st.binary(max_size=64).filter(lambda aad: aad != AAD))
def test_a_wrap_does_not_open_at_another_place(other: bytes) -> None:
    """The associated data names the place."""
    with pytest.raises(DecryptionError, match="does not open at this place"):
        unwrap(wrap(), aad=other)


def test_no_flipped_bit_is_accepted() -> None:
    """Every one of the 784 bits is bound: format, salt, commitment and ciphertext."""
    wrapped = wrap()
    for bit in range(8 * len(wrapped)):
        changed = bytearray(wrapped)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecryptionError):
            unwrap(bytes(changed))


def test_ciphertext_under_one_key_with_the_commitment_of_another_opens_under_neither() -> None:
    """Key commitment: parts of two wraps do not go together, whichever key opens them."""
    other = os.urandom(32)
    one, two = wrap(), wrap(under=other)
    spliced = two[:50] + one[50:]
    for under in (UNDER, other):
        with pytest.raises(DecryptionError):
            unwrap(spliced, under)


@pytest.mark.parametrize("size", [0, 1, 2, 50, 97, 99, 200])
def test_a_wrap_of_the_wrong_size_is_refused(size: int) -> None:
    """No slice of it is taken for a key."""
    with pytest.raises(DecryptionError, match=f"wrap is {size} bytes"):
        unwrap((wrap() + bytes(200))[:size])


def test_no_two_wraps_share_a_salt() -> None:
    """The AEAD key is used once, which is what makes the fixed nonce safe."""
    assert len({wrap()[2:18] for _ in range(100)}) == 100


def test_what_derives_the_keys_of_a_wrap_is_the_encoding_of_its_parts() -> None:
    """It is put together by hand, byte for byte as the codec does."""
    salt = bytes(range(SALT_SIZE))
    assert describe_use(salt, USE_AS_KEY) == fields(b"shardhold-wrap-v1", salt, b"key")
    assert describe_use(salt, USE_AS_COMMITMENT) == fields(b"shardhold-wrap-v1", salt, b"commitment")
