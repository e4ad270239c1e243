"""Shares that are given: a card or its words, from a file or standard input, never on the command line."""

import io
from datetime import date
from pathlib import Path

import pytest

from common.keys.words import split
from pilot.custody.card import Card
from pilot.custody.given_share import GivenShare, read_given_share
from pilot.errors import UsageError
from tests.pilot.person import swap_words

SHARES = split(bytes(32), 2, 3)
GENESIS = bytes(range(32))
CARD = Card(
    number=2,
    count=3,
    threshold=2,
    words=SHARES[1],
    cluster_id=bytes(16),
    genesis=GENESIS,
    attempt=1,
    made_on=date(2026, 2, 3),
).format()


def read(text: str | bytes, tmp_path: Path, *, by_file: bool) -> GivenShare:
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "card").write_bytes(content)
    given = read_given_share([f"@{tmp_path / 'card'}" if by_file else "-"], io.BytesIO(content))
    assert given is not None
    return given


@pytest.mark.parametrize("by_file", [True, False], ids=["file", "standard input"])
@pytest.mark.parametrize(
    ("text", "genesis"),
    [
        pytest.param(CARD, GENESIS, id="a card"),
        pytest.param("\n" + CARD + "\nnotes of mine\n", GENESIS, id="a card with notes"),
        pytest.param(SHARES[1], None, id="words"),
        pytest.param(SHARES[1].replace(" ", "\n").upper() + "\n", None, id="a word on each line, in capitals"),
    ],
)
def test_share_is_read(text: str, genesis: bytes | None, by_file: bool, tmp_path: Path) -> None:
    """A card gives words and fingerprint, words alone give only themselves; neither shows in a repr."""
    given = read(text, tmp_path, by_file=by_file)
    assert (given.share.words, given.genesis) == (SHARES[1], genesis)
    assert SHARES[1].split()[0] not in repr(given)


def test_nothing_given_means_ask() -> None:
    """Without an argument no share is read, and the custodian is asked."""
    assert read_given_share([], io.BytesIO()) is None


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["hunter2"], id="one word"),
        pytest.param(SHARES[0].split(), id="all words"),
        pytest.param([SHARES[0]], id="all in one"),
        pytest.param(["-", "hunter2"], id="more behind standard input"),
        pytest.param(["@"], id="a file without a name"),
    ],
)
def test_words_on_the_command_line_are_refused(arguments: list[str]) -> None:
    """Words on the command line are refused and not repeated; the shell's history already has them."""
    with pytest.raises(UsageError, match="shell's history") as caught:
        read_given_share(arguments, io.BytesIO(SHARES[0].encode()))
    # Pairs: a single word of the random share may also be a word of the message.
    words = SHARES[0].split()
    assert not any(" ".join(words[at : at + 2]) in str(caught.value) for at in range(len(words) - 1))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "got 0 words", id="nothing"),
        pytest.param(SHARES[1] + " academic", "got 34 words", id="a word too many"),
        pytest.param("hunter2 " + SHARES[1], "word 1 is not in the list", id="no word"),
        pytest.param(swap_words(SHARES[1]), "checksum", id="two words swapped"),
        pytest.param(b"\xff" + SHARES[1].encode(), "is neither a share card nor words", id="binary"),
        pytest.param(CARD.replace("recovery words", "words"), "not a share card", id="a card without words"),
        pytest.param(CARD.replace("0001 0203", "0001 xxxx"), "no genesis", id="a card without its fingerprint"),
    ],
)
def test_what_is_no_share_is_refused(text: str | bytes, said: str, tmp_path: Path) -> None:
    """The error names the file and the fault, and no word of it."""
    with pytest.raises(UsageError, match=said) as caught:
        read(text, tmp_path, by_file=True)
    assert str(tmp_path / "card") in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert not isinstance(caught.value.__cause__, UnicodeDecodeError)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The error for a missing file names it."""
    with pytest.raises(UsageError, match="No such file"):
        read_given_share([f"@{tmp_path / 'none'}"], io.BytesIO())
