"""Resident memory of an idle keeper and nexus, and of the nexus after many calls."""

import statistics
from collections.abc import Iterator

from tests.bench.machine import resident_mb
from tests.bench.rounds import Spread
from tests.bench.row import Row, Target, at_most, megabytes
from tests.bench.stage import PATH, Stage

FLAT = 1.05  # what caches and allocators may still take after the first calls
_WARM_UP = 2000  # calls: then every worker has its connection to the store, and every cache is filled


def resident(stage: Stage) -> Iterator[Row]:
    """Measure a nexus that has just come back and a keeper that it filled, then the nexus under calls."""
    cluster = stage.cluster
    cluster.restart_nexus()
    cluster.wait_filled()
    keepers = [resident_mb(cluster.dev.state.processes[name].pid) for name in cluster.keepers]
    keeper = statistics.median(keepers)
    yield Row("resident memory of a keeper, idle", megabytes(keeper), at_most(65, "MB", keeper))
    nexus = stage.nexus
    idle = resident_mb(nexus.pid)
    yield Row("resident memory of the nexus, idle", megabytes(idle), at_most(90, "MB", idle))
    stage.driver.call(nexus, "get", [PATH], calls=_WARM_UP)
    warm = resident_mb(nexus.pid)
    stage.driver.call(nexus, "get", [PATH], calls=stage.pace.calls)
    after = resident_mb(nexus.pid)
    growth = after / warm
    yield Row(
        f"… after {stage.pace.calls:,} further calls; after the first {_WARM_UP:,}",
        megabytes(after),
        Target(f"flat (≤ {FLAT:.0%})", growth <= FLAT),
        megabytes(warm),
        Spread.of([growth]),
    )
