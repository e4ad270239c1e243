"""Reads with the root key of the store, at the moment in which another one becomes current."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.keys.keyed_read import read_with_key
from nexus.keys.ruled_change import load_facts
from tests.kit.patience import join
from tests.kit.waiting import wait_until
from tests.nexus.cluster import FoundCluster
from tests.nexus.flipping import Flipping


@pytest.fixture
def flipping(tmp_path: Path, found: FoundCluster) -> Iterator[Flipping]:
    """One nexus of three keepers."""
    flipping = Flipping(tmp_path / "audit", found())
    yield flipping
    flipping.close()


def read_generation(flipping: Flipping, into: list[int]) -> None:
    """Read which generation is current, with the key that is served with."""
    with flipping.lifecycle.borrow() as serving:
        into.append(read_with_key(flipping.store, serving, load_facts).generation)


def test_a_read_between_the_commit_of_a_flip_and_its_swap_has_both(flipping: Flipping) -> None:
    """It waits for the swap, in a turn at the writer, and finds nothing damaged."""
    found: list[int] = []
    thread = threading.Thread(target=read_generation, args=[flipping, found])

    def read() -> None:
        thread.start()
        wait_until(lambda: flipping.store.writes or not thread.is_alive(), what="the read has met the flip")

    flipping.flip(between=read)
    join(thread, 10)
    assert found == [2]


def test_a_read_beside_no_flip_takes_no_turn_at_the_writer(flipping: Flipping) -> None:
    found: list[int] = []
    read_generation(flipping, found)
    assert (found, flipping.store.writes) == ([1], 0)
