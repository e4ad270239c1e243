"""The metrics of the calls that a server answers."""

from collections.abc import Callable

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram


class Meter:
    """Counts calls by method and code, and their seconds by method."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._calls: Counter | None = None
        if registry is not None:
            self._calls = Counter(
                "shardhold_calls", "Calls answered, by status code", ["rpc", "code"], registry=registry
            )
            self._seconds = Histogram(
                "shardhold_call_seconds",
                "Seconds from a worker's start on a call to its answer",
                ["rpc"],
                buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
                registry=registry,
            )

    def count(self) -> int:
        """Return how many calls were answered."""
        if self._calls is None:
            return 0
        samples = (sample for family in self._calls.collect() for sample in family.samples)
        return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))

    def for_method(self, name: str) -> Callable[[grpc.StatusCode, float], None]:
        """Return what records a call of the method with this full name: its code, and its seconds."""
        calls = self._calls
        if calls is None:
            return lambda code, seconds: None
        rpc = name.rpartition("/")[2]
        observe = self._seconds.labels(rpc).observe
        counters: dict[grpc.StatusCode, Callable[[], None]] = {}

        def record(code: grpc.StatusCode, seconds: float) -> None:
            count = counters.get(code)
            if count is None:
                count = counters[code] = calls.labels(rpc, code.name).inc
            count()
            observe(seconds)

        return record
