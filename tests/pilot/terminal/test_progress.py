"""A long wait as people see it: bar, durations, and one line on a terminal or a few elsewhere."""

import io
import math

import pytest

from pilot.terminal.progress import ProgressLine, render_bar, show_duration
from tests.kit.manual_clock import ManualClock


class Screen(io.StringIO):
    """A terminal, as far as it says so itself."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("share", "bar"),
    [
        pytest.param(0.0, "", id="nothing"),
        pytest.param(1 / 161, "", id="less than an eighth"),
        pytest.param(1 / 160, "▏", id="an eighth"),
        pytest.param(0.5, "█" * 10, id="half"),
        pytest.param(0.51, "█" * 10 + "▏", id="a little more"),
        pytest.param(0.999, "█" * 19 + "▉", id="not done"),
        pytest.param(1.0, "█" * 20, id="done"),
        pytest.param(7.0, "█" * 20, id="too much"),
        pytest.param(-1.0, "", id="too little"),
    ],
)
def test_a_bar(share: float, bar: str) -> None:
    """Always of the same width, and never full before the end."""
    assert render_bar(share) == bar.ljust(20)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.2, "1 s"),
        (59, "59 s"),
        (59.5, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (90_000, "1 d 1 h"),
        (1e9, "11,574 d 1 h"),
        (math.inf, "unknown"),
        (math.nan, "unknown"),
        (-1, "unknown"),
    ],
)
def test_a_duration(seconds: float, shown: str) -> None:
    """Rounded up, in two units; a nexus may say anything."""
    assert show_duration(seconds) == shown


def test_a_terminal_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is redrawn in its place, no wider than the terminal; the end stands in it."""
    monkeypatch.setenv("COLUMNS", "10")
    screen = Screen()
    line = ProgressLine(stream=screen)
    line.show("1 of 3")
    line.show("1 of 3")
    line.show("2 of 3, and much more")
    line.finish("done")
    assert screen.getvalue() == "\r\x1b[K1 of 3\r\x1b[K2 of 3, a\r\x1b[Kdone\n"


def test_a_hint_gets_a_line_of_its_own() -> None:
    """And the progress stands below it again, although it is the same."""
    screen = Screen()
    line = ProgressLine(stream=screen)
    line.end_line()
    line.show("1 of 3")
    line.end_line()
    line.end_line()
    line.show("1 of 3")
    assert screen.getvalue() == "\r\x1b[K1 of 3\n\r\x1b[K1 of 3"


def test_elsewhere_a_line_now_and_then() -> None:
    """The first at once, then what is new every 10 seconds; nothing but text."""
    clock, stream = ManualClock(), io.StringIO()
    line = ProgressLine(stream=stream, monotonic=clock.monotonic)
    for second in range(31):
        line.show(f"{second} of 30" if second < 25 else "25 of 30  ")
        clock.advance(1)
    line.end_line()
    line.finish("done")
    assert stream.getvalue() == "0 of 30\n10 of 30\n20 of 30\n25 of 30\ndone\n"


def test_for_programs_nothing_is_shown() -> None:
    """The document that they wait for comes alone."""
    stream = Screen()
    line = ProgressLine(is_shown=False, stream=stream)
    line.show("1 of 3")
    line.finish("done")
    assert stream.getvalue() == ""
