"""The way back by custodians: looked after while nobody needs it."""

from pathlib import Path

import pytest

from nexus.lifecycle.states import State
from nexus.lifecycle.way_back import CHECK_S
from tests.nexus.cluster import FoundCluster, tamper
from tests.nexus.conftest import StartNexus, WaitUntil

ESCROW, RECOVERY_KEY = ("escrow", "1"), ("recovery-key", "current")
EDIT = "UPDATE control SET body = x'00' WHERE kind = ? AND name = ?"
DELETE = "DELETE FROM control WHERE kind = ? AND name = ?"


@pytest.mark.parametrize("statement", [EDIT, DELETE], ids=["edited", "deleted"])
@pytest.mark.parametrize("row", [ESCROW, RECOVERY_KEY], ids="/".join)
def test_a_row_that_is_damaged_while_the_nexus_serves_is_an_alarm_within_a_minute(
    found: FoundCluster,
    start_nexus: StartNexus,
    wait_until: WaitUntil,
    tmp_path: Path,
    row: tuple[str, str],
    statement: str,
) -> None:
    """The alarm names the row, goes when the row is put back, and the nexus stays ready all the while."""
    cluster = found()
    with cluster.store.read() as reader:
        (body,) = (one.body for one in reader.load_controls() if (one.kind, one.name) == row)
        (digest,) = (one.digest for one in reader.load_controls() if (one.kind, one.name) == row)
    core = start_nexus(cluster.keepers())
    wait_until(lambda: core.states == [State.READY])
    assert core.warden.list_alarms() == []
    tamper(tmp_path, statement, *row)
    core.clock.advance(CHECK_S)
    wait_until(core.warden.list_alarms)
    (alarm,) = core.warden.list_alarms()
    assert f"custodians could not bring this cluster back: control row {'/'.join(row)} does not verify" in alarm
    assert core.warden.is_way_back_broken
    tamper(tmp_path, "INSERT OR REPLACE INTO control VALUES (?, ?, ?, ?)", *row, body, digest)
    core.clock.advance(CHECK_S)
    wait_until(lambda: not core.warden.list_alarms())
    assert core.states == [State.READY]
