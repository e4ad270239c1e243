"""The exit codes: one table, which the page repeats, `pilot --help` shows, and all that pilot exits with is in."""

import ast
import re
from pathlib import Path

import pytest

import pilot.errors
from pilot.__main__ import run
from pilot.errors import EXIT_CODES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "exit-codes.md").read_text()


def read_table(title: str) -> dict[int, str]:
    """Return code and meaning of each row of the page's table below a heading."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| ([^|]+?) \|", section, flags=re.M)}


def test_the_page_has_the_table() -> None:
    """Code by code, in the same words."""
    assert read_table("pilot") == dict(EXIT_CODES)


def test_help_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of pilot lists each code."""
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out.partition("Exit codes:")[2]
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^  {code} +{re.escape(meaning)}$", shown, flags=re.M)


def list_literals() -> set[int]:
    """Return every number that the source of pilot gives as an exit code."""
    nodes = [node for path in (ROOT / "pilot").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    given = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "exit_code"]
    given += [node.args[0] for node in nodes if isinstance(node, ast.Call) and node.args and is_exit(node.func)]
    return {node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, int)}


def is_exit(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and function.attr == "Exit"


def test_no_other_code_is_used() -> None:
    """Numbers in the source, and the names in pilot.errors, are all in the table."""
    named = {value for name, value in vars(pilot.errors).items() if name.isupper() and isinstance(value, int)}
    assert list_literals() <= EXIT_CODES.keys()
    assert named == EXIT_CODES.keys()


@pytest.mark.parametrize("server", ["nexus", "keeper"])
def test_codes_of_the_servers(server: str) -> None:
    """The page has the codes that the module of each server documents."""
    documented = (ROOT / server / "__main__.py").read_text().partition("Exit codes: ")[2].partition(".\n")[0]
    codes = {int(code) for code in re.findall(r"(?:^|; )(\d)", documented)}
    assert codes == read_table("nexus and keeper").keys() == {0, 1, 2}
