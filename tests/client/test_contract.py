"""The contract of services, kept by the fake nexus."""

from collections.abc import Iterator

import pytest

from shardhold import Client
from shardhold.testing import FakeNexus
from tests.client.bridge import LoopThread
from tests.client.contract import (  # noqa: F401 — collected here
    READ_ONLY,
    SPIFFE_ID,
    TestListing,
    TestRefusals,
    TestRemoving,
    TestStatus,
    TestWriting,
    path,
)


@pytest.fixture(params=["Client", "AsyncClient"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """Return a client of either kind, of a fake nexus that denies what the real one does not allow."""
    nexus = FakeNexus(caller=SPIFFE_ID)
    nexus.deny(f"{READ_ONLY}/**", "write", "list", "delete")
    nexus.deny("elsewhere/**")
    if request.param == "Client":
        with nexus.client() as client:
            yield client
        return
    with LoopThread() as loop, loop.bridge(nexus.async_client()) as client:
        yield client
