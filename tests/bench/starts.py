"""How long the cluster takes to come back: the nexus after a kill, a keeper that is empty."""

import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

from tests.bench.rounds import Spread, compare
from tests.bench.row import Row, at_most, make_row, seconds
from tests.bench.stage import PATH, Stage

EMPTIED = ("keeper-4", "keeper-5")


def recovery(stage: Stage) -> Iterator[Row]:
    """Measure a killed nexus until it has the root key again and until it serves, beside an empty server."""
    recoveries: list[float] = []
    pairs: list[tuple[float, float]] = []
    for _ in range(stage.pace.rounds):
        log = Log(stage.cluster.directory.log("nexus"))
        pairs.append((_restart_nexus(stage), _start_empty(stage)))
        stage.cluster.wait_ready()
        recoveries.append(log.find("state changed", now="ready") - log.find("listening"))
    found = Spread.of(recoveries).median
    work = f"keepers answer → ready, {len(stage.cluster.keepers)} keepers"
    yield Row(work, seconds(found), at_most(100, "ms", found * 1000))
    start = compare(pairs, lambda number: number)
    work = "nexus process start → first served secret; an empty server's"
    yield make_row(work, start, seconds, at_most(0.6, "s", start.measured))


def refill(stage: Stage) -> Iterator[Row]:
    """Measure keepers that forgot their shards, from when they serve until the nexus has filled them."""
    taken: list[float] = []
    cluster = stage.cluster
    for _ in range(stage.pace.rounds):
        nexus = Log(cluster.directory.log("nexus"))
        logs = {name: Log(cluster.directory.log(name)) for name in EMPTIED}
        cluster.kill(*EMPTIED)
        cluster.run(*EMPTIED)
        cluster.wait_filled(*EMPTIED)
        taken += [nexus.find("keeper filled", keeper=name) - log.find("keeper serves") for name, log in logs.items()]
    found = Spread.of(taken)
    work = f"empty keeper reachable → holds its shard (at most {seconds(found.highest)})"
    yield Row(work, seconds(found.median), at_most(2, "s", found.median))


class Log:
    """What a process logs from here on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size

    def find(self, event: str, **context: Any) -> float:
        """Return when the first line with this event and context was written, in seconds since 1970."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            lines = [json.loads(line) for line in file if line.startswith(b"{")]
        wanted = {"event": event, **context}
        line = next(line for line in lines if wanted.items() <= line.items())
        return datetime.fromisoformat(line["timestamp"]).timestamp()


def _restart_nexus(stage: Stage) -> float:
    stage.cluster.kill("nexus")
    started = monotonic()
    stage.spawn_nexus()
    return stage.driver.wait_served(stage.nexus, PATH) - started


def _start_empty(stage: Stage) -> float:
    started = monotonic()
    server = stage.spawn_empty()
    served = stage.driver.wait_served(server, PATH)
    os.kill(server.pid, signal.SIGKILL)  # waited for at the end
    return served - started
