"""The genesis record: one form, one fingerprint."""

import hashlib
from dataclasses import replace

import pytest

from common.errors import CorruptRowError
from common.forms.codec import fields, parse_fields, u64
from common.forms.genesis import Genesis, decode_genesis

GENESIS = Genesis(b"c" * 16, 2, b"k" * 32, b"a" * 32, b"r" * 1216, b"e" * 32)


def test_a_record_comes_back_as_it_was() -> None:
    """A record that is encoded and decoded is the same, with the same fingerprint."""
    assert decode_genesis(GENESIS.encode()) == GENESIS
    assert GENESIS.fingerprint == hashlib.sha256(GENESIS.encode()).digest()


@pytest.mark.parametrize(
    "other",
    [
        replace(GENESIS, cluster_id=b"d" * 16),
        replace(GENESIS, generation=3),
        replace(GENESIS, kcv=b"l" * 32),
        replace(GENESIS, audit_public_key=b"b" * 32),
        replace(GENESIS, recovery_public_key=b"s" * 1216),
        replace(GENESIS, escrow_digest=b"f" * 32),
    ],
    ids=["cluster", "generation", "kcv", "audit key", "recovery key", "escrow"],
)
def test_everything_in_it_is_in_the_fingerprint(other: Genesis) -> None:
    """The fingerprint, which keepers pin and share cards carry, changes with each part of the record."""
    assert other.fingerprint != GENESIS.fingerprint


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0", id="no length"),
        pytest.param(GENESIS.encode()[:-1], id="cut off"),
        pytest.param(GENESIS.encode() + fields(b"more"), id="a part more"),
        pytest.param(fields(b"another-format", *parse_fields(GENESIS.encode())[1:]), id="another purpose"),
        pytest.param(
            fields(*parse_fields(GENESIS.encode())[:2], u64(1), *parse_fields(GENESIS.encode())[3:]),
            id="a later link of the chain",
        ),
    ],
)
def test_anything_else_is_no_genesis_record(encoded: bytes) -> None:
    """Bytes that are not a genesis record are refused as a corrupt row."""
    with pytest.raises(CorruptRowError):
        decode_genesis(encoded)
