"""What tests read from a page: its sections, its tables, and the code in their cells."""

import re


def read_sections(page: str) -> dict[str, str]:
    """Return the text of each section of a page by its heading, at whatever level."""
    _, *rest = re.split(r"^#+ (.+)\n", page, flags=re.M)
    return dict(zip(rest[::2], rest[1::2], strict=True))


def read_table(section: str) -> list[list[str]]:
    """Return the cells of each row of the first table in a section, without its head."""
    found = re.search(r"^\|.*\n\|[ :|-]+\n((?:\|.*\n)+)", section, flags=re.M)
    assert found is not None, "no table"
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in found[1].splitlines()]


def read_code(cell: str) -> list[str]:
    """Return every piece of code in a cell."""
    return re.findall(r"`([^`]+)`", cell)
