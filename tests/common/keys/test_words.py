"""SLIP-39 words: official vectors, interoperation, and errors that reveal no word."""

import itertools
import json
import os
from pathlib import Path

import pytest
import shamir_mnemonic
from shamir_mnemonic.recovery import RecoveryState

from common.errors import InvalidArgumentError, WordsError
from common.keys.words import WIRE_SIZE, combine, decode_share, encode_share, is_word, read_share, split

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "slip39" / "vectors.json").read_text())
SEED = bytes(range(32))


@pytest.mark.parametrize(("shares", "secret"), [pytest.param(*vector[1:], id=vector[0]) for vector in VECTORS])
def test_official_vectors(shares: list[str], secret: str) -> None:
    """Valid vectors give their secret; invalid ones, and those with groups, are refused.

    The vectors have a passphrase and we have none, so the library's own cipher converts what we rebuild.
    """
    first = shamir_mnemonic.Share.from_mnemonic(shares[0]) if secret else None
    if first is None or first.group_count > 1:
        with pytest.raises(WordsError):
            combine(shares)
        return
    parameters = (first.iteration_exponent, first.identifier, first.extendable)
    encrypted = shamir_mnemonic.encrypt(combine(shares), b"", *parameters)
    assert shamir_mnemonic.decrypt(encrypted, b"TREZOR", *parameters).hex() == secret


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (2, 2), (2, 3), (3, 5), (16, 16)])
def test_every_threshold_of_shares_gives_the_seed(threshold: int, count: int) -> None:
    """Any threshold of shares in any order gives the seed, and so do all of them."""
    shares = split(SEED, threshold, count)
    assert len(shares) == count
    for some in itertools.islice(itertools.permutations(shares, threshold), 20):
        assert combine(some) == SEED
    assert combine(shares) == SEED


def test_the_reference_library_reads_our_shares() -> None:
    """The reference library rebuilds the seed from our shares, the way its command line does."""
    shares = split(SEED, 3, 5)
    state = RecoveryState()
    for share in shares[2:]:
        state.add_share(shamir_mnemonic.Share.from_mnemonic(share))
    assert state.is_complete()
    assert state.recover(b"") == SEED


def test_we_read_shares_of_the_reference_library() -> None:
    """We rebuild the seed from shares that the library makes with its defaults in one group."""
    (shares,) = shamir_mnemonic.generate_mnemonics(1, [(3, 5)], SEED)
    assert combine(shares[:3]) == SEED


def test_two_splits_share_nothing() -> None:
    """Splitting the same seed again makes another set, and shares of the two sets do not combine."""
    one, other = split(SEED, 2, 3), split(SEED, 2, 3)
    with pytest.raises(WordsError, match="share 2 "):
        combine([one[0], other[1]])


@pytest.mark.parametrize(
    ("threshold", "count"), [(0, 0), (0, 1), (1, 2), (1, 16), (2, 1), (3, 2), (2, 17), (17, 17), (-1, 3)]
)
def test_counts_beyond_the_limits_are_refused(threshold: int, count: int) -> None:
    """Only 1 of 1, and 2 to 16 of 2 to 16, are accepted as counts."""
    with pytest.raises(InvalidArgumentError, match=f"got {threshold} of {count}"):
        split(SEED, threshold, count)


def test_seed_of_another_size_is_refused() -> None:
    """A seed is 32 bytes."""
    with pytest.raises(InvalidArgumentError, match="got 16 bytes"):
        split(bytes(16), 2, 3)


def test_typed_words_come_back_in_canonical_form() -> None:
    """Case, white space and cutting words to four letters change nothing in what is read."""
    (share,) = split(SEED, 1, 1)
    typed = "\n ".join(word[:4].upper() for word in share.split())
    assert read_share(typed).words == share
    assert encode_share(typed) == encode_share(share)
    assert combine([typed]) == SEED


def test_share_knows_its_number_and_threshold() -> None:
    """A share that was read has its number, its threshold and its set."""
    shares = [read_share(share) for share in split(SEED, 3, 5)]
    assert [share.number for share in shares] == [1, 2, 3, 4, 5]
    assert {share.threshold for share in shares} == {3}
    assert len({share.set_identifier for share in shares}) == 1
    assert shares[0].words not in repr(shares[0])


def test_wire_form() -> None:
    """The wire form is 66 bytes, two for each word, and decodes to the canonical words."""
    for share in split(SEED, 2, 3):
        wire = encode_share(share)
        assert len(wire) == WIRE_SIZE
        assert decode_share(memoryview(wire)) == share
    assert encode_share(VECTORS[0][1][0])[4:8] == bytes(4)  # "academic" is the first word of the list


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(65), id="65 bytes"),
        pytest.param(b"\x04\x00" + bytes(64), id="index 1024"),
        pytest.param(os.urandom(0) + bytes(66), id="wrong checksum"),
    ],
)
def test_wrong_wire_form_is_refused(wire: bytes) -> None:
    """Bytes that are not a share raise WordsError."""
    with pytest.raises(WordsError):
        decode_share(wire)


def broken(position: int, word: str) -> str:
    words = VECTORS[0][1][0].split()
    words[position - 1] = word
    return " ".join(words)


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        pytest.param(broken(7, "yearr"), "^word 7 is not in the list$", id="a letter too many"),
        pytest.param(broken(1, "the"), "^word 1 is not in the list$", id="three letters"),
        pytest.param(broken(33, "xyzzy"), "^word 33 is not in the list$", id="no word at all"),
        pytest.param(broken(9, "luck"), "^the checksum does not fit", id="another word of the list"),
        pytest.param(broken(9, ""), "^got 32 words, want 33$", id="a word too few"),
        pytest.param(broken(9, "luck luck"), "^got 34 words, want 33$", id="a word too many"),
        pytest.param("", "^got 0 words, want 33$", id="nothing"),
    ],
)
def test_wrong_words_are_named_by_position_only(typed: str, named: str) -> None:
    """An error and its causes name the position of a wrong word, and neither that word nor any other."""
    with pytest.raises(WordsError, match=named) as caught:
        read_share(typed)
    error: BaseException | None = caught.value
    while error is not None:
        assert not {word for word in typed.split() if len(word) > 4} & set(str(error).split())
        error = error.__cause__
    with pytest.raises(WordsError, match=f"^share 1: {named[1:]}"):
        combine([typed])


def test_wrong_sets_of_shares_are_named() -> None:
    """Too few shares, the same one twice, and none at all each have their own message."""
    shares = split(SEED, 3, 5)
    for some, named in [
        ([], "got no share"),
        (shares[:2], "got 2 shares, want 3"),
        ([shares[0], shares[1], shares[0]], "share 3 has the same number as share 1"),
    ]:
        with pytest.raises(WordsError, match=named):
            combine(some)


@pytest.mark.parametrize("typed", ["academic", "ACADEMIC", "acad", "academ", "zero"])
def test_words_of_the_list(typed: str) -> None:
    """A word is recognised whole or cut to four letters or more, in any case."""
    assert is_word(typed)


@pytest.mark.parametrize("typed", ["", "aca", "academics", "hunter", "abandon", "zer", "acid acid"])
def test_what_is_no_word(typed: str) -> None:
    """Three letters, more letters than a word has, and words of other lists are not recognised."""
    assert not is_word(typed)
