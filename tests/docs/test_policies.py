"""Every example of docs/policies.md does what the page says."""

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.errors import InvalidArgumentError
from nexus.policy.globs import GlobIndex
from nexus.policy.paths import split_glob
from nexus.policy.rules import Permission, Policy, PolicySet, check_policy, split_spiffe_glob
from tests.docs.tables import read_code, read_sections, read_table

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
SECTIONS = read_sections(PAGE)
SPIFFE = "spiffe://"


def read_policies(section: str) -> list[Policy]:
    """Return the policies of all TOML in a section."""
    documents = [tomllib.loads(text) for text in re.findall(r"^```toml\n(.*?)^```", section, flags=re.M | re.S)]
    return [msgspec.convert(table, Policy) for document in documents for table in document["policy"]]


def list_globs() -> list[Any]:
    """Return each glob with a name that it is said to match, or not to match."""
    return [
        pytest.param(
            read_code(glob)[0], name, matches, id=f"{glob} {'matches' if matches else 'does not match'} {name}"
        )
        for glob, matching, other in read_table(SECTIONS["Globs"])
        for names, matches in ((matching, True), (other, False))
        for name in read_code(names)
    ]


def list_decisions() -> list[Any]:
    """Return every line that says who may do what, with the section that it stands in."""
    return [
        pytest.param(title, *(read_code(cell)[0] if "`" in cell else cell for cell in row), id=f"{title}: {row}")
        for title, section in SECTIONS.items()
        if "\n| caller | may |" in section
        for row in read_table(section)
    ]


@pytest.mark.parametrize(("glob", "name", "matches"), list_globs())
def test_globs_match_as_the_page_says(glob: str, name: str, matches: bool) -> None:
    """Each name in a cell is matched, or is not."""
    index = GlobIndex()
    is_id = glob.startswith(SPIFFE)
    index.add(split_spiffe_glob(glob) if is_id else split_glob(glob), 0)
    assert bool(index.match(name.removeprefix(SPIFFE).split("/"))) is matches


@pytest.mark.parametrize(("title", "caller", "permission", "path", "by"), list_decisions())
def test_examples_allow_and_deny_as_the_page_says(title: str, caller: str, permission: str, path: str, by: str) -> None:
    """Each line holds for the policies of its section, and for no others."""
    policies = PolicySet(read_policies(SECTIONS[title]))
    assert policies.decide(caller, Permission(permission), path) == (None if by == "denied" else by)


def test_every_policy_of_the_page_is_one() -> None:
    """Each would be applied."""
    policies = read_policies(PAGE)
    assert len(policies) > 5
    for policy in policies:
        check_policy(policy)


@pytest.mark.parametrize(
    ("wrong", "said"), [[read_code(cell)[0] for cell in row] for row in read_table(SECTIONS["What is refused"])]
)
def test_wrong_policies_are_refused_with_these_words(wrong: str, said: str) -> None:
    """The message ends as the page quotes it."""
    right = {"name": "web", "spiffe_ids": ["spiffe://example.org/a"], "paths": ["a"], "permissions": ["read"]}
    policy = msgspec.convert({**right, **tomllib.loads(wrong)}, Policy)
    with pytest.raises(InvalidArgumentError) as refused:
        check_policy(policy)
    assert said in str(refused.value)


def test_the_tables_are_found() -> None:
    """They are, so that the tests above can fail; and each example has lines that allow and lines that deny."""
    assert len(list_globs()) > 30
    lines = [param.values for param in list_decisions()]
    for title in {line[0] for line in lines}:
        assert {line[-1] == "denied" for line in lines if line[0] == title} == {True, False}
    assert len({line[0] for line in lines}) == PAGE.count("\n### ")
