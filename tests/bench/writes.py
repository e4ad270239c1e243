"""PutSecret beside bare commits of the same rows, and beside itself with one writer."""

import contextlib
from collections.abc import Iterator

from tests.bench.bare import BareStore
from tests.bench.rounds import compare, interleave
from tests.bench.row import Row, at_least, make_row, per_second
from tests.bench.stage import Stage

WRITERS = 32
_PATHS = [f"bench/written/{number}" for number in range(WRITERS)]


def put_secret(stage: Stage) -> Iterator[Row]:
    """Measure a durable write, beside a bare commit of the same rows to a file on the same file system."""
    nexus = stage.nexus
    stage.driver.call(nexus, "put", _PATHS, calls=200)
    with contextlib.closing(BareStore(stage.folder / "bare.db")) as bare:
        bare.commit_for(0.1)  # warm
        pairs = interleave(
            lambda: stage.drive(nexus, "put", _PATHS, threads=1).per_s,
            lambda: bare.commit_for(stage.pace.seconds),
            rounds=stage.pace.rounds,
        )
    speed = compare(pairs, lambda per_s: per_s)
    work = "PutSecret, one writer; bare commits, synchronous=FULL"
    yield make_row(work, speed, per_second, at_least(0.7, speed.ratio.median))


def many_writers(stage: Stage) -> Iterator[Row]:
    """Measure writers that wait together, beside a single one."""
    nexus = stage.nexus
    stage.driver.call(nexus, "put", _PATHS, calls=200, threads=WRITERS)
    pairs = interleave(
        lambda: stage.drive(nexus, "put", _PATHS, threads=WRITERS),
        lambda: stage.drive(nexus, "put", _PATHS, threads=1),
        rounds=stage.pace.rounds,
    )
    speed = compare(pairs, lambda load: load.per_s)
    yield make_row(f"PutSecret, {WRITERS} writers; one", speed, per_second, at_least(2, speed.ratio.median))
