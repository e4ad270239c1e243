"""Fixtures for pytest: `pytest_plugins = ["shardhold.testing.pytest"]` in the top conftest.py makes them known.

Each test has a nexus of its own.
"""

import pytest

from shardhold.testing import FakeAsyncClient, FakeClient, FakeNexus


@pytest.fixture
def shardhold_nexus() -> FakeNexus:
    """Return an empty nexus that is ready and allows everything."""
    return FakeNexus()


@pytest.fixture
def shardhold_client(shardhold_nexus: FakeNexus) -> FakeClient:
    """Return a client of the test's nexus."""
    return shardhold_nexus.client()


@pytest.fixture
def shardhold_async_client(shardhold_nexus: FakeNexus) -> FakeAsyncClient:
    """Return a client of the test's nexus for asyncio."""
    return shardhold_nexus.async_client()
