"""What the documentation says of pilot and the servers is what they say, and its links lead somewhere."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from nexus.keys.operation.refusal import Reason
from pilot.app import app
from shardhold.identity import BUNDLE_FILE, KEY_FILE, SVID_FILE

ROOT = Path(__file__).parent.parent
IDENTITY = (ROOT / "docs" / "identity-for-people.md").read_text()
ROTATION = (ROOT / "docs" / "rotation.md").read_text()
GUIDED = "lead"  # the command that `pilot unseal` is when none is named
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "client/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

# Where messages and hints come from, with the pieces of a long text joined as Python joins them.
_SOURCES = [
    *(ROOT / "pilot").rglob("*.py"),
    *(ROOT / "client" / "shardhold").glob("*.py"),
    ROOT / "nexus" / "access" / "gate.py",
]
SAID = re.sub(r'"\s+f?"', "", "".join(path.read_text() for path in _SOURCES))


def list_quoted() -> list[str]:
    """Return what the page on identity quotes in the first column of its last table."""
    table = IDENTITY.partition("| pilot says |")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    return [quoted for cell in cells for quoted in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("quoted", list_quoted())
def test_quoted_messages_exist(quoted: str) -> None:
    """Every part of a quoted message that is not left open with dots stands in the source."""
    parts = [part.strip() for part in quoted.split("…") if part.strip()]
    assert [part for part in parts if part.replace("SPIFFE_ENDPOINT_SOCKET", "{ENDPOINT_VARIABLE}") not in SAID] == []


def test_there_is_something_quoted() -> None:
    """The table is found, so that the test above can fail."""
    assert len(list_quoted()) > 8


def test_files_and_options_of_an_identity() -> None:
    """The page names the files that are read and the options that exist."""
    for name in (SVID_FILE, KEY_FILE, BUNDLE_FILE, "--svid-dir", "--role", "--nexus-id"):
        assert f"`{name}" in IDENTITY


def list_anchors(page: Path) -> set[str]:
    """Return what links can name in a page: its headings, in lower case, with dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def list_links() -> list[Any]:
    """Return every link to a file of ours, with the page that it stands in."""
    return [
        pytest.param(page, link, id=f"{page.name}: {link}")
        for page in PAGES
        for link in sorted(set(re.findall(r"\]\(([^)\s]+)\)", page.read_text())))
        if not link.startswith("http")
    ]


@pytest.mark.parametrize(("page", "link"), list_links())
def test_links_lead_somewhere(page: Path, link: str) -> None:
    """The file exists, and has the heading."""
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    assert target.exists()
    assert not anchor or anchor in list_anchors(target)


def list_commands() -> list[str]:
    """Return what follows the word pilot in each line of a console and in each piece of code, once."""
    found: set[str] = set()
    for page in PAGES:
        text = page.read_text()
        found |= set(re.findall(r"^ *\$ (?:.*[ (])?pilot ([a-z-][^\n)]*)", text, flags=re.M))
        found |= {" ".join(code.split()) for code in re.findall(r"`pilot ([a-z-][^`]*)`", text)}
    return sorted(found)


def find_command(words: list[str]) -> tuple[list[Any], list[str]]:
    """Return the commands that *words* name, which may stand side by side as `add|remove`, and what is left of them."""
    commands: list[Any] = [typer.main.get_command(app)]
    while words and hasattr(commands[0], "get_command"):
        if GUIDED in commands[0].commands and words[0] not in commands[0].commands:
            words = [GUIDED, *words]
        if words[0].startswith("-"):
            option = next(one for one in commands[0].params if words[0] in one.opts)
            words = words[1 if option.is_flag else 2 :]
            continue
        commands = [commands[0].get_command(None, name) for name in words[0].split("|")]
        assert None not in commands, words[0]
        words = words[1:]
    return commands, words


@pytest.mark.parametrize("line", list_commands())
def test_documented_commands_exist(line: str) -> None:
    """Each command is one of pilot's, and has the options that are shown with it."""
    commands, words = find_command(shlex.split(re.split(r" (?:&&|--) | \\\\?$", line.replace("…", ""))[0]))
    shown = {word.partition("=")[0] for word in words if word.startswith("--")}
    for command in commands:
        assert shown <= {name for option in command.params for name in option.opts}


def test_there_are_commands() -> None:
    """They are found, so that the test above can fail."""
    assert {"root reshare --dry-run", "keeper list"} <= set(list_commands())


def test_every_rule_is_explained() -> None:
    """Whoever is refused finds the rule on the page, and the page names no rule that does not exist."""
    named = set(re.findall(r"`([A-Z_]{4,})`", ROTATION.partition("| rule |")[2].partition("\n\n")[0]))
    assert named == {*Reason}
