"""Rollback marks that are made while one root key follows another."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.forms.mark import SignedMark, verify_mark_chain
from nexus.access.audit.continuity import Continuity
from nexus.keepers.marks import OWN, is_of_dead_key
from nexus.keys.genesis_pin import GenesisPin
from nexus.lifecycle.store_marks import StoreMarks
from tests.kit.manual_clock import ManualClock
from tests.nexus.cluster import FoundCluster
from tests.nexus.flipping import Flipping


class Marking(Flipping):
    """A nexus that marks how far its store has come."""

    def __init__(self, folder: Path, found: FoundCluster) -> None:
        super().__init__(folder, found(keepers=3, threshold=2))
        files = Continuity(self.store, self.log)
        lock = threading.RLock()
        self.marks = StoreMarks(self.store, self.lifecycle, ManualClock(), lock, GenesisPin(), files.find_end)
        self.marks.begin_serving(self.serving)
        self.find = self.marks.make_finder(self.serving)
        self.found: list[SignedMark | None] = []  # as a keeper would have been given them

    def mark(self) -> None:
        """Make a mark, or see that there is none now."""
        self.found.append(self.find())

    def list_generations(self) -> list[int | None]:
        """Verify the marks with their chains, and list who signed them."""
        chains = [signed and verify_mark_chain(signed, self.cluster.genesis) for signed in self.found]
        return [chain.generation if chain else None for chain in chains]

    def check(self) -> None:
        """See that no mark is newer than the store, or of a dead key, and that the store is not called lost."""
        assert self.marks.book is not None
        assert self.lifecycle.store_fault == ""
        assert self.marks.find_newer() is None
        for seen in self.marks.book.list_known().marks[OWN]:
            assert seen.mark.generation == seen.chain.generation
            assert not is_of_dead_key(seen, self.cluster.chain)
            assert not seen.chain.links or seen.mark.position >= seen.chain.links[-1].position


@pytest.fixture
def nexus(tmp_path: Path, found: FoundCluster) -> Iterator[Marking]:
    """A nexus of generation 1 that has marked its store once."""
    nexus = Marking(tmp_path, found)
    nexus.mark()
    yield nexus
    nexus.close()


def flip_twice(nexus: Marking) -> None:
    nexus.flip()
    nexus.flip()


@pytest.mark.parametrize(
    ("arm", "generation"),
    [
        pytest.param(lambda nexus: nexus.flip(), 2, id="before"),
        pytest.param(lambda nexus: setattr(nexus.store, "at_read", nexus.flip), 2, id="before the store is read"),
        pytest.param(lambda nexus: setattr(nexus.store, "after_read", nexus.flip), None, id="after it is read"),
        pytest.param(
            lambda nexus: setattr(nexus.store, "after_read", lambda: flip_twice(nexus)), None, id="two after it is read"
        ),
    ],
)
def test_a_flip_while_a_mark_is_made(nexus: Marking, arm: Callable[[Marking], object], generation: int | None) -> None:
    """What was read before is not signed with the key of after; the next mark is signed with it, and leads to it."""
    arm(nexus)
    nexus.mark()
    nexus.check()
    nexus.wipe_replaced()
    nexus.mark()
    assert nexus.list_generations() == [1, generation, nexus.serving.root_key.generation]
    nexus.check()


def test_no_mark_is_made_in_the_midst_of_a_flip(nexus: Marking) -> None:
    """Neither with the key of before nor with that of after, until the floor is raised to the change."""
    nexus.flip(between=nexus.mark, before_floor=nexus.mark)
    nexus.wipe_replaced()
    nexus.mark()
    assert nexus.list_generations() == [1, None, None, 2]
    nexus.check()
