"""The table that `make bench` prints."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from tests.bench.rounds import Spread
from tests.bench.row import Row

_REACHED = {True: "[green]yes[/]", False: "[yellow]no[/]", None: "–"}


def print_table(console: Console, title: str, rows: Iterable[Row]) -> None:
    """Print one line for each row."""
    table = Table(title=title, title_justify="left")
    table.add_column("what; its baseline", overflow="fold")
    for column in ("measured", "baseline", "ratio (lowest–highest)", "target"):
        table.add_column(column, justify="right")
    table.add_column("reached")
    for row in rows:
        ratio = "–" if row.ratio is None else show_ratio(row.ratio)
        table.add_row(row.work, row.measured, row.baseline, ratio, row.target.text, _REACHED[row.target.is_reached])
    console.print(table)


def show_ratio(ratio: Spread) -> str:
    """Show a ratio with two decimals, and the range of its rounds."""
    if ratio.lowest == ratio.highest:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} ({ratio.lowest:.2f}–{ratio.highest:.2f})"
