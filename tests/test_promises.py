"""SECURITY.md and docs/promises.md hold the same promises, by their ids, and each has a test that exists.

1. Every promise of SECURITY.md has an id, and every id has one row with at least one test.
2. Every row is a promise of SECURITY.md.
3. Every paragraph and table row that promises something carries an id.
4. An id is given once. Its number is in use or retired, never both and never neither.

What is promised not to exist (credentials in messages, secrets among options) is tested here as well.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import keeper.config
import nexus.config
from common.config.options import describe
from keeper.v1 import keeper_pb2
from shardhold.v1 import cluster_pb2, policies_pb2, recovery_pb2, secrets_pb2

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "promises.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()

# The rows of the design's table "What bad things get", in its order; a row that is added there is added here.
DESIGN = [f"P{number}" for number in range(1, 11)]

_ID = re.compile(r"\[(P[1-9][0-9]*)\]")
_TEST = re.compile(r"`(tests/[a-z0-9_/]+\.py)::((?:Test\w+::)?test_\w+)`")


def section(text: str, heading: str) -> str:
    """Return the text between a heading and the next one of its rank."""
    found = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert found, f"no section {heading!r}"
    return found


def list_rows(text: str) -> list[list[str]]:
    """Return the cells of every row of every table, without heads and rules."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [row for number, row in enumerate(rows) if not is_rule(row) and not is_head(rows, number)]


def is_rule(row: list[str]) -> bool:
    return row[0].startswith("--")


def is_head(rows: list[list[str]], number: int) -> bool:
    return number + 1 < len(rows) and is_rule(rows[number + 1])


PROMISED = section(SECURITY, "What is promised")
TABLE = section(SECURITY, "What bad things get")
GIVEN = _ID.findall(PROMISED) + _ID.findall(TABLE)
RETIRED = _ID.findall(section(PAGE, "Retired ids"))
ROWS = list_rows(PAGE)
NAMED = sorted(set(_TEST.findall(PAGE)))


def list_passages() -> list[str]:
    """Return each paragraph under "What is promised", and each row of its tables."""
    paragraphs = [
        " ".join(paragraph.split())
        for paragraph in PROMISED.split("\n\n")
        if paragraph.strip() and not paragraph.strip().startswith("|")
    ]
    return paragraphs + [" | ".join(row) for row in list_rows(PROMISED)]


@cache
def list_tests(path: str) -> frozenset[str]:
    """Return the names of all tests of a file, methods with their class."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}::{method.name}" for method in methods}
    return frozenset(found)


def test_every_row_of_the_design_is_there() -> None:
    """The table in SECURITY.md begins with the rows of the design, and each of its rows begins with an id."""
    first = [row[0].strip("[]") for row in list_rows(TABLE)]
    assert first[: len(DESIGN)] == DESIGN
    assert first == _ID.findall(TABLE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]).strip("[]"))
def test_every_promise_has_a_test(row: list[str]) -> None:
    """A row is an id, a wording, and at least one test with nothing beside it."""
    assert len(row) == 3
    assert _TEST.findall(row[2])
    assert _TEST.sub("", row[2]).strip() == ""


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: str(part))
def test_named_tests_exist(path: str, name: str) -> None:
    """A test that was renamed is renamed in docs/promises.md as well."""
    assert (ROOT / path).is_file()
    assert name in list_tests(path)


@pytest.mark.parametrize("given", GIVEN)
def test_every_promise_of_security_has_a_row(given: str) -> None:
    """The row of a promise begins with its id."""
    assert [row[0] for row in ROWS].count(f"[{given}]") == 1


def test_nothing_is_there_that_security_does_not_say() -> None:
    """No row is left of a promise that SECURITY.md no longer makes."""
    assert [row[0] for row in ROWS if row[0] not in {f"[{given}]" for given in GIVEN}] == []


@pytest.mark.parametrize("passage", list_passages(), ids=lambda passage: str(passage)[:40])
def test_every_paragraph_carries_an_id(passage: str) -> None:
    """A new promise in a paragraph of its own cannot be added without an id."""
    assert _ID.search(passage)


def test_ids_are_unique_and_never_reused() -> None:
    """Each number up to the highest is one promise of SECURITY.md, or retired."""
    ids = GIVEN + RETIRED
    assert sorted(ids) == sorted(set(ids))
    assert set(ids) == {f"P{number}" for number in range(1, len(ids) + 1)}


def test_what_has_no_test_is_said() -> None:
    """Parts of promises that no test covers are listed."""
    assert section(PAGE, "Without a test yet").count("\n- ") > 0


def test_no_message_carries_a_credential() -> None:
    """A caller is who its certificate says: no field of any contract could hold a token or a password."""
    contracts = (secrets_pb2, policies_pb2, cluster_pb2, recovery_pb2, keeper_pb2)
    names = {
        field.name
        for contract in contracts
        for message in contract.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    assert len(names) > 40
    suspicious = {name for name in names if re.search(r"token|passw|credential|api_key|bearer", name)}
    assert suspicious == {"page_token", "next_page_token"}  # where a list goes on


def test_no_option_is_a_secret() -> None:
    """Options are names, numbers, addresses and paths; none is by its name to be hidden. A reshare is no share.

    The table `secrets` says how many versions are kept.
    """
    options = [
        option.name for model in (nexus.config.NexusConfig, keeper.config.KeeperConfig) for option in describe(model)
    ]
    assert len(options) > 20
    hidden = re.compile(r"secret(?!s\.max_versions)|passw|token|key|seed|words|(?<!re)share")
    assert [name for name in options if hidden.search(name)] == []
