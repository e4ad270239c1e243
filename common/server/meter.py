"""The metrics of the calls and probes that a server answers."""

from collections.abc import Callable

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

Record = Callable[[grpc.StatusCode, float], None]  # gets the code of a call, and its seconds


class Meter:
    """Counts calls by method and code, and their seconds by method; probes apart, which come every few seconds."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        """*registry* None: nothing is counted."""
        self._calls: Counter | None = None
        if registry is not None:
            disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the lines
            self._calls = Counter(
                "shardhold_calls", "calls answered, by status code; without probes", ["rpc", "code"], registry=registry
            )
            self._seconds = Histogram(
                "shardhold_call_seconds",
                "seconds from a worker's start on a call to its answer; without probes",
                ["rpc"],
                buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
                registry=registry,
            )
            self._probes = Counter(
                "shardhold_probes",
                "probes answered: Check is gRPC health, with its status code; the others are paths, with that of HTTP",
                ["probe", "code"],
                registry=registry,
            )

    def count(self) -> int:
        """Return how many calls were answered."""
        if self._calls is None:
            return 0
        return int(sum(sample.value for family in self._calls.collect() for sample in family.samples))

    def for_method(self, name: str) -> Record:
        """Return what records a call of the method with this full name."""
        calls = self._calls
        if calls is None:
            return _record_nothing
        rpc = _shorten(name)
        observe = self._seconds.labels(rpc).observe
        counters: dict[grpc.StatusCode, Callable[[], None]] = {}

        def record(code: grpc.StatusCode, seconds: float) -> None:
            count = counters.get(code)
            if count is None:
                count = counters[code] = calls.labels(rpc, code.name).inc
            count()
            observe(seconds)

        return record

    def for_health(self, name: str) -> Record:
        """Return what records a call of the health method with this full name, as a probe."""
        return lambda code, _: self.count_probe(_shorten(name), code.name)

    def count_probe(self, probe: str, code: str) -> None:
        """Count a probe and what it was answered. There must be few of each: every pair stays in memory."""
        if self._calls is not None:
            self._probes.labels(probe, code).inc()


def _shorten(name: str) -> str:
    return name.rpartition("/")[2]


def _record_nothing(_: grpc.StatusCode, seconds: float) -> None:
    pass
