"""Values of `secret put`: where they may come from, and that none is repeated in an error."""

import io
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pilot.errors import PilotError, UsageError
from pilot.terminal.field_files import parse_env, parse_json
from pilot.terminal.values import (
    MAX_VALUE_BYTES,
    Asked,
    Document,
    Given,
    Newline,
    Source,
    ValueReader,
    parse_sources,
)
from tests.pilot.person import DEADLINE_S, Person


class Nobody:
    """There is no terminal."""

    def is_there(self) -> bool:
        return False

    def check(self, hint: str) -> None:
        raise UsageError("there is no terminal to ask on", hint)

    def ask(self, prompt: str) -> str:
        raise AssertionError(f"asked: {prompt}")

    ask_hidden = ask


class Somebody(Nobody):
    """Answers each question with the next of *answers*."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.hidden: list[str] = []

    def is_there(self) -> bool:
        return True

    def check(self, hint: str) -> None:
        pass

    def ask(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self.answers.pop(0)

    def ask_hidden(self, prompt: str) -> str:
        self.hidden.append(prompt)
        return self.answers.pop(0)


def reader(
    asked: Asked | None = None,
    *,
    stdin: bytes = b"",
    is_terminal: bool = False,
    newline: Newline = Newline.WARN,
    allows_empty: bool = False,
) -> ValueReader:
    return ValueReader(
        asked or Nobody(), stdin=io.BytesIO(stdin), is_terminal=is_terminal, newline=newline, allows_empty=allows_empty
    )


@pytest.mark.parametrize(
    ("arguments", "sources"),
    [
        pytest.param([], [], id="none"),
        pytest.param(["@f"], [Source("value", Path("f"))], id="file"),
        pytest.param(["-"], [Source("value", Given.STDIN)], id="standard input"),
        pytest.param(["a=@f", "b=-"], [Source("a", Path("f")), Source("b", Given.STDIN)], id="two fields"),
        pytest.param(["a=@x=y"], [Source("a", Path("x=y"))], id="file with =, named"),
        pytest.param(["@x=y"], [Source("value", Path("x=y"))], id="file with ="),
        pytest.param(["a=@@f"], [Source("a", Path("@f"))], id="file with @"),
        pytest.param(["a", "b.c-d_1"], [Source("a", Given.PROMPT), Source("b.c-d_1", Given.PROMPT)], id="asked for"),
        pytest.param(["a=-", "b=-"], [Source("a", Given.STDIN), Source("b", Given.STDIN)], id="refused when read"),
    ],
)
def test_sources(arguments: list[str], sources: list[Source]) -> None:
    """Every documented form of a source is read."""
    assert parse_sources(arguments) == sources


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["a=hunter2"], "value 1: a value on the command line", id="plain value of a field"),
        pytest.param(["hunter2!"], "value 1: a value on the command line", id="value that is no name"),
        pytest.param(["@f", "hunter2" * 10], "value 2: a value on the command line", id="value longer than a name"),
        pytest.param(["hunter2\n"], "value 1: a value on the command line", id="value with a newline"),
        pytest.param(["=hunter2"], "value 1: a value on the command line", id="plain value of no field"),
        pytest.param(["hunter2=x"], "value 1: a value on the command line", id="value with = in it"),
        pytest.param(["hunter2="], "value 1: a value on the command line", id="value that ends with ="),
        pytest.param(["hunter2=="], "value 1: a value on the command line", id="value that ends with =="),
        pytest.param(["a=@"], "value 1: a value on the command line", id="file without a name"),
        pytest.param(["@"], "value 1: a value on the command line", id="@ alone"),
        pytest.param(["=@f"], "a field has no name", id="field without a name"),
        pytest.param(["a=@f", "a=-"], "value 2: names the same field as value 1", id="field twice"),
        pytest.param(["@f", "value=@g"], "value 2: names the same field as value 1", id="field twice, once unnamed"),
        pytest.param(["x=@f", "hunter2=-", "hunter2=-"], "value 3: names the same field as value 2", id="value twice"),
        pytest.param(["hunter2", "hunter2"], "value 2: names the same field as value 1", id="asked for twice"),
    ],
)
def test_wrong_sources_are_refused(arguments: list[str], named: str) -> None:
    """The error names what is wrong, and does not repeat what may be a secret."""
    with pytest.raises(UsageError, match=named) as caught:
        parse_sources(arguments)
    assert "hunter2" not in " ".join([str(caught.value), *caught.value.hints])


def test_values_are_taken_as_they_are(tmp_path: Path) -> None:
    """Bytes and newlines of files and standard input are kept."""
    file = tmp_path / "f"
    file.write_bytes(b"\xff\n")
    sources = [Source("a", file), Source("b", Given.STDIN)]
    assert reader(stdin=b"x\n").read(sources) == {"a": b"\xff\n", "b": b"x\n"}


WARNED = "pilot: warning: standard input ends with a newline, which becomes part of the value; --strip-newline takes it"


@pytest.mark.parametrize(
    ("read", "newline", "value", "is_warned"),
    [
        pytest.param(b"x\n", Newline.WARN, b"x\n", True, id="kept with a warning"),
        pytest.param(b"x\n", Newline.KEEP, b"x\n", False, id="kept"),
        pytest.param(b"x\n", Newline.STRIP, b"x", False, id="taken off"),
        pytest.param(b"x\r\n", Newline.STRIP, b"x", False, id="taken off with its carriage return"),
        pytest.param(b"x\n\n", Newline.STRIP, b"x\n", False, id="one of two"),
        pytest.param(b"x\r", Newline.STRIP, b"x\r", False, id="no newline"),
        pytest.param(b"a\nx", Newline.WARN, b"a\nx", False, id="not at the end"),
    ],
)
def test_a_final_newline(
    read: bytes, newline: Newline, value: bytes, is_warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`echo` puts one there, and hardly anybody means it. A file is more often meant as it is, so it never warns."""
    assert reader(stdin=read, newline=newline).read([Source("a", Given.STDIN)]) == {"a": value}
    assert capsys.readouterr().err.startswith(WARNED) is is_warned
    (tmp_path / "f").write_bytes(read)
    assert reader(newline=newline).read([Source("a", tmp_path / "f")]) == {"a": value}
    assert capsys.readouterr().err == ""


