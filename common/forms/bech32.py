"""Bech32, the text form of the keys of age (BIP 173, without its limit of 90 characters)."""

from collections.abc import Iterable, Sequence
from typing import Final

from common.errors import InvalidArgumentError

RECIPIENT: Final = "age"
IDENTITY: Final = "age-secret-key-"
KEY_SIZE: Final = 32  # bytes of X25519

_ALPHABET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_SIZE: Final = 6  # characters


def encode_recipient(public_key: bytes) -> str:
    """Return an X25519 public key, 32 bytes, as age writes it: age1…"""
    return _encode(RECIPIENT, public_key)


def encode_identity(secret_key: bytes) -> str:
    """Return an X25519 secret key, 32 bytes, as age writes it: AGE-SECRET-KEY-1…

    The text cannot be wiped: only for a process that dies at once, and for keys of development.
    """
    return _encode(IDENTITY, secret_key).upper()


def decode_recipient(text: str) -> bytes:
    """Return the X25519 public key, 32 bytes, of a recipient.

    Raises:
        InvalidArgumentError: It is no recipient of age.
    """
    prefix, _, data = text.rpartition("1")
    values = [_ALPHABET.find(one) for one in data]
    if prefix != RECIPIENT or len(values) < _CHECKSUM_SIZE or -1 in values or _polymod(_expand(prefix), values) != 1:
        raise InvalidArgumentError(f"recipient: got {text[:80]!r}, want one of age: age1…")
    key = bytes(_regroup(values[:-_CHECKSUM_SIZE], 5, 8))
    if len(key) != KEY_SIZE or _encode(RECIPIENT, key) != text:
        raise InvalidArgumentError(f"recipient: got {text[:80]!r}, want one with an X25519 key")
    return key


def _encode(prefix: str, data: bytes) -> str:
    values = list(_regroup(data, 8, 5, pads=True))
    checksum = _polymod(_expand(prefix), [*values, *bytes(_CHECKSUM_SIZE)]) ^ 1
    values += [checksum >> 5 * (_CHECKSUM_SIZE - 1 - at) & 31 for at in range(_CHECKSUM_SIZE)]
    return f"{prefix}1{''.join(_ALPHABET[value] for value in values)}"


def _expand(prefix: str) -> list[int]:
    codes = prefix.encode()
    return [code >> 5 for code in codes] + [0] + [code & 31 for code in codes]


def _polymod(prefix: Sequence[int], values: Sequence[int]) -> int:
    checksum = 1
    for value in (*prefix, *values):
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            checksum ^= generator if top >> bit & 1 else 0
    return checksum


def _regroup(values: Iterable[int], size: int, into: int, *, pads: bool = False) -> Iterable[int]:
    """Cut numbers of *size* bits into such of *into* bits; what is left over is padded or dropped."""
    held = bits = 0
    for value in values:
        held, bits = (held << size | value) & 0xFFF, bits + size
        while bits >= into:
            bits -= into
            yield held >> bits & (1 << into) - 1
    if pads and bits:
        yield held << into - bits & (1 << into) - 1
