"""docs/programs.md says of `pilot run` and `Cached` what they do."""

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from pilot.app import app
from pilot.programs import template
from pilot.programs.supervisor import PASSED, parse_reaction
from pilot.programs.template import parse_template
from pilot.programs.variables import parse_variables
from shardhold import Cached

PAGE = (Path(__file__).parents[3] / "docs" / "programs.md").read_text()
RUN: Any = typer.main.get_command(app).get_command(None, "run")  # type: ignore[attr-defined]


def list_rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading."""
    table = PAGE.partition(f"## {heading}\n")[2].partition("|---|---|\n")[2].partition("\n\n")[0]
    return [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table.splitlines()]


def test_options() -> None:
    """Every option that the page names exists, and every option of `pilot run` alone is on the page."""
    named = set(re.findall(r"--[a-z][a-z-]+", PAGE)) - {"--port", "--config"}
    options = {name for parameter in RUN.params for name in parameter.opts if name.startswith("--")}
    assert named <= options
    assert {"--env", "--template", "--on-change", "--refresh", "--grace", "--allow-disk"} <= named


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("refresh", "`--refresh` seconds, 60 without it"),
        ("grace", "`--grace` seconds (10 without it)"),
    ],
)
def test_defaults(option: str, words: str) -> None:
    """The seconds on the page are those of the options."""
    (parameter,) = (one for one in RUN.params if one.name == option)
    assert f"{parameter.default:g}" in words
    assert words in PAGE.replace("\n", " ")


def test_language() -> None:
    """The table of the language is that of the module, and each form is read."""
    rows = list_rows("Templates")
    assert template.__doc__ is not None
    for form, meaning in rows:
        assert f"| {form} | {meaning} |".replace("\\|", "|") in template.__doc__
    forms = [form.strip("`").replace("\\|", "|") for form, _ in rows[:-1]]
    assert len(forms) == 4
    for form in forms:
        parse_template(form.encode(), name="page")


def test_examples() -> None:
    """The variables and templates of the examples are read."""
    arguments = [word for line in PAGE.splitlines() if line.startswith("$ pilot run") for word in shlex.split(line)]
    assert parse_variables([arguments[arguments.index("--env") + 1]])
    content = PAGE.partition("$ cat db.yaml.tmpl\n")[2].partition("$ pilot")[0]
    assert len(parse_template(content.encode(), name="page").references) == 2


def test_signals_and_reactions() -> None:
    """The signals that are passed on are those that the page lists, and each reaction is one."""
    said = re.search(r"Signals reach the program: ([A-Z0-9, ]+) and ([A-Z]+) are passed on", PAGE)
    assert said is not None
    assert [*said[1].split(", "), said[2]] == [one.name.removeprefix("SIG") for one in PASSED]
    for row in list_rows("When a secret changes"):
        for reaction in re.findall(r"`([A-Za-z0-9]+)`", row[0]):
            parse_reaction(reaction)


def test_names_of_cached() -> None:
    """What the page names of `Cached` exists."""
    part = PAGE.partition("## In Python\n")[2]
    arguments = inspect.signature(Cached).parameters
    assert {name for name in ("start_timeout", "max_age", "on_change") if f"`{name}`" in part} <= set(arguments)
    for name in ("current", "age", "error"):
        assert f"`{name}`" in part
        assert hasattr(Cached, name)
