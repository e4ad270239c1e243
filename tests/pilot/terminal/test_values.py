"""Values of `secret put`: where they may come from, and that none is repeated in an error."""

import io
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pilot.errors import UsageError
from pilot.terminal.values import MAX_VALUE_BYTES, Source, parse_sources, read_values
from tests.pilot.person import DEADLINE_S, Person


def never(prompt: str) -> str:
    raise AssertionError(f"asked: {prompt}")


@pytest.mark.parametrize(
    ("arguments", "sources"),
    [
        pytest.param([], [], id="none"),
        pytest.param(["@f"], [Source("value", Path("f"))], id="file"),
        pytest.param(["-"], [Source("value", None)], id="standard input"),
        pytest.param(["a=@f", "b=-"], [Source("a", Path("f")), Source("b", None)], id="two fields"),
        pytest.param(["a=@x=y"], [Source("a", Path("x=y"))], id="file with =, named"),
        pytest.param(["@x=y"], [Source("value", Path("x=y"))], id="file with ="),
        pytest.param(["a=@@f"], [Source("a", Path("@f"))], id="file with @"),
    ],
)
def test_sources(arguments: list[str], sources: list[Source]) -> None:
    """Every documented form of a source is read."""
    assert parse_sources(arguments) == sources


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(["a=hunter2"], "value 1: a value on the command line", id="plain value of a field"),
        pytest.param(["hunter2"], "value 1: a value on the command line", id="plain value"),
        pytest.param(["@f", "hunter2"], "value 2: a value on the command line", id="plain value behind a file"),
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
        pytest.param(["a=-", "b=-"], "standard input is given twice", id="standard input twice"),
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
    sources = [Source("a", file), Source("b", None)]
    assert read_values(sources, stdin=io.BytesIO(b"x\n"), ask=never) == {"a": b"\xff\n", "b": b"x\n"}


def test_values_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    """A megabyte is read, one byte more is refused, and an endless file is not read to its end."""
    assert len(read_values([Source("a", None)], stdin=io.BytesIO(bytes(MAX_VALUE_BYTES)), ask=never)["a"]) == 1 << 20
    for source in (Source("a", Path("/dev/zero")), Source("a", None)):
        with pytest.raises(UsageError, match="more than 1048576 bytes"):
            read_values([source], stdin=io.BytesIO(bytes(MAX_VALUE_BYTES + 1)), ask=never)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The error names the file, not the field, which may be a value in the wrong place."""
    with pytest.raises(UsageError, match="^/.*nope: No such file"):
        read_values([Source("a", tmp_path / "nope")], stdin=io.BytesIO(), ask=never)


@pytest.mark.parametrize(
    ("answers", "named"),
    [
        pytest.param(["a", "b"], "differ", id="two different answers"),
        pytest.param([""], "empty", id="no answer"),
        pytest.param(["x" * 4095] * 2, "may be cut off", id="longer than a line of a terminal"),
    ],
)
def test_prompt_refuses(answers: list[str], named: str) -> None:
    """When the two answers differ or are empty, nothing is written."""
    with pytest.raises(UsageError, match=named):
        read_values([], stdin=io.BytesIO(), ask=lambda _: answers.pop(0))


def test_prompt_asks_twice() -> None:
    """Without sources the prompt asks for the value twice."""
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return "sécret"

    assert read_values([], stdin=io.BytesIO(), ask=ask) == {"value": "sécret".encode()}
    assert len(prompts) == 2


def test_a_line_that_the_terminal_cuts_is_refused() -> None:
    """A line so long that the terminal may have cut it is refused, so no part is silently lost."""
    person = Person()
    person.act(("value: ", "x" * 5000))
    with pytest.raises(UsageError, match="may be cut off"):
        read_values([], stdin=io.BytesIO(), ask=person.terminal.ask_hidden)
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
