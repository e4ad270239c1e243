"""HKDF-Expand and HMAC: published vectors, and the limits."""

import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidArgumentError
from common.keys.derive import expand, hmac_into, hmac_sha256

VECTORS = Path(__file__).parents[2] / "vectors" / "hkdf"


def load(name: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in json.loads((VECTORS / name).read_text())]


@pytest.mark.parametrize("vector", load("vectors.json"))
def test_expand_gives_the_vectors(vector: dict[str, str]) -> None:
    """`expand` gives the first block of RFC 5869's outputs, whole and truncated."""
    key, info, output = (bytes.fromhex(vector[name]) for name in ("prk", "info", "okm"))
    for length in (32, 31, 12, 1):
        into = bytearray(length)
        expand(memoryview(key), info, memoryview(into))
        assert into == output[:length]


@pytest.mark.parametrize("vector", load("hmac.json"))
def test_hmac_gives_the_vectors(vector: dict[str, str]) -> None:
    """HMAC gives RFC 4231's tags, as a result and in place, even for a message that is not bytes."""
    key, data, tag = (bytes.fromhex(vector[name]) for name in ("key", "data", "tag"))
    assert hmac_sha256(memoryview(key), data) == tag
    for message in (data, bytearray(data), memoryview(data)):
        into = bytearray(32)
        hmac_into(memoryview(key), message, memoryview(into))
        assert into == tag


@settings(deadline=None)
@given(key=st.binary(min_size=32, max_size=32), info=st.binary(max_size=200), length=st.integers(1, 32))
def test_expand_agrees_with_another_implementation(key: bytes, info: bytes, length: int) -> None:
    """`expand` gives the same output as HKDFExpand of `cryptography`, and leaves key and info unchanged."""
    protected, into = bytearray(key), bytearray(length)
    expand(memoryview(protected), info, memoryview(into))
    assert into == HKDFExpand(SHA256(), length, info).derive(key)
    assert protected == key


def test_result_may_replace_the_key() -> None:
    """A derived key may be written over the key it came from."""
    key = bytearray(range(32))
    expected = hmac.digest(key, b"next\x01", "sha256")
    expand(memoryview(key), b"next", memoryview(key))
    assert key == expected


@pytest.mark.parametrize("length", [0, 33, 64])
def test_more_than_one_block_is_refused(length: int) -> None:
    """More than one block of 32 bytes is refused, and nothing is written."""
    into = bytearray(b"\xaa" * length)
    with pytest.raises(InvalidArgumentError, match=f"{length} bytes, want 1 to 32"):
        expand(memoryview(bytes(32)), b"info", memoryview(into))
    assert into == b"\xaa" * length
