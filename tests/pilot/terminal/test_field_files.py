"""Files with several fields: JSON objects and env files, and that no error repeats what stands in them."""

import pytest

from pilot.terminal.field_files import FieldsError, parse_env, parse_json


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        pytest.param(b'{"a": "1", "b": ""}', {"a": b"1", "b": b""}, id="two fields"),
        pytest.param(b' {"a":\n"\\u00e9\\n\\ud83d\\ude00 \xc3\xa9"}\n', {"a": "é\n😀 é".encode()}, id="escapes"),
    ],
)
def test_json(content: bytes, fields: dict[str, bytes]) -> None:
    """Each string is a value, in UTF-8."""
    assert parse_json(content) == fields


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(b'{"a": "hunter2', "is not JSON: line 1, column 7", id="no JSON"),
        pytest.param(b'{"a": "\\hunter2"}', "is not JSON: line 1, column 8", id="wrong escape"),
        pytest.param(b'"hunter2"', "want an object of strings", id="a string"),
        pytest.param(b'[["a", "hunter2"]]', "want an object of strings", id="a list of pairs"),
        pytest.param(b"{}", "has no field", id="nothing"),
        pytest.param(b'{"a": "1", "b": 2}', "field 2: want a string", id="a number"),
        pytest.param(b'{"a": {"hunter2": "1"}}', "field 1: want a string", id="an object"),
        pytest.param(b'{"a": "hunter2", "a": "1"}', "field 2: has the name of an earlier one", id="a name twice"),
        pytest.param(b'{"hunter2 ": "1"}', "field 1: its name is not 1 to 64 of [A-Za-z0-9._-]", id="no name"),
        pytest.param(b'{"a": "\\ud800"}', "field 1: has half of a surrogate pair, which is no text", id="half a pair"),
        pytest.param(b'{"a": "\xff"}', "is not UTF-8", id="no text"),
        pytest.param(b'{"a": ' + b"[" * 100_000, "is nested too deeply", id="brackets"),
        pytest.param(b'{"a": ' + b"1" * 5000 + b"}", "want an object of strings", id="a very long number"),
    ],
)
def test_wrong_json(content: bytes, error: str) -> None:
    """The error says where, and repeats nothing."""
    with pytest.raises(FieldsError) as caught:
        parse_json(content)
    assert str(caught.value) == error
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        pytest.param(b"A=1\nB=2", {"A": b"1", "B": b"2"}, id="two fields"),
        pytest.param(b"A=1\r\nB=2\r\n", {"A": b"1", "B": b"2"}, id="carriage returns"),
        pytest.param(b"\xef\xbb\xbfA=1", {"A": b"1"}, id="byte order mark"),
        pytest.param(b"# a\n\n  \t# b=c\n \t A=1", {"A": b"1"}, id="comments, empty lines, blanks before"),
        pytest.param(b"A= 1 # x \n", {"A": b" 1 # x "}, id="blanks and comments are part of a value"),
        pytest.param(b"A=\"1\"\nB='$A'\\n", {"A": b'"1"', "B": b"'$A'\\n"}, id="quotes, variables, escapes too"),
        pytest.param(b"A=b=c=\n", {"A": b"b=c="}, id="only the first ="),
        pytest.param(b"A=\nB= ", {"A": b"", "B": b" "}, id="empty"),
        pytest.param("A=é\x85\u2028x".encode(), {"A": "é\x85\u2028x".encode()}, id="other ends of lines"),
        pytest.param(b"a.b-c_1=x", {"a.b-c_1": b"x"}, id="every kind of character"),
    ],
)
def test_env_file(content: bytes, fields: dict[str, bytes]) -> None:
    """As docker reads them."""
    assert parse_env(content) == fields


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(b"", "has no field", id="empty"),
        pytest.param(b"# A=1\n", "has no field", id="a comment alone"),
        pytest.param(b"A=1\nhunter2\n", "line 2: want KEY=VALUE", id="a key alone, which docker takes elsewhere"),
        pytest.param(b"\n=hunter2", "line 2: its name is not 1 to 64 of [A-Za-z0-9._-]", id="no key"),
        pytest.param(b"A =hunter2", "line 1: its name is not 1 to 64 of [A-Za-z0-9._-]", id="a blank after the key"),
        pytest.param(b"export A=hunter2", "line 1: its name is not 1 to 64 of [A-Za-z0-9._-]", id="a line of a shell"),
        pytest.param(b"A=1\n\nA=hunter2", "line 3: has the name of an earlier one", id="a key twice"),
        pytest.param(b"A=\xff", "is not UTF-8", id="no text"),
    ],
)
def test_wrong_env_file(content: bytes, error: str) -> None:
    """The line is named, and not repeated."""
    with pytest.raises(FieldsError) as caught:
        parse_env(content)
    assert str(caught.value) == error
    assert caught.value.__cause__ is None
