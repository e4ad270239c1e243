"""Share cards: what a custodian reads on them, and what pilot reads back from them."""

import re

import pytest

from common.errors import WordsError
from common.keys.words import split
from pilot.custody.card import is_card, read_genesis, read_words
from tests.kit.cards import CLUSTER_ID, make_cards

SHARES = split(bytes(32), 2, 3)


def test_card_holds_what_a_custodian_needs() -> None:
    """A card has number, threshold, genesis, cluster, date, each word with its number, and what to do."""
    text = make_cards(SHARES)[1].format()
    for part in (
        "custodian           2 of 3",
        "any 2 of the 3 shares",
        "0001 0203 0405",
        CLUSTER_ID.hex(),
        "2026-02-03",
    ):
        assert part in text
    for number, word in enumerate(SHARES[1].split(), start=1):
        assert re.search(rf"\b{number} {word}\b", text)
    assert "what to do with it" in text
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_a_card_fits_its_terminal(columns: int) -> None:
    """A narrow card has shorter lines and says the same, down to what is read back from it; a wide one is the file."""
    card = make_cards(SHARES)[1]
    text = card.format(columns)
    assert max(map(len, text.splitlines())) <= columns
    assert text.split() == card.format().split() if columns > 50 else text.split()[:4] == card.format().split()[:4]
    assert (read_words(text), read_genesis(text)) == (SHARES[1], bytes(range(32)))
    assert (text == card.format()) is (columns == 200)


@pytest.mark.parametrize(
    ("columns", "lines", "pages"),
    [
        pytest.param(None, None, 1, id="no terminal"),
        pytest.param(120, 40, 1, id="high enough"),
        pytest.param(80, 20, 2, id="words by themselves"),
        pytest.param(50, 20, 3, id="each part by itself"),
        pytest.param(50, 5, 3, id="too low for any"),
    ],
)
def test_a_card_on_a_low_screen(columns: int | None, lines: int | None, pages: int) -> None:
    """It comes in parts, whole but for their order, and the words are the last."""
    card = make_cards(SHARES)[1]
    shown = card.format_pages(columns, lines)
    assert len(shown) == pages
    assert read_words(shown[-1]) == SHARES[1]
    assert sorted(" ".join(shown).split()) == sorted(card.format(columns).split())
    assert lines in (None, 5) or max(page.count("\n") for page in shown) <= lines


def test_words_are_read_back_from_a_card() -> None:
    """The words read from a card's text are the words that were put on it."""
    for card, share in zip(make_cards(SHARES), SHARES, strict=True):
        assert read_words(card.format()) == share
        assert share not in repr(card)


def test_genesis_is_read_back_from_a_card() -> None:
    """The fingerprint read from a card's text is the one put on it, and a text without one is refused by name."""
    text = make_cards(SHARES)[0].format()
    assert is_card(text)
    assert not is_card(SHARES[0])
    assert read_genesis(text) == bytes(range(32))
    for spoiled in (text.replace("0001 0203", "0203"), text.replace("genesis  ", "origin   "), "", "genesis\n"):
        with pytest.raises(WordsError, match="no genesis"):
            read_genesis(spoiled)


@pytest.mark.parametrize("text", ["", "hello\n", "recovery words\n\n", "recovery words\n 1 academic\n\n"])
def test_what_is_no_card_is_refused(text: str) -> None:
    """A text without 33 words is not a card."""
    with pytest.raises(WordsError):
        read_words(text)
