"""What people give: words, cards, files and arguments. Errors are ours, and never repeat a word or a value."""

import io
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from common.errors import WordsError
from common.keys import words
from pilot.commands.policy_file import parse_policies
from pilot.custody.card import read_genesis, read_words
from pilot.custody.given_share import read_given_share
from pilot.custody.words_entry import WordsEntry
from pilot.errors import UsageError
from pilot.terminal.field_files import FieldsError, parse_env, parse_json
from pilot.terminal.values import Given, ValueReader, parse_sources
from tests.fuzz.budget import budget
from tests.fuzz.mutations import hostile, hostile_text
from tests.kit.cards import make_cards

SHARES = words.split(bytes(32), 2, 3)
CARD = make_cards(SHARES)[0].format()
WIRE = words.encode_share(SHARES[0])
POLICY = """
[[policy]]
name = "app"
spiffe_ids = ["spiffe://example.org/team/*"]
paths = ["team/app/**"]
permissions = ["read", "list"]
"""
VALUE = b"hunter2-which-nobody-may-see"


def assert_shows_no_word(error: Exception) -> None:
    """Require that a message has no word of the shares, except the three list words that messages use."""
    spoken = {"standard", "stay", "together"}
    said = set(str(error).replace(":", " ").split())
    assert not said & (set(" ".join(SHARES).split()) - spoken), error


@budget(2)
@given(hostile_text(*SHARES))
def test_typed_words(typed: str) -> None:
    """Typed words make a share that comes back from its wire form, or are refused without being shown."""
    try:
        share = words.read_share(typed)
    except WordsError as exc:
        assert_shows_no_word(exc)
        return
    assert words.decode_share(words.encode_share(typed)) == share.words


@budget(3)
@given(hostile(WIRE) | st.binary(min_size=len(WIRE), max_size=len(WIRE)))
def test_wire_form(wire: bytes) -> None:
    """Any 66 bytes make the words that encode to them, or are refused."""
    try:
        typed = words.decode_share(wire)
    except WordsError as exc:
        assert_shows_no_word(exc)
        return
    assert words.encode_share(typed) == wire


@budget(0.5)
@given(st.lists(hostile_text(*SHARES) | st.sampled_from(SHARES), max_size=4))
def test_shares_together(shares: list[str]) -> None:
    """Any shares together give the seed or a WordsError, never another seed."""
    try:
        seed = words.combine(shares)
    except WordsError as exc:
        assert_shows_no_word(exc)
        return
    assert seed == bytes(32)


@budget(3)
@given(hostile_text(CARD, CARD.replace("genesis", "Genesis"), "\n".join(SHARES)))
def test_card(text: str) -> None:
    """A card gives its words, not yet checked, and its fingerprint, or an error that says what is missing."""
    for read in (read_words, read_genesis):
        try:
            found = read(text)
        except WordsError as exc:
            assert_shows_no_word(exc)
        else:
            assert len(found.split() if isinstance(found, str) else found) in (32, words.WORDS)


@budget(3)
@given(hostile(CARD.encode(), SHARES[1].encode(), b"\xff\xfe"))
def test_given_share(content: bytes) -> None:
    """A given file is a share or a usage error."""
    try:
        given_share = read_given_share(["-"], io.BytesIO(content))
    except UsageError as exc:
        assert_shows_no_word(exc)
        return
    assert given_share is not None
    assert words.encode_share(given_share.share.words)


@budget(2)
@given(hostile_text(*SHARES, "\x1b[A\x7f\x15 "))
def test_keys_pressed(keys: str) -> None:
    """No message says anything of the keys that were pressed."""
    entry = WordsEntry()
    for key in keys:
        said = entry.press(key)
        assert len(said) < 100
        assert not said or "word" in said or "share" in said


def assert_hides(error: UsageError, value: str) -> None:
    assert value not in " ".join((str(error), *error.hints)), error


def assert_names(error: UsageError, origin: str) -> None:
    assert str(error).startswith(origin), error


class Typist:
    """Answers whatever is asked."""

    def is_there(self) -> bool:
        return True

    def check(self, hint: str) -> None:
        """There is always somebody."""

    def ask(self, prompt: str) -> str:
        return "typed"

    ask_hidden = ask


# As the kernel passes them: any bytes but NUL.
ARGUMENTS = st.lists(
    hostile(b"password=@file", b"-", b"field=-", b"=@x", b"user=" + VALUE, VALUE, VALUE + b"==").map(
        lambda raw: os.fsdecode(raw.replace(b"\0", b""))
    ),
    max_size=4,
)


@budget(3)
@given(ARGUMENTS, st.binary(max_size=20))
def test_values(arguments: list[str], stdin: bytes) -> None:
    """Sources are read or are a usage error, which never shows what may be a value."""
    try:
        sources = parse_sources(arguments)
        reader = ValueReader(Typist(), stdin=io.BytesIO(stdin), is_terminal=False, allows_empty=True)
        values = reader.read([one for one in sources if isinstance(one.origin, Given) or not one.origin.exists()])
    except UsageError as exc:
        if not any("@" in argument for argument in arguments):  # a file's name is not secret
            assert_hides(exc, VALUE.decode())
        return
    assert all(isinstance(value, bytes) for value in values.values())


@budget(3)
@given(hostile(b'{"password": "' + VALUE + b'"}', b"PASSWORD=" + VALUE + b"\n# x\n", VALUE, b'{"' + VALUE + b'": 1}'))
def test_files_of_fields(content: bytes) -> None:
    """Both forms give fields or say where they do not, and never what stands there."""
    for parse in (parse_json, parse_env):
        try:
            fields = parse(content)
        except FieldsError as exc:
            assert_hides(UsageError(str(exc)), VALUE.decode())
            continue
        assert fields
        assert all(isinstance(value, bytes) for value in fields.values())


@budget(3)
@given(hostile_text(POLICY, "policy = []", "x = " + "[" * 2_000))
def test_policy_file(text: str) -> None:
    """A file gives policies, or is a usage error that names it."""
    try:
        policies = parse_policies(text, origin="app.toml")
    except UsageError as exc:
        assert_names(exc, "app.toml: ")
        return
    assert policies


def test_the_words_above_are_a_share() -> None:
    """The unchanged seeds are a share: otherwise nothing above would get past the first check."""
    assert words.combine(SHARES[:2]) == bytes(32)
    assert read_words(CARD) == SHARES[0]
    assert len(parse_policies(POLICY, origin="")) == 1
    assert not Path("@").exists()
