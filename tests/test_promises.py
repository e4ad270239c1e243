"""docs/promises.md: complete, and its tests exist. And the promises about what there is not."""

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

# The table of the design, row by row: a row that is added there is added here.
WHAT_HAPPENS = [
    "no or foreign certificate",
    "wrong role, no policy",
    "malformed path, oversize value, bad enum",
    "stale check-and-set",
    "up to n−t keepers down, lying, slow or half-open",
    "fewer than t keepers",
    "`kill -9`, power cut, disk full, EIO at any point",
    "audit cannot be written",
    "corrupted row or shard, edited control row, wrong recovery words, older store",
    "wrong configuration",
]
# Sentences of SECURITY.md that explain a promise beside them and are none.
EXPLANATIONS = {
    "This finds a copy that was put back.",
    "Of somebody who also edits the numbers in it, see below.",
}
_TEST = re.compile(r"`(tests/[a-z0-9_/]+\.py)::((?:Test\w+::)?test_\w+)`")


def section(text: str, heading: str) -> str:
    """Return what stands between a heading and the next one of its rank."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def list_rows(text: str) -> list[list[str]]:
    """Return the cells of every row of every table, without heads and lines."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [row for number, row in enumerate(rows) if not row[0].startswith("--") and not is_head(rows, number)]


def is_head(rows: list[list[str]], number: int) -> bool:
    return number + 1 < len(rows) and rows[number + 1][0].startswith("--")


TABLE = list_rows(section(PAGE, "What bad things get"))
SAID = list_rows(section(PAGE, "What SECURITY.md promises"))
NAMED = sorted(set(_TEST.findall(PAGE)))


def list_paragraphs() -> list[str]:
    """Return what SECURITY.md promises, each paragraph on one line, without its table."""
    lines = [line for line in section(SECURITY, "What is promised").splitlines() if not line.startswith("|")]
    return [" ".join(paragraph.split()) for paragraph in "\n".join(lines).split("\n\n") if paragraph.strip()]


def list_sentences() -> list[str]:
    """Return every sentence in there, without the words in bold that a paragraph begins with."""
    bare = (re.sub(r"^\*\*(.+?)\*\*", "", paragraph).strip() for paragraph in list_paragraphs())
    return [sentence for text in bare for sentence in re.split(r"(?<=\.) (?=[A-Z`])", text) if sentence]


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
    """In its order, and no other."""
    assert [row[0] for row in TABLE] == WHAT_HAPPENS


@pytest.mark.parametrize("row", [*TABLE, *SAID], ids=lambda row: str(row[0])[:60])
def test_every_promise_has_a_test(row: list[str]) -> None:
    """And nothing but tests stands in the last column."""
    assert _TEST.findall(row[-1])
    assert _TEST.sub("", row[-1]).strip() == ""


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: str(part))
def test_named_tests_exist(path: str, name: str) -> None:
    """By file and name; a test that was renamed is renamed there."""
    assert (ROOT / path).is_file()
    assert name in list_tests(path)


@pytest.mark.parametrize("sentence", list_sentences(), ids=lambda sentence: str(sentence)[:60])
def test_every_sentence_of_security_is_there(sentence: str) -> None:
    """Or it is known to promise nothing by itself."""
    assert sentence in EXPLANATIONS or any(row[0] in sentence or sentence in row[0] for row in SAID)


def test_nothing_is_there_that_security_does_not_say() -> None:
    """Word for word, under the heading that its paragraph begins with."""
    paragraphs = list_paragraphs()
    assert [row[0] for row in SAID if not any(row[0] in paragraph for paragraph in paragraphs)] == []
    headings = re.findall(r"(?m)^### (.+)$", PAGE)
    assert headings == [found[1] for found in map(re.compile(r"\*\*(.+?)\*\*").match, paragraphs) if found]
    assert [sentence for sentence in EXPLANATIONS if sentence not in " ".join(paragraphs)] == []


def test_what_has_no_test_is_said() -> None:
    """A promise that nothing holds up stands in the list of those."""
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
    """Options are names, numbers, addresses and paths; none is by its name something to be hidden."""
    options = [
        option.name for model in (nexus.config.NexusConfig, keeper.config.KeeperConfig) for option in describe(model)
    ]
    assert len(options) > 20
    assert [name for name in options if re.search(r"secret|passw|token|key|seed|words|share", name)] == []
