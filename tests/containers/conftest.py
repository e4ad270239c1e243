"""Images, built once for all tests and removed behind them, and stacks made of them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers.stack import Stack, build_images, remove_images, running
from tests.containers.traffic import with_load

MakeStack = Callable[..., Stack]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests in this folder the time that containers, and an image that is built first, take."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def images() -> Iterator[str]:
    """All images, fresh from the working tree; the tag that they have."""
    tag = f"test-{os.getpid()}"
    print(f"\nimages built in {build_images(tag):.0f} s")
    yield tag
    remove_images(tag)


@pytest.fixture(scope="module")
def stack(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that is up, ready and initialised, for all tests of a module."""
    with running(tmp_path_factory.mktemp("stack"), images) as shared:
        yield shared


@pytest.fixture(scope="module")
def loaded_stack(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same, for tests that let calls flow meanwhile (`tests/containers/traffic.py`)."""
    with running(tmp_path_factory.mktemp("stack"), images, override=with_load()) as shared:
        yield shared
