"""Text that fits a terminal, and how wide and high that is."""

import io
import os
import pty

import pytest

from pilot.terminal.wrapping import count_columns, count_lines, wrap


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        pytest.param("", [""], id="nothing"),
        pytest.param("short  and   as is", ["short  and   as is"], id="fits"),
        pytest.param("one two three four five six", ["one two three four", "five six"], id="between words"),
        pytest.param("one\n\ntwo three four five six", ["one", "", "two three four five", "six"], id="lines stay"),
        pytest.param("    indented text that is long", ["    indented text", "    that is long"], id="indent"),
        pytest.param("- an item of a list that is long", ["- an item of a list", "  that is long"], id="item"),
        pytest.param("open it with 'pilot unseal'.", ["open it with", "'pilot unseal'."], id="command"),
        pytest.param(
            "it (see 'pilot status now') is", ["it (see", "'pilot status now')", "is"], id="command in brackets"
        ),
        pytest.param("a nexus's and keepers' state here", ["a nexus's and", "keepers' state here"], id="apostrophes"),
        pytest.param(
            "a/long/path/that/does/not/fit", ["a/long/path/that/does/not/fit"], id="a long word is left whole"
        ),
        pytest.param("see a/long/path/that/is/too/long", ["see", "a/long/path/that/is/too/long"], id="and on its own"),
    ],
)
def test_wrapping(text: str, lines: list[str]) -> None:
    """Lines of at most 20 columns."""
    assert wrap(text, 20) == lines


def test_folding() -> None:
    """What has a column of its own folds its long words into it."""
    assert wrap("see a/long/path/that/is/too/long", 20, folds=True) == ["see", "a/long/path/that/is/", "too/long"]


def test_elsewhere_than_on_a_terminal() -> None:
    """Lines are as they are."""
    assert wrap("x " * 500 + "\ny", None) == ["x " * 500, "y"]


@pytest.mark.parametrize(("columns", "width"), [(1, 10), (-5, 10), (12, 12)])
def test_hardly_any_room(columns: int, width: int) -> None:
    """In less than ten columns nobody could read."""
    assert max(map(len, wrap("one two three four five", columns))) <= width


def test_the_size_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables win; a terminal that does not say, and what is none, have no size."""
    for variable in ("COLUMNS", "LINES"):
        monkeypatch.delenv(variable, raising=False)
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        assert (count_columns(stream), count_lines(stream)) == (None, None)
        monkeypatch.setenv("COLUMNS", "50")
        monkeypatch.setenv("LINES", "24")
        assert (count_columns(stream), count_lines(stream)) == (50, 24)
        monkeypatch.setenv("COLUMNS", "wide")
        assert count_columns(stream) is None
    os.close(leader)
    assert (count_columns(io.StringIO()), count_lines(io.StringIO())) == (None, None)
