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
        pytest.param("xyzzy\n" + SHARE + "\n", id="after a word that is none"),
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


@pytest.mark.parametrize(
    ("wrong", "lines", "said"),
    [
        pytest.param([7], [33], ["7: go on with word 8"], id="one, in one line"),
        pytest.param([7, 9], [33], ["7: go on with word 8", "9: go on with word 10"], id="two"),
        pytest.param([33], [33], ["33: type it again"], id="the last"),
        pytest.param([7, 33], [33], ["7: go on with word 8", "33: go on with word 7"], id="the last, and one before"),
        pytest.param([4], [4, 8, 33], ["4: type it again"], id="at the end of a line"),
        pytest.param([2, 6], [4, 8, 33], ["2: go on with word 3", "6: go on with word 7"], id="in lines, as on a card"),
    ],
)
def test_a_line_with_wrong_words_keeps_the_others(wrong: list[int], lines: list[int], said: list[str]) -> None:
    """Each wrong word is said at once; after the line, or the last word, these alone are asked for, in their places."""
    entry = WordsEntry()
    heard = []
    start = 0
    for end in lines:
        typed = [word if start + at not in wrong else "xyzzy" for at, word in enumerate(TYPED[start:end], start=1)]
        heard += type_into(entry, " ".join(typed) + "\n")
        for place in (place for place in wrong if start < place <= end):
            assert entry.prompt.endswith(f" words, now word {place}: ")
            heard += type_into(entry, TYPED[place - 1] + "\n")
        start = end
    assert [one.removeprefix("word ").replace(" is not in the list", "").partition(",")[0] for one in heard] == said
    assert entry.share is not None
    assert entry.share.words == SHARE


def test_an_open_place_is_asked_for_until_it_is_filled() -> None:
    """Another wrong word leaves it open, and Backspace takes back a wrong word as it does a right one."""
    entry = WordsEntry()
    assert type_into(entry, "xyzzy zzzz \x7f" + " ".join(TYPED[1:]) + "\n")
    assert type_into(entry, "hunter\n") == ["word 1 is not in the list: type it again"]
    assert entry.prompt == "32 of 33 words, now word 1: "
    assert not type_into(entry, TYPED[0] + " ")
    assert entry.share is not None


def test_an_open_place_is_asked_for_after_the_last_word() -> None:
    """Without Enter too."""
    entry = WordsEntry()
    type_into(entry, " ".join(["xyzzy", *TYPED[1:]]) + " ")
    assert entry.prompt == "32 of 33 words, now word 1: "
    type_into(entry, f"{TYPED[0]} ")
    assert entry.share is not None


def test_backspace_opens_a_place_again() -> None:
    """A word that filled an open place is taken back to that place."""
    entry = WordsEntry()
    type_into(entry, f"{TYPED[0]} xyzzy zzzz\n{TYPED[5]}\n")
    assert entry.prompt == "2 of 33 words, now word 3: "
    type_into(entry, "\x7f")
    assert entry.prompt == "1 of 33 words, now word 2: "
    type_into(entry, " ".join(TYPED[1:]) + "\n")
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
        assert entry.prompt
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
    assert seen.index("Enter the words.") < seen.index("0 of 33 words: ")
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
