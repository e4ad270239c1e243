"""How a table is written."""

from collections.abc import Iterable, Sequence


def render_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, centred: Sequence[str] = ()) -> str:
    """Return a table in Markdown, with the columns named in *centred* centred."""
    rule = [":---:" if column in centred else "---" for column in columns]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rule, *rows))


def code(text: object) -> str:
    """Return *text* as code."""
    return f"`{text}`"
