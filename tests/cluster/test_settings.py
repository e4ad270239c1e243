"""What a cluster may be made of: levels of memory protection."""

import pytest

from pilot.dev.directory import Plan
from tests.cluster.conftest import MakeCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.parametrize("level", [pytest.param(1, id="plain"), pytest.param(2, id="locked")])
def test_a_lower_level_of_protection_is_shown(make_cluster: MakeCluster, level: int) -> None:
    """A cluster held to a level of memory protection runs on it, and status and keepers say so."""
    cluster = make_cluster(Plan(keepers=2, threshold=2, lowest_level=level, highest_level=level))
    cluster.start()
    assert cluster.status()["memory_protection"] == level
    keepers = cluster.pilot("keeper", "list", "-o", "json").stdout
    assert keepers.count(f'"memory_protection": {level}') == 2
