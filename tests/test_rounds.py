"""Tests on containers that take turns (`tests/containers/rounds.py`): three runs leave out none of them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.rounds import ROUNDS, is_due, load_named, parse_round

ROOT = Path(__file__).parent.parent


def list_tests() -> set[str]:
    """Return the ids of all container tests, without parameters."""
    return {
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in (ROOT / "tests" / "containers").glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


TESTS = list_tests()
# With cells, as a test that has parameters has them.
IDS = TESTS | {f"{test}[{cell}]" for test in TESTS for cell in ("nexus", "keeper-1", "identity provider")}
NAMED = load_named()


def test_three_rounds_run_every_test() -> None:
    """Each test on containers runs at least once in three rounds that follow one another, wherever they begin."""
    assert len(TESTS) > 40
    for first in range(ROUNDS):
        rounds = range(first, first + ROUNDS)
        assert {test for test in IDS if any(is_due(test, number, NAMED) for number in rounds)} == IDS


def test_a_test_without_a_promise_runs_once_in_three_rounds() -> None:
    """Unless docs/promises.md names a test, exactly one round of three runs it, and every round has some of them."""
    unnamed = TESTS - NAMED
    by_round = [{test for test in unnamed if is_due(test, number, NAMED)} for number in range(ROUNDS)]
    assert all(by_round)
    assert sum(map(len, by_round)) == len(unnamed)


def test_a_promise_is_tested_in_every_round() -> None:
    """A test that docs/promises.md names and that has no parameters runs in each round."""
    promised = TESTS & NAMED
    assert len(promised) > 5
    assert all(is_due(test, number, NAMED) for test in promised for number in range(ROUNDS))


def test_a_cell_of_a_promised_test_takes_its_turn() -> None:
    """A named test with parameters runs each of its cells in exactly one round of three."""
    for cell in (f"{test}[{number}]" for test in TESTS & NAMED for number in range(10)):
        assert sum(is_due(cell, number, NAMED) for number in range(ROUNDS)) == 1


def test_pytest_deselects_what_is_not_due() -> None:
    """With TEST_ROUND, pytest runs the tests of that round, and reports the others as deselected and not as skipped."""
    number = ROUNDS + 1
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/containers", "--collect-only", "--quiet", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=os.environ | {"TEST_ROUND": str(number)},
        capture_output=True,
        text=True,
        check=True,
    )
    selected = {line for line in done.stdout.splitlines() if "::" in line}
    assert all(is_due(test, number, NAMED) for test in selected)
    assert {test for test in TESTS & NAMED if is_due(test, number, NAMED)} <= selected
    summary = re.search(r"(\d+)/(\d+) tests collected \((\d+) deselected\)", done.stdout)
    assert summary
    assert int(summary[1]) == len(selected)
    assert int(summary[2]) - int(summary[3]) == len(selected)


@pytest.mark.parametrize(
    ("text", "number"),
    [pytest.param("", None, id="empty"), pytest.param("0", 0, id="zero"), pytest.param("17", 17, id="many")],
)
def test_the_round_is_read(text: str, number: int | None) -> None:
    """TEST_ROUND is an integer; an empty one means that all tests run."""
    assert parse_round(text) == number


def test_a_round_that_is_no_number_is_refused() -> None:
    """A TEST_ROUND that is no integer is an error, and does not pass as a run of all tests."""
    with pytest.raises(ValueError, match="TEST_ROUND is 'next', want an integer"):
        parse_round("next")
