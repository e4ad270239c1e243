"""The counter of calls."""

import grpc
from prometheus_client import CollectorRegistry

from common.server.meter import Meter


def test_all_calls_are_counted_together() -> None:
    """Of every method and code; probes are not calls."""
    meter = Meter(CollectorRegistry())
    assert meter.count() == 0
    read, write = meter.for_method("/a.B/Read"), meter.for_method("/a.B/Write")
    for record, code in ((read, "OK"), (read, "OK"), (read, "NOT_FOUND"), (write, "OK")):
        record(grpc.StatusCode[code], 0.001)
    meter.for_health("/grpc.health.v1.Health/Check")(grpc.StatusCode.OK, 0.001)
    assert meter.count() == 4


def test_without_a_registry_nothing_is_counted() -> None:
    """A server of a test has none."""
    meter = Meter(None)
    meter.for_method("/a.B/Read")(grpc.StatusCode.OK, 0.001)
    assert meter.count() == 0
