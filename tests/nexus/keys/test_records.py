"""The bodies of control rows: what is not valid is refused when it is read."""

from typing import Any

import msgspec
import pytest

from common.errors import CorruptRowError
from nexus.keys.records import EscrowCopy, EscrowRecord, KekRecord, KekState, KeyringRecord, decode, encode

CURRENT, OLD = (KekRecord(b"w" * 98, state, 1) for state in (KekState.CURRENT, KekState.OLD))
COPY = EscrowCopy("recovery-key", b"r" * 32, b"sealed")


def test_a_keyring_names_its_current_kek() -> None:
    """Of any number of them."""
    record = KeyringRecord({"2": OLD, "7": CURRENT, "4294967295": OLD})
    assert decode(KeyringRecord, encode(record)) == record
    assert record.current_kek_id == 7


@pytest.mark.parametrize(
    "keks",
    [
        pytest.param({}, id="none"),
        pytest.param({"2": OLD}, id="none that is current"),
        pytest.param({"2": CURRENT, "3": CURRENT}, id="two that are current"),
        pytest.param({"0": CURRENT}, id="number 0"),
        pytest.param({"02": CURRENT}, id="a number written otherwise"),
        pytest.param({"-1": CURRENT}, id="a negative number"),
        pytest.param({"4294967296": CURRENT}, id="a number of 33 bits"),
        pytest.param({"٢": CURRENT}, id="a digit of another script"),
    ],
)
def test_a_keyring_that_is_not_valid_is_refused(keks: dict[str, KekRecord]) -> None:
    """Nobody has to guess which KEK is current."""
    with pytest.raises(CorruptRowError, match="no KeyringRecord"):
        decode(KeyringRecord, msgspec.json.encode({"keks": keks}))


@pytest.mark.parametrize(
    "copies",
    [
        pytest.param([COPY, COPY], id="two for one recipient"),
        pytest.param([msgspec.structs.replace(COPY, recipient=b"r" * 31)], id="a recipient that is no digest"),
        pytest.param([msgspec.structs.replace(COPY, kind="")], id="no kind"),
        pytest.param([msgspec.structs.replace(COPY, kind="Kind/1")], id="a kind that is no word"),
    ],
)
def test_an_escrow_that_is_not_valid_is_refused(copies: list[Any]) -> None:
    """Each copy is for somebody, and for somebody else."""
    with pytest.raises(CorruptRowError, match="no EscrowRecord"):
        decode(EscrowRecord, msgspec.json.encode({"copies": copies}))


def test_the_digest_of_an_escrow_is_that_of_all_its_copies() -> None:
    """In their order, each with its recipient."""
    other = EscrowCopy("backup-key", b"b" * 32, b"sealed")
    records = [EscrowRecord(copies) for copies in ((), (COPY,), (other,), (COPY, other), (other, COPY))]
    assert len({record.digest for record in records}) == len(records)
