"""Which commit this program was built from."""

from pathlib import Path

# Written by the build of an image (deploy/Dockerfile); a checkout has none.
_FILE = Path(__file__).with_name("REVISION")


def load_revision(file: Path = _FILE) -> str:
    """Load the commit; empty: it is not known."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""
