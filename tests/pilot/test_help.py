"""Help, walked through for every command there is: a text, an example that parses, and no option without a word."""

import re
import shlex
from typing import Any

import pytest
import typer

from pilot.app import app
from pilot.examples import EXAMPLES
from pilot.help import add_help, find_example
from tests.kit.transcript import run_pilot

ROOT: Any = typer.main.get_command(app)
add_help(ROOT)
CONTEXT = typer.Context(ROOT, info_name="pilot")


def walk(command: Any, path: tuple[str, ...] = ()) -> list[Any]:
    """Return every command and group below, with the words that one types for it."""
    children: list[str] = getattr(command, "list_commands", lambda _: [])(CONTEXT)
    found = [pytest.param(command, path, id=" ".join(path) or "pilot")]
    return found + [one for name in children for one in walk(command.get_command(CONTEXT, name), (*path, name))]


EVERYTHING = walk(ROOT)
COMMANDS = [one for one in EVERYTHING if not hasattr(one.values[0], "list_commands")]


def show_help(command: Any, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    context, group = CONTEXT, ROOT
    for name in path:
        group = group.get_command(CONTEXT, name)
        context = typer.Context(group, info_name=name, parent=context)
    return str(command.get_help(context))


@pytest.mark.parametrize(("command", "path"), EVERYTHING)
def test_help_says_something(command: Any, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A text, a usage line without types, and every option and argument with a word on it."""
    assert command.help
    for parameter in command.params:
        assert parameter.help, parameter.name
    shown = show_help(command, path, monkeypatch)
    assert shown.startswith(f"Usage: {' '.join(('pilot', *path))} ")
    assert not re.search(r"<(bool|str|int|float|path|file)>|\\\[", shown)


@pytest.mark.parametrize(("command", "path"), COMMANDS)
def test_no_flag_has_a_negative_form(command: Any, path: tuple[str, ...]) -> None:
    """A flag that is off by default needs no `--no-…`."""
    assert [option for one in command.params for option in one.secondary_opts if option.startswith("--no-")] == []


@pytest.mark.parametrize("columns", [50, 80])
@pytest.mark.parametrize(("command", "path"), EVERYTHING)
def test_help_fits_a_narrow_terminal(
    command: Any, path: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an example, which is there to be copied, may be longer than a line."""
    shown = show_help(command, path, monkeypatch, columns).partition("\nExample:")[0]
    assert [line for line in shown.splitlines() if len(line) > columns and " " in line.strip()] == []


def test_what_an_option_means_has_room_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands below the option there, and beside it elsewhere."""
    option, meaning = "-o, --output table|json|toml", "Form of the output"
    command = ROOT.get_command(CONTEXT, "status")
    assert f"  {option}\n          {meaning}" in show_help(command, ("status",), monkeypatch, columns=50)
    assert f"  {option}  {meaning}" in show_help(command, ("status",), monkeypatch, columns=80)


@pytest.mark.parametrize(("command", "path"), COMMANDS)
def test_every_command_has_an_example_that_parses(
    command: Any, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example is the command itself, with options and arguments that it takes; help shows it unbroken."""
    example = find_example(command, " ".join(path))
    assert example, f"pilot/examples.py has no row for {' '.join(path)!r}"
    assert f"\nExample:\n  {example}" in show_help(command, path, monkeypatch, columns=50)
    typed = shlex.split(re.sub(r'^eval "\$\((.*)\)"$', r"\1", example))
    named = [name for name in path if name != "lead"]  # what `pilot unseal` is without a command
    assert typed[: len(named) + 1] == ["pilot", *named]
    command.make_context(path[-1], typed[len(named) + 1 :])


def test_no_example_of_a_command_that_is_gone() -> None:
    """Each row of the table belongs to a command or group."""
    assert EXAMPLES.keys() <= {" ".join(one.values[1]) for one in EVERYTHING}


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        pytest.param("secret get", "Usage: pilot secret get [OPTIONS] PATH", id="argument"),
        pytest.param("status", "--exit-code Exit with 0 only if the nexus serves", id="flag"),
        pytest.param("init", "--keeper-threshold T Keepers that a recovery needs; 0: more than half", id="option"),
        pytest.param("root pause", "at most 256 characters. [required]", id="option that is required"),
        pytest.param("init", "[default: 3/5]", id="default"),
        pytest.param("", "[environment: SHARDHOLD_ADDRESS]", id="variable"),
        pytest.param("unseal", "Example: pilot unseal", id="group that does something itself"),
    ],
)
def test_help_shows(command: str, shown: str) -> None:
    """What it says of arguments, options and their values."""
    assert shown in " ".join(run_pilot(*command.split(), "--help").out.split())
