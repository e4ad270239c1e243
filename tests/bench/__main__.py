"""`make bench`: measure speed and size of a real cluster, each beside its baseline from the same run.

Only ratios are meaningful, on an otherwise idle machine; absolute numbers are this machine's. Nothing is asserted.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from tests.bench import against, machine, many_rows, other, policies, reads, rewrap, rotating, sizes, starts, writes
from tests.bench.against import COMPARES
from tests.bench.row import Row
from tests.bench.stage import Pace, Stage, staged
from tests.bench.table import print_table

_WIDTH = 145  # columns, where no terminal decides
Measure = Callable[[Stage], Iterator[Row]]

MEASURES: Mapping[str, Measure] = {
    "get": reads.get_secret,
    "history": reads.history,
    "policies": policies.reads,
    "decision": policies.decisions,
    "put": writes.put_secret,
    "writers": writes.many_writers,
    "rewrap": rewrap.rewrap,
    "rows": many_rows.many_rows,
    "rotating": rotating.rotating,
    "recovery": starts.recovery,
    "refill": starts.refill,
    "memory": sizes.resident,
}


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROWS", help=f"only these: {' '.join(MEASURES)}")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--quick", action="store_true", help="short rounds, under a minute")
    pace.add_argument("--long", action="store_true", help="long rounds, 100,000 calls, a million rows for the job")
    parser.add_argument(
        "--against", metavar="COMMIT", help=f"compare with the program of COMMIT instead; rows: {' '.join(COMPARES)}"
    )
    arguments = parser.parse_args()
    known = set(COMPARES if arguments.against else MEASURES)
    unknown = sorted(set(arguments.rows) - known)
    if unknown:
        parser.error(f"no rows {' '.join(unknown)}, want some of: {' '.join(sorted(known))}")
    wanted = set(arguments.rows) or known
    chosen = _choose_pace(quick=arguments.quick, long=arguments.long)
    if arguments.against:
        title = f"present program ÷ {other.describe(arguments.against)}; "
        compares = {name: compare for name, compare in COMPARES.items() if name in wanted}
        run({"against": lambda stage: against.measure(stage, arguments.against, compares)}, chosen, title)
    else:
        run({name: measure for name, measure in MEASURES.items() if name in wanted}, chosen)


def run(measures: Mapping[str, Measure], pace: Pace, about: str = "") -> None:
    """Measure everything in turn on one stage, and print the table, with *about* before its title."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    began, title = (
        time.monotonic(),
        f"{about}{datetime.now(UTC):%Y-%m-%d}, {machine.describe()}, medians of {pace.rounds} rounds",
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="shardhold-bench-") as folder, staged(Path(folder), pace) as stage:
        for name, measure in measures.items():
            with console.status(f"{name}: {(measure.__doc__ or 'both programs in turn').splitlines()[0]}"):
                rows += measure(stage)
    print_table(console, title, rows)
    console.print(f"[dim]in {time.monotonic() - began:.0f} s; nothing is asserted, and only ratios compare")


def _choose_pace(*, quick: bool, long: bool) -> Pace:
    if quick:
        return Pace(seconds=0.3, calls=5_000, rows=10_000)
    if long:
        return Pace(rounds=9, seconds=3.0, calls=100_000, rows=1_000_000)
    return Pace()


if __name__ == "__main__":
    main()
