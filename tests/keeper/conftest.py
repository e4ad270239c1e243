"""What the keeper's tests share: one authority and one provider for a module, and a shard to send."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from pilot.dev.provider import IdentityProvider
from tests.kit.authority import Authority
from tests.kit.keepers import KeeperProcess


@pytest.fixture(scope="session")
def ca() -> Authority:
    """Authority of example.test."""
    return Authority("example.test")


@pytest.fixture(scope="session")
def provider(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    """Workload API for every keeper of these tests."""
    with IdentityProvider(tmp_path_factory.mktemp("sockets"), ca, lifetime=timedelta(hours=1)) as provider:
        yield provider


@pytest.fixture(scope="module")
def shared_keeper(provider: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeeperProcess]:
    """A running keeper that the tests of a module share; they leave it unpinned and empty."""
    keeper = KeeperProcess(tmp_path_factory.mktemp("keeper"), provider)
    try:
        yield keeper.start()
    finally:
        keeper.close()


@pytest.fixture
def keeper(provider: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeeperProcess]:
    """A running keeper for one test."""
    keeper = KeeperProcess(tmp_path_factory.mktemp("keeper"), provider)
    try:
        yield keeper.start()
    finally:
        keeper.close()
