"""The present program beside that of another commit, in turn: ratios above 1 are more of the same."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.bench.driver import Server
from tests.bench.load import Kind
from tests.bench.other import run_other
from tests.bench.rounds import compare, interleave
from tests.bench.row import Row, Target, at_most, make_row, microseconds, per_second
from tests.bench.stage import PATH, Stage
from tests.bench.writes import WRITERS

_WARM_UP = 500  # calls
_PATHS = [f"bench/against/{number}" for number in range(WRITERS)]
_NO_TARGET = Target("–")

Compare = Callable[[Stage, Server], Iterator[Row]]


def get_secret(stage: Stage, other: Server) -> Iterator[Row]:
    """Measure reads under load."""
    return _compare(stage, other, "GetSecret on one core", "get", [PATH], threads=8)


def put_secret(stage: Stage, other: Server) -> Iterator[Row]:
    """Measure durable writes of one writer."""
    return _compare(stage, other, "PutSecret, one writer", "put", _PATHS, threads=1)


def many_writers(stage: Stage, other: Server) -> Iterator[Row]:
    """Measure writers that wait together."""
    return _compare(stage, other, f"PutSecret, {WRITERS} writers", "put", _PATHS, threads=WRITERS)


COMPARES: Mapping[str, Compare] = {"get": get_secret, "put": put_secret, "writers": many_writers}


def measure(stage: Stage, commit: str, compares: Mapping[str, Compare]) -> Iterator[Row]:
    """Run the program of *commit* beside the one on *stage*, and compare them in each way."""
    with tempfile.TemporaryDirectory(prefix="shardhold-other-") as folder, run_other(commit, Path(folder)) as other:
        for one in compares.values():
            yield from one(stage, other)


def _compare(stage: Stage, other: Server, work: str, kind: Kind, paths: list[str], *, threads: int) -> Iterator[Row]:
    nexus = stage.nexus
    for server in (nexus, other):
        stage.driver.call(server, kind, paths, calls=_WARM_UP, threads=threads)
    pairs = interleave(
        lambda: stage.drive(nexus, kind, paths, threads=threads),
        lambda: stage.drive(other, kind, paths, threads=threads),
        rounds=stage.pace.rounds,
    )
    cpu = compare(pairs, lambda load: load.cpu_us)
    yield make_row(f"{work}: CPU of the server for each call", cpu, microseconds, at_most(1.1, "×", cpu.ratio.median))
    yield make_row("… calls", compare(pairs, lambda load: load.per_s), per_second, _NO_TARGET)
    yield make_row("… p50", compare(pairs, lambda load: load.p50_us), microseconds, _NO_TARGET)
