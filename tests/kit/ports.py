"""Ports for the clusters of this test process: two that run at once, as pytest-xdist has them, never share one.

They are below those of `pilot.dev.ports`, which a `pilot dev up` of a test takes.
"""

import os

from pilot.dev.ports import RANGE

_LOWEST = 8000


def find_port_range() -> range:
    """Return this process's slice of the ports for tests; all of them when it runs alone."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (RANGE.start - _LOWEST) // workers
    return range(_LOWEST + number * size, _LOWEST + (number + 1) * size)
