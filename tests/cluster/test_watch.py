"""`pilot watch` on a terminal, before a cluster that goes through what it is there to show."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot.dev.directory import Plan
from pilot.dev.identities import SUPERUSER_PATH, Identity
from tests.kit.cluster import Cluster, running
from tests.kit.screen import Screen

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

LIFETIME_S = 6.0  # of SVIDs; they are replaced halfway through it


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two keepers, threshold two, and SVIDs that soon expire."""
    with running(tmp_path / "dev", Plan(keepers=2, threshold=2, lifetime_s=LIFETIME_S)) as cluster:
        yield cluster


def test_a_watch_survives_restart_seal_and_rotation(cluster: Cluster) -> None:
    """One screen from beginning to end: what was known stays through each silence, and it comes back by itself."""
    own = Identity(path=SUPERUSER_PATH)
    with Screen("watch", "--interval", "0.3", environ=cluster.dev.variables(own)) as screen:
        screen.wait("● ready", "keeper-2", "any 2 of 2 keepers", "any 3 of 5 custodians", "2 keepers, ", "all synced")
        begin = cluster.superuser.get_status()
        first = begin.svid_expires_at.seconds
        cluster.wait("calls are counted", lambda: cluster.superuser.get_status().calls >= begin.calls + 2)
        assert (begin.started_at.seconds, begin.backup.configured) == (
            cluster.superuser.get_status().started_at.seconds,
            True,
        )

        cluster.kill("keeper-2")
        screen.wait("○ unreachable", "does not answer", "until 1 more keeper")
        cluster.run("keeper-2")
        cluster.wait_filled()

        cluster.kill("nexus")
        silent = screen.wait("○ ready", "nexus does not answer since", "what follows is 2 s old")
        assert "any 2 of 2 keepers" in silent
        cluster.start_nexus()
        assert "does not answer" not in screen.wait("● ready", "● held")

        cluster.superuser.seal()
        screen.wait("● sealed", "custodians bring it back: 'pilot unseal'")
        cluster.unseal()
        screen.wait("● ready", "● held")

        cluster.wait("the end of every first SVID", lambda: cluster.superuser.get_status().told_at.seconds > first)
        screen.forget()
        assert "does not answer" not in screen.wait("● ready", "● held", "SVID      expires in ")
        screen.press("q")
        assert screen.wait_end() == 0
        assert screen.find_modes() == screen.modes
