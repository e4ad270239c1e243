"""Entering words: each is checked as it is typed, none is shown, and every mistake is reported by its position."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.keys.words import WORDS, split
from pilot.custody.words_entry import WordsEntry, ask_words
from tests.pilot.person import Person, swap_words

SHARE, OTHER, _ = split(bytes(32), 2, 3)
TYPED = SHARE.split()


def type_into(entry: WordsEntry, keys: str) -> list[str]:
    """Press keys one by one; return what was said."""
    return [said for key in keys if (said := entry.press(key))]


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(SHARE + "\n", id="as on the card, then Enter"),
        pytest.param(SHARE + " ", id="then a blank"),
        pytest.param(SHARE.upper() + "\n", id="in capitals"),
        pytest.param(" ".join(word[:4] for word in TYPED) + "\n", id="four letters of each"),
        pytest.param("\n".join(TYPED) + "\n", id="Enter behind each word"),
        pytest.param("  " + "   ".join(TYPED) + "\t\n", id="many blanks"),
        pytest.param(" ".join(f"{at} {word}" for at, word in enumerate(TYPED, 1)) + "\n", id="with the card's numbers"),
        pytest.param("xyzzy " + SHARE + "\n", id="after a word that is none"),
        pytest.param(TYPED[0][:-1] + "qq\x7f\b" + SHARE[len(TYPED[0]) - 1 :] + "\n", id="letters taken back"),
        pytest.param("zero zero \x7f\x7f" + SHARE + "\n", id="words taken back"),
        pytest.param("zero zero zer\x15" + SHARE + "\n", id="all taken back"),
        pytest.param(SHARE.replace(" ", "\x1b[A\x1b[3~\x1bOP ", 3) + "\n", id="arrows and function keys between"),
        pytest.param("\x7f\x7f" + SHARE + "\n", id="Backspace with nothing there"),
    ],
)
def test_words_are_taken(keys: str) -> None:
    """Any accepted way of typing the words of a share gives that share."""
    entry = WordsEntry()
    said = type_into(entry, keys)
    assert entry.share is not None
    assert entry.share.words == SHARE
    assert said == (["word 1 is not in the list: type it again"] if "xyzzy" in keys else [])


def test_a_wrong_word_is_said_at_once() -> None:
    """A word that is not in the list is reported by its position, and only that word is typed again."""
    entry = WordsEntry()
    assert not type_into(entry, " ".join(TYPED[:6]) + " ")
    assert type_into(entry, "aca ") == ["word 7 is not in the list: type it again"]
    assert type_into(entry, "hunter ") == ["word 7 is not in the list: type it again"]
    assert entry.count == 6
    assert not type_into(entry, " ".join(TYPED[6:]) + "\n")
    assert entry.share is not None


def test_a_wrong_checksum_begins_again() -> None:
    """Two swapped words are found after the last word; then the right ones are accepted."""
    entry = WordsEntry()
    (said,) = type_into(entry, swap_words(SHARE) + "\n")
    assert said.startswith("the checksum does not fit")
    assert said.endswith("begin again with word 1")
    assert (entry.count, entry.share) == (0, None)
    type_into(entry, SHARE + "\n")
    assert entry.share is not None


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("acdemi \n\x7f\x15\x1b[~O1é"), max_size=200))
def test_no_keys_break_it(keys: str) -> None:
    """Whatever is pressed, the count stays within its bounds, and nothing that was typed is shown."""
    entry = WordsEntry()
    for said in type_into(entry, keys):
        assert "is not in the list" in said or "checksum" in said
    assert 0 <= entry.count < WORDS


def test_a_person_at_the_prompt() -> None:
    """Only the number of words is shown, and a complaint appears at once, before the next words."""
    person = Person()
    person.act(
        ("0 of 33 words: ", "zzzz"),
        ("word 1 is not in the list: type it again", " ".join(TYPED[:20])),
        ("20 of 33 words: ", " ".join(TYPED[20:])),
    )
    share = ask_words(person.terminal, "Enter the words.")
    assert share.words == SHARE
    assert person.is_echoing()
    seen = person.leave()
    assert "33 of 33 words" in seen
    assert not any(f"{word} {behind}" in seen for word, behind in pairwise(TYPED))


def test_what_is_typed_too_much_answers_no_other_question() -> None:
    """Anything typed after the last word is discarded with the line, and answers no later question."""
    person = Person()
    person.act(("0 of 33 words: ", SHARE + " yes yes"), ("sure? ", "no"))
    ask_words(person.terminal, "Enter the words.")
    assert person.terminal.ask("sure? ") == "no"
    person.leave()


def test_the_end_of_input_ends_it() -> None:
    """Ctrl-D and a terminal that goes away end the input, and the echo is on again."""
    person = Person()
    person.act(("0 of 33 words: ", "academic \x04"))
    with pytest.raises(EOFError):
        ask_words(person.terminal, "Enter the words.")
    assert person.is_echoing()
    person.leave()
