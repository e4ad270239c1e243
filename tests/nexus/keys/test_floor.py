"""The floor of a ready nexus: what a read or a change may find, and what says that somebody else wrote the store."""

import pytest

from common.errors import RecoveringError, StoreLostError
from nexus.keys.floor import Floor, Standing
from nexus.store.protocol import Position

LEFT = Position(timeline=2, revision=50, control_revision=7, epoch=4, generation=3, kek_id=5)


@pytest.fixture
def floor() -> Floor:
    """A floor at `LEFT`."""
    return Floor(Standing(LEFT, b"m" * 32))


LOWER = [
    pytest.param({"revision": 49}, "at revision 49, and this nexus left it at revision 50", id="revision"),
    pytest.param({"control_revision": 6}, "control revision 6, and this nexus left it", id="control revision"),
    pytest.param({"epoch": 3}, "epoch 3, and this nexus left it at epoch 4", id="epoch"),
    pytest.param({"timeline": 1}, "at timeline 1, and this nexus left it at timeline 2", id="timeline"),
    pytest.param({"timeline": 1, "revision": 99}, "timeline 1, revision 99", id="timeline, revision raised"),
    pytest.param({"revision": 99, "epoch": 3}, "revision 99, epoch 3", id="epoch, revision raised"),
]
HIGHER = [
    pytest.param(
        {"control_revision": 8}, "changed by somebody else: it is at control revision 8", id="control revision"
    ),
    pytest.param({"epoch": 5}, "changed by somebody else: it is at epoch 5", id="epoch"),
    pytest.param({"timeline": 3}, "changed by somebody else: it is at timeline 3", id="timeline"),
    pytest.param({"generation": 4}, "by somebody else: it is at generation 4, and this nexus", id="generation"),
    pytest.param({"generation": 0}, "by somebody else: it is at generation 0, and this nexus", id="no generation"),
    pytest.param({"kek_id": 6}, "by somebody else: it is at kek id 6, and this nexus left it at kek id 5", id="KEK"),
    pytest.param({"kek_id": 0}, "by somebody else: it is at kek id 0, and this nexus left it at kek id 5", id="no KEK"),
]


@pytest.mark.parametrize(("changes", "says"), LOWER)
def test_a_store_that_was_put_back_is_found_by_reads_and_changes(
    floor: Floor, changes: dict[str, int], says: str
) -> None:
    """Any one of its numbers gives it away, however the others were edited."""
    for check in (lambda found: floor.check_read(LEFT, found), floor.check_basis):
        with pytest.raises(StoreLostError, match="the store was put back: it is at .*") as caught:
            check(LEFT._replace(**changes))
        assert says in str(caught.value)
    assert isinstance(caught.value, RecoveringError)  # callers may wait


@pytest.mark.parametrize(("changes", "says"), HIGHER)
def test_a_store_that_somebody_else_brought_further_is_found_by_a_change(
    floor: Floor, changes: dict[str, int], says: str
) -> None:
    """A read may meet a commit of ours that nobody was told of yet; a change may not."""
    found = LEFT._replace(**changes)
    floor.check_read(LEFT, found)
    with pytest.raises(StoreLostError, match=says):
        floor.check_basis(found)


def test_a_read_is_compared_with_the_floor_of_before_it_began(floor: Floor) -> None:
    """What was committed while it ran is not below what it finds."""
    before = floor.position
    floor.raise_to(Standing(Position(2, 52, 8, 5), b"n" * 32))
    floor.check_read(before, LEFT)
    with pytest.raises(StoreLostError):
        floor.check_read(floor.position, LEFT)


def test_a_change_may_follow_others_of_its_commit(floor: Floor) -> None:
    """They take revisions, and nobody was told of them yet."""
    floor.check_basis(LEFT)
    floor.check_basis(LEFT._replace(revision=60))


def test_revisions_only_go_up(floor: Floor) -> None:
    """Changes that were committed together may come back in any order."""
    for revision in (53, 51, 52):
        floor.reach(revision)
        assert floor.standing == Standing(LEFT._replace(revision=53), b"m" * 32)


def test_the_manifest_is_the_one_that_was_left(floor: Floor) -> None:
    """Another one with the same numbers is not built on."""
    floor.check_manifest(b"m" * 32)
    with pytest.raises(StoreLostError, match="is not the one that this nexus left"):
        floor.check_manifest(b"n" * 32)
