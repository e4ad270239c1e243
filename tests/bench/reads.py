"""GetSecret beside an empty handler, and beside itself on a short history."""

from collections.abc import Iterator

from tests.bench.rounds import Spread, compare, interleave
from tests.bench.row import AS_LOW_AS_IT_GOES, Row, at_least, at_most, make_row, microseconds, per_second
from tests.bench.stage import PATH, Stage

PUTS = 1000
_WARM_UP = 500  # calls
_LONG, _FRESH = "bench/long-history", "bench/fresh"


def get_secret(stage: Stage) -> Iterator[Row]:
    """Measure a read beside an empty handler: calls per second, CPU, latency."""
    nexus, empty, rounds = stage.nexus, stage.empty, stage.pace.rounds
    for server in (nexus, empty):
        stage.driver.call(server, "get", [PATH], calls=_WARM_UP)
    pairs = interleave(
        lambda: stage.drive(nexus, "get", [PATH]), lambda: stage.drive(empty, "get", [PATH]), rounds=rounds
    )
    speed = compare(pairs, lambda load: load.per_s)
    work = "GetSecret on one core; an empty handler"
    yield make_row(work, speed, per_second, at_least(0.6, speed.ratio.median))
    busy = compare(pairs, lambda load: load.busy)
    work = f"… CPU of the server for each call (its core {busy.measured:.0%} and {busy.baseline:.0%} busy)"
    yield make_row(work, compare(pairs, lambda load: load.cpu_us), microseconds, AS_LOW_AS_IT_GOES)

    pairs = interleave(
        lambda: stage.drive(nexus, "get", [PATH], threads=1),
        lambda: stage.drive(empty, "get", [PATH], threads=1),
        rounds=rounds,
    )
    added = Spread.of(slow.p50_us - fast.p50_us for slow, fast in pairs).median
    work = f"… p50 of one call at a time: {microseconds(added)} added"
    yield make_row(work, compare(pairs, lambda load: load.p50_us), microseconds, at_most(150, "µs added", added))


def history(stage: Stage) -> Iterator[Row]:
    """Measure a read of a path with many past puts, beside one of a fresh path."""
    nexus = stage.nexus
    stage.driver.call(nexus, "put", [_LONG], calls=PUTS, threads=32)
    stage.driver.call(nexus, "put", [_FRESH], calls=1, threads=1)
    stage.driver.call(nexus, "get", [_LONG, _FRESH], calls=_WARM_UP)
    pairs = interleave(
        lambda: stage.drive(nexus, "get", [_LONG]),
        lambda: stage.drive(nexus, "get", [_FRESH]),
        rounds=stage.pace.rounds,
    )
    speed = compare(pairs, lambda load: load.per_s)
    work = f"GetSecret of a path with {PUTS:,} past puts; of a fresh path"
    yield make_row(work, speed, per_second, at_least(0.9, speed.ratio.median))