def test_values_beyond_the_limit_are_refused() -> None:
    """A megabyte is read, one byte more is refused, and an endless file is not read to its end."""
    stdin = Source("a", Given.STDIN)
    assert len(reader(stdin=b"x" * MAX_VALUE_BYTES).read([stdin])["a"]) == 1 << 20
    for source in (Source("a", Path("/dev/zero")), stdin):
        with pytest.raises(UsageError, match="more than 1048576 bytes, want at most 1 MiB"):
            reader(stdin=bytes(MAX_VALUE_BYTES + 1)).read([source])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The error names the file, not the field, which may be a value in the wrong place."""
    with pytest.raises(UsageError, match="^/.*nope: No such file"):
        reader().read([Source("a", tmp_path / "nope")])


def test_standard_input_is_read_once() -> None:
    """Neither two fields nor a field and a document can come from it."""
    twice = [Source("a", Given.STDIN), Source("b", Given.STDIN)]
    for sources, documents in ((twice, ()), (twice[:1], (Document(Given.STDIN, parse_json),))):
        with pytest.raises(UsageError, match="standard input is given twice"):
            reader(stdin=b"x").read(sources, documents)


def test_a_document_gives_many_fields(tmp_path: Path) -> None:
    """Beside others; its own values keep their newlines."""
    file = tmp_path / "f.json"
    file.write_text('{"a": "1\\n", "b": "2"}')
    read = reader(stdin=b"C=3", newline=Newline.STRIP).read(
        [Source("d", Path("/etc/hostname"))] if Path("/etc/hostname").exists() else [],
        [Document(file, parse_json), Document(Given.STDIN, parse_env)],
    )
    assert {"a": b"1\n", "b": b"2", "C": b"3"}.items() <= read.items()


def test_a_document_with_a_field_that_is_given_elsewhere_is_refused(tmp_path: Path) -> None:
    """Neither of the two wins."""
    file = tmp_path / "f.json"
    file.write_text('{"hunter2": "x"}')
    with pytest.raises(UsageError, match="standard input: gives a field that another") as caught:
        reader(stdin=b"x").read([Source("hunter2", Given.STDIN)], [Document(file, parse_json)])
    assert "hunter2" not in str(caught.value)


def test_a_wrong_document_is_named_and_not_repeated(tmp_path: Path) -> None:
    """Not even as the cause, which a traceback would show."""
    file = tmp_path / "f.env"
    file.write_text("A=1\nhunter2")
    with pytest.raises(UsageError, match=r"f\.env: line 2: want KEY=VALUE") as caught:
        reader().read([], [Document(file, parse_env)])
    assert "hunter2" not in repr(caught.value.__cause__) + str(caught.value)


@pytest.mark.parametrize(
    ("answers", "named"),
    [
        pytest.param(["a", "b"], "differ", id="two different answers"),
        pytest.param(["", "no"], "not confirmed: nothing was written", id="no answer"),
        pytest.param(["x" * 4095] * 2, "may be cut off", id="longer than a line of a terminal"),
    ],
)
def test_prompt_refuses(answers: list[str], named: str) -> None:
    """When the two answers differ or are empty, nothing is written."""
    with pytest.raises(PilotError, match=named):
        reader(Somebody(*answers)).read([Source("value", Given.PROMPT)])


def test_each_field_is_asked_for_twice_and_hidden() -> None:
    """By its name; standard input that is a terminal is asked as well, where a pipe would be read."""
    somebody = Somebody("sécret", "sécret", "x", "x")
    sources = [Source("user", Given.PROMPT), Source("password", Given.STDIN)]
    read = reader(somebody, is_terminal=True).read(sources)
    assert read == {"user": "sécret".encode(), "password": b"x"}
    assert somebody.hidden == ["user: ", "once more: ", "password: ", "once more: "]
    assert somebody.asked == []


def test_without_a_terminal_nothing_is_read_before_the_refusal() -> None:
    """Whoever is asked for the third field has not lost what standard input had."""
    stdin = io.BytesIO(b"x")
    values = ValueReader(Nobody(), stdin=stdin, is_terminal=False)
    with pytest.raises(UsageError, match="there is no terminal to ask on"):
        values.read([Source("a", Given.STDIN), Source("b", Given.PROMPT)])
    assert stdin.read() == b"x"


EMPTY = [
    pytest.param([Source("a", Given.STDIN)], [], "standard input", id="standard input"),
    pytest.param([Source("a", Path("/dev/null"))], [], "/dev/null", id="a file"),
    pytest.param([], [Document(Path("/dev/null"), lambda _: {"hunter2": b""})], "/dev/null: field 1", id="of several"),
]


@pytest.mark.parametrize(("sources", "documents", "name"), EMPTY)
def test_an_empty_value_is_asked_about_or_refused(sources: list[Source], documents: list[Document], name: str) -> None:
    """It is rarely meant: a variable was not set, or a file not written yet."""
    with pytest.raises(UsageError, match=f"^{name}: is empty$") as caught:
        reader().read(sources, documents)
    assert caught.value.hints == ("--allow-empty writes an empty value",)
    somebody = Somebody("yes", "no")
    assert list(reader(somebody).read(sources, documents).values()) == [b""]
    assert somebody.asked == [f"{name} is empty; write it so? [yes/no]: "]
    with pytest.raises(PilotError, match="nothing was written"):
        reader(somebody).read(sources, documents)
    assert list(reader(allows_empty=True).read(sources, documents).values()) == [b""]


def test_an_empty_answer_is_asked_about() -> None:
    """Once for the value, and once whether it is meant."""
    somebody = Somebody("", "yes")
    assert reader(somebody).read([Source("a", Given.PROMPT)]) == {"a": b""}
    assert (somebody.hidden, somebody.asked) == (["a: "], ["the value of a is empty; write it so? [yes/no]: "])


def test_a_line_that_the_terminal_cuts_is_refused() -> None:
    """A line so long that the terminal may have cut it is refused, so no part is silently lost."""
    person = Person()
    person.act(("value: ", "x" * 5000))
    with pytest.raises(UsageError, match="may be cut off"):
        reader(person.terminal).read([Source("value", Given.PROMPT)])
    person.leave()


def test_a_signal_at_the_prompt_leaves_the_terminal_as_it_was() -> None:
    """SIGTERM at the prompt ends pilot, and what is typed afterwards is shown again."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "pilot", "secret", "put", "team/app"]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower) as process:
        seen = b""
        while b"value: " not in seen:
            seen += os.read(leader, 4096)
        process.terminate()
        assert process.wait(6 * DEADLINE_S) == 130
    assert termios.tcgetattr(follower)[3] & termios.ECHO
    os.close(follower)
    os.close(leader)
