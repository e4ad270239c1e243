"""Text that controls no terminal."""

import json

from hypothesis import given
from hypothesis import strategies as st

from pilot.plain import clean, escape_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def is_plain(text: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in text)


@given(TEXT)
def test_what_is_cleaned_controls_nothing(text: str) -> None:
    """What could is replaced, one for one."""
    assert is_plain(clean(text))
    assert len(clean(text)) == len(text)


@given(st.recursive(TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner)))
def test_an_escaped_document_says_the_same(document: object) -> None:
    """Escapes are part of JSON: a program reads what was there."""
    escaped = escape_json(json.dumps(document, indent=2, ensure_ascii=False))
    assert is_plain(escaped)
    assert json.loads(escaped) == document


def test_what_terminals_take_for_a_command() -> None:
    """DEL, a C1 control, and a turn of direction, which `json` leaves as they are."""
    assert escape_json('"\x7f\x9b\u202e\U000e0001"') == r'"\u007f\u009b\u202e\udb40\udc01"'
