"""Write the tables of pages that follow from the code: `python docs/generate.py`.

What stands around a table is prose, and stays.
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.tables.calls import render_calls, render_permissions
from docs.tables.errors import render_inside, render_reasons, render_unexplained
from docs.tables.limits import LIMITS, render_limits

FOLDER = Path(__file__).parent

# page: {heading: what writes the first table below it}
TABLES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "calls.md": {"Every call": render_calls},
    "policies.md": {"Permissions": render_permissions},
    "limits.md": {heading: functools.partial(render_limits, heading) for heading in LIMITS},
    "errors.md": {
        "Reasons": render_reasons,
        "Codes without a reason": render_unexplained,
        "Reasons that callers do not get": render_inside,
    },
}


def render_page(name: str) -> str:
    """Return a page with its tables as they have to be."""
    page = (FOLDER / name).read_text()
    for heading, render in TABLES[name].items():
        page = _replace_table(page, heading, render())
    return page


def _replace_table(page: str, heading: str, table: str) -> str:
    pattern = re.compile(rf"(^#+ {re.escape(heading)}\n(?:(?!\||#).*\n)*)(?:\|.*\n)+", flags=re.M)
    written, count = pattern.subn(lambda found: found[1] + table, page)
    if count != 1:
        raise ValueError(f"{heading}: got {count} tables below it, want one")
    return written


if __name__ == "__main__":
    for name in TABLES:
        (FOLDER / name).write_text(render_page(name))
