"""The codec: injective, and strict when it decodes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CorruptRowError
from common.forms.codec import fields, parse_fields, u32, u64

PARTS = st.lists(st.binary(max_size=40), max_size=6)


@settings(deadline=None)
@given(PARTS)
def test_decoding_gives_the_parts_back(parts: list[bytes]) -> None:
    """Encoded parts decode to the same parts, from bytes and from a view, whatever buffer they came in."""
    encoded = fields(*parts)
    assert parse_fields(encoded) == parts
    assert parse_fields(memoryview(encoded)) == parts
    assert fields(*(bytearray(part) for part in parts)) == fields(*(memoryview(part) for part in parts)) == encoded


@settings(deadline=None)
@given(PARTS, PARTS)
def test_encoding_is_injective(one: list[bytes], other: list[bytes]) -> None:
    """Two different lists of parts never encode alike, even if they differ only in where a part ends."""
    assert (fields(*one) == fields(*other)) == (one == other)
    if one:
        assert fields(*one) != fields(*one[:-1], one[-1] + b"x")


def test_parts_cannot_run_into_each_other() -> None:
    """The same bytes cut at another place have another encoding."""
    assert fields(b"ab", b"c") != fields(b"a", b"bc")
    assert fields() == b""
    assert fields(b"") == bytes(4)


@settings(deadline=None)
@given(PARTS.filter(bool), st.data())
def test_a_cut_encoding_is_refused(parts: list[bytes], data: st.DataObject) -> None:
    """Every proper prefix of an encoding is refused, unless it ends between two parts."""
    encoded = fields(*parts)
    length = data.draw(st.integers(0, len(encoded) - 1))
    borders = {len(fields(*parts[:count])) for count in range(len(parts) + 1)}
    if length in borders:
        assert parse_fields(encoded[:length]) == parts[: sorted(borders).index(length)]
    else:
        with pytest.raises(CorruptRowError):
            parse_fields(encoded[:length])


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"\x00", id="less than a length"),
        pytest.param(b"\x00\x00\x00\x02a", id="length past the end"),
        pytest.param(b"\xff\xff\xff\xff" + bytes(8), id="greatest length"),
    ],
)
def test_malformed_is_refused(encoded: bytes) -> None:
    """A length that points past the end is an error, and no memory is allocated for it."""
    with pytest.raises(CorruptRowError, match="bytes left"):
        parse_fields(encoded)


def test_numbers_are_big_endian() -> None:
    """u32 takes 4 bytes and u64 takes 8, big-endian; neither takes a number that does not fit."""
    assert u32(1) == b"\x00\x00\x00\x01"
    assert u64(258) == b"\x00\x00\x00\x00\x00\x00\x01\x02"
    for encode, bits in ((u32, 32), (u64, 64)):
        assert encode(2**bits - 1) == b"\xff" * (bits // 8)
        with pytest.raises(OverflowError):
            encode(2**bits)
        with pytest.raises(OverflowError):
            encode(-1)
