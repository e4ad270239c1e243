"""Recovery shares as words: SLIP-39, one group, no passphrase.

Rules:
- The recovery seed is 32 bytes, so every share is 33 words.
- 1 of 1 share, or 2 to 16 of 2 to 16.
- The canonical form is whole words in lower case, separated by one space. Typed words may be in any case and cut to
  their first four letters or more, which identify one word of the list.
- The wire form is the index of each word as u16 big-endian, 66 bytes.
- Errors give the position of a word, never the word, not even one that is not in the list: a mistyped word is mostly
  right.

This module works on `str` and `bytes`, which cannot be wiped: nexuses call it only in `common.keys.opener`.
"""

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.errors import InvalidArgumentError, WordsError

if TYPE_CHECKING:
    from shamir_mnemonic import Share

SEED_SIZE = 32
WORDS = 33
WIRE_SIZE = 2 * WORDS  # 66 bytes
MAX_SHARES = 16

_WIRE = struct.Struct(f">{WORDS}H")
_MIN_LETTERS = 4


@dataclass(frozen=True, slots=True)
class RecoveryShare:
    """One checked recovery share."""

    words: str = field(repr=False)  # canonical form
    set_identifier: int  # the same for all shares of one split
    number: int  # 1 to 16
    threshold: int


def check_counts(threshold: int, count: int) -> None:
    """Check how many shares are to be made, and how many of them are needed.

    Raises:
        InvalidArgumentError: The counts are neither 1 of 1 nor 2 to 16 of 2 to 16.
    """
    if (threshold, count) != (1, 1) and not 2 <= threshold <= count <= MAX_SHARES:
        raise InvalidArgumentError(
            f"recovery shares: got {threshold} of {count}, want 1 of 1, or 2 to {MAX_SHARES} of 2 to {MAX_SHARES}"
        )


def split(seed: bytes, threshold: int, count: int) -> list[str]:
    """Split *seed* (32 bytes) into *count* shares in canonical form, any *threshold* of which give it back.

    Raises:
        InvalidArgumentError: A wrong size or number.
    """
    from shamir_mnemonic import generate_mnemonics

    check_counts(threshold, count)
    if len(seed) != SEED_SIZE:
        raise InvalidArgumentError(f"recovery seed: got {len(seed)} bytes, want {SEED_SIZE}")
    # Iterations slow down guessing a passphrase. There is none here, so the minimum is enough.
    shares: list[str]
    (shares,) = generate_mnemonics(1, [(threshold, count)], bytes(seed), extendable=True, iteration_exponent=0)
    return shares


def combine(shares: Sequence[str]) -> bytes:
    """Rebuild the 32-byte seed from at least a threshold of shares, each in any accepted form.

    Shares beyond the threshold are checked against the others.

    Raises:
        WordsError: A share fails its check, is given twice or belongs to another set, there are too few, or together
            they are not what was split. Positions of shares count from 1.
    """
    from shamir_mnemonic import MnemonicError, combine_mnemonics

    read = [_read_in_list(position, words) for position, words in enumerate(shares, start=1)]
    if not read:
        raise WordsError("got no share")
    first = read[0]
    for position, share in enumerate(read[1:], start=2):
        if (share.set_identifier, share.threshold) != (first.set_identifier, first.threshold):
            raise WordsError(f"share {position} belongs to another set than share 1")
        for earlier, other in enumerate(read[: position - 1], start=1):
            if other.number == share.number:
                raise WordsError(f"share {position} has the same number as share {earlier}")
    threshold = first.threshold
    if len(read) < threshold:
        raise WordsError(f"got {len(read)} shares, want {threshold}")
    try:
        seed: bytes = combine_mnemonics([share.words for share in read[:threshold]])
        for position, share in enumerate(read[threshold:], start=threshold + 1):
            again = combine_mnemonics([share.words for share in (*read[: threshold - 1], share)])
            if not hmac.compare_digest(seed, again):
                raise WordsError(f"share {position} does not fit the others")
    except MnemonicError as exc:
        raise WordsError("the shares do not fit together: one is not what was split") from exc
    return seed


def is_word(typed: str) -> bool:
    """Return whether *typed* is a word of the list, whole or cut to its first four letters or more, in any case."""
    return _find_index(typed.lower()) is not None


def read_share(typed: str) -> RecoveryShare:
    """Check the words of one share and return it in canonical form.

    Raises:
        WordsError: A word is not in the list, the word count or the checksum is wrong, or it is not a share of ours.
    """
    return _read(_find_indices(typed))


def encode_share(typed: str) -> bytes:
    """Check the words of one share and return its wire form, 66 bytes.

    Raises:
        WordsError: As for `read_share`.
    """
    indices = _find_indices(typed)
    _read(indices)
    return _WIRE.pack(*indices)


def decode_share(wire: bytes | bytearray | memoryview) -> str:
    """Return the canonical form of a share in its wire form.

    Raises:
        WordsError: Wrong size, an index beyond the list, or as for `read_share`.
    """
    from shamir_mnemonic.wordlist import WORDLIST

    if len(wire) != WIRE_SIZE:
        raise WordsError(f"share is {len(wire)} bytes, want {WIRE_SIZE}")
    indices = _WIRE.unpack(wire)
    for position, index in enumerate(indices, start=1):
        if index >= len(WORDLIST):
            raise WordsError(f"word {position} is not in the list")
    return _read(indices).words


def _read_in_list(position: int, typed: str) -> RecoveryShare:
    try:
        return read_share(typed)
    except WordsError as exc:
        raise WordsError(f"share {position}: {exc}") from exc


def _read(indices: Sequence[int]) -> RecoveryShare:
    from shamir_mnemonic import MnemonicError, Share
    from shamir_mnemonic.wordlist import mnemonic_from_indices

    words = mnemonic_from_indices(indices)
    try:
        share: Share = Share.from_mnemonic(words)
    except MnemonicError:
        # Not chained: the library's message holds words.
        raise WordsError("the checksum does not fit: a word is wrong or stands in the wrong place") from None
    _check_form(share)
    return RecoveryShare(words, share.identifier, share.index + 1, share.member_threshold)


def _check_form(share: "Share") -> None:
    if (share.group_index, share.group_threshold, share.group_count) != (0, 1, 1):
        raise WordsError("the words are a share of a wallet with groups, not one of ours")
    if len(share.value) != SEED_SIZE:
        raise WordsError(f"the share holds {len(share.value)} bytes, want {SEED_SIZE}")


def _find_indices(typed: str) -> list[int]:
    indices = []
    for position, word in enumerate(typed.lower().split(), start=1):
        index = _find_index(word)
        if index is None:
            raise WordsError(f"word {position} is not in the list")
        indices.append(index)
    if len(indices) != WORDS:
        raise WordsError(f"got {len(indices)} words, want {WORDS}")
    return indices


def _find_index(word: str) -> int | None:
    from shamir_mnemonic.wordlist import WORD_INDEX_MAP, WORDLIST

    index: int | None = WORD_INDEX_MAP.get(word)
    if index is None and len(word) >= _MIN_LETTERS:
        index = next((number for number, whole in enumerate(WORDLIST) if whole.startswith(word)), None)
    return index
