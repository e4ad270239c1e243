"""Errors, hints and notes: one form for people, one for programs, and neither steers a terminal."""

import io
import json
import sys

import pytest

from pilot.errors import PilotError
from pilot.terminal.report import print_hint, print_note, read_message, report, wants_json


class Screen(io.StringIO):
    """A terminal, as far as it says so itself."""

    def isatty(self) -> bool:
        return True


def test_messages_are_lower_case_without_a_full_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages from elsewhere are brought into pilot's form; names keep theirs."""
    report(PilotError("Connection refused.", "NEXUS_SEALED stays", "I/O too…", "BeginInit as well"))
    assert capsys.readouterr().err.splitlines() == [
        "pilot: error: connection refused",
        "pilot: hint: NEXUS_SEALED stays",
        "pilot: hint: I/O too…",
        "pilot: hint: BeginInit as well",
    ]


def test_an_error_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """It is one line of JSON, with the hints together, and nothing in it controls a terminal."""
    report(PilotError("A\x1b[2J", "one.", "two", exit_code=5, reason="NEXUS_SEALED"), as_json=True)
    line = capsys.readouterr().err
    assert (line.count("\n"), "\x1b" in line) == (1, False)
    assert json.loads(line) == {
        "error": {"message": "A\x1b[2J", "hint": "one\ntwo", "reason": "NEXUS_SEALED", "exit_code": 5}
    }


@pytest.mark.parametrize(
    ("written", "message"),
    [
        pytest.param('{"error": {"message": "no way", "hint": null}}\n', "no way", id="an error"),
        pytest.param("pilot: warning: something else\n", "pilot: warning: something else", id="something else"),
        pytest.param("[]", "[]", id="another document"),
        pytest.param('{"error": "x"}', '{"error": "x"}', id="another error"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_reading_an_error(written: str, message: str) -> None:
    """What pilot wrote for a program is read back, and anything else is passed on."""
    assert read_message(written) == message


def test_people_on_a_terminal_get_lines_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts break between words, and a command that may be copied stays whole."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "40")
    report(
        PilotError("the store is older than its keepers remember", "lose what is missing with 'pilot x --y 1 --z 2'")
    )
    print_hint("short")
    print_note("a note is shown with the name alone, without a further word")
    assert screen.getvalue().splitlines() == [
        "pilot: error: the store is older than",
        "its keepers remember",
        "pilot: hint: lose what is missing with",
        "'pilot x --y 1 --z 2'",
        "pilot: hint: short",
        "pilot: a note is shown with the name",
        "alone, without a further word",
    ]


@pytest.mark.parametrize(
    ("typed", "is_wanted"),
    [
        pytest.param("status", False, id="nothing"),
        pytest.param("status -o json", True, id="short"),
        pytest.param("status -ojson", True, id="in one word"),
        pytest.param("--output json status", True, id="before the command"),
        pytest.param("status --output=json", True, id="with ="),
        pytest.param("-o json status -o table", False, id="the last counts"),
        pytest.param("-o table status -o json", True, id="the last counts, JSON"),
        pytest.param("status -o xml", False, id="no form"),
        pytest.param("dev exec --as a -- tool -o json", False, id="of another program"),
        pytest.param("secret get json -o", False, id="without a value"),
    ],
)
def test_what_asks_for_json(typed: str, is_wanted: bool) -> None:
    """The options say it wherever they stand, also where the rest cannot be parsed."""
    assert wants_json(typed.split()) is is_wanted
