"""Images, built once for all tests and removed after them, and stacks made of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.rounds import is_due, load_named, parse_round
from tests.containers.shared import ORDER, SharedStacks
from tests.containers.stack import build_images, remove_images


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests of this folder in order, leave out those that are not due, and give the others enough time."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    others = [item for item in items if item not in ours]
    due = sorted(_select(config, ours), key=lambda item: ORDER.index(item.path.stem))
    for item in due:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))  # an image may have to be built first
    items[:] = others + due


def _select(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """Return those that run in this round, and report the others as deselected."""
    try:
        number = parse_round(os.environ.get("TEST_ROUND", ""))
    except ValueError as exc:
        raise pytest.UsageError(str(exc)) from exc
    if number is None:
        return items
    named = load_named()
    due = [item for item in items if is_due(item.nodeid, number, named)]
    config.hook.pytest_deselected(items=[item for item in items if item not in due])
    return due


@pytest.fixture(scope="session")
def images() -> Iterator[str]:
    """All images, fresh from the working tree; the tag that they have."""
    tag = f"test-{os.getpid()}"
    try:
        print(f"\nimages built in {build_images(tag):.0f} s")
        yield tag
    finally:
        remove_images(tag)


@pytest.fixture(scope="session")
def stacks(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedStacks]:
    """The stacks that modules share."""
    shared = SharedStacks(tmp_path_factory.mktemp("stacks"), images)
    try:
        yield shared
    finally:
        shared.remove()
