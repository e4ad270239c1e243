"""What the documentation says of pilot and the servers is what they say."""

import re
from pathlib import Path

import pytest

from shardhold.identity import BUNDLE_FILE, KEY_FILE, SVID_FILE

ROOT = Path(__file__).parent.parent
IDENTITY = (ROOT / "docs" / "identity-for-people.md").read_text()

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
