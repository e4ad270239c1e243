"""A rotation on a store that somebody else writes as well."""

from pathlib import Path

import pytest

from common.errors import CorruptRowError
from nexus.keys.operation.record import Depth, Outcome, Step
from nexus.keys.records import MAX_KEK_ID
from nexus.lifecycle.states import State
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.reshared import Resharing
from tests.nexus.cluster import tamper
from tests.nexus.conftest import StartNexus

ROTATE = pytest.mark.parametrize("resharing", [Depth.ROTATE], indirect=True)


@ROTATE
@pytest.mark.parametrize("name", ["1", "7"])
def test_a_link_that_somebody_adds_before_the_flip_does_not_displace_the_true_one(
    resharing: Resharing, start_nexus: StartNexus, tmp_path: Path, name: str
) -> None:
    """Else no nexus would find the chain of the new key any more, whoever brought it back."""
    resharing.begin()
    resharing.drive_to(Step.DISTRIBUTED)
    tamper(tmp_path, f"INSERT INTO control VALUES ('link', '{name}', x'7b7d', zeroblob(32))")
    resharing.drive_to(None)
    assert resharing.ended is not None
    assert (resharing.ended.outcome, resharing.ended.detail) == (
        Outcome.ABORTED,
        f"control row link/{name} does not verify",
    )
    resharing.core = start_nexus(resharing.keepers, store=resharing.store)
    wait_until(lambda: resharing.core.lifecycle.state is State.READY)


@ROTATE
def test_a_kek_number_that_nobody_can_count_to_is_refused(resharing: Resharing, tmp_path: Path) -> None:
    """The meta row, which nothing authenticates, says which numbers were given out."""
    tamper(tmp_path, f"UPDATE meta SET last_kek_id = {MAX_KEK_ID}")
    with pytest.raises(CorruptRowError, match="number"):
        resharing.begin()
    tamper(tmp_path, f"UPDATE meta SET last_kek_id = {MAX_KEK_ID - 1}")
    resharing.begin()
    resharing.drive_to_rest()
    assert resharing.facts.kek_id == MAX_KEK_ID
