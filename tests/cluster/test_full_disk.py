"""A real nexus on a full disk, under the database or under the audit: it refuses truly, and goes on when there is room.

That each single write fails with EIO or ENOSPC is in test_sweeps.py and test_sweeps_of_shutting.py.
"""

from collections.abc import Iterator

import pytest

from common.forms.audit.verify import verify
from pilot.dev.cluster import server_command
from pilot.dev.directory import Plan
from tests.cluster.conftest import MakeCluster
from tests.cluster.ledger import Ledger
from tests.cluster.small_disk import SmallDisk, small_disk
from tests.kit.cluster import Cluster
from tests.kit.refusal import read_outcome

pytestmark = [pytest.mark.cluster, pytest.mark.destructive, pytest.mark.needs("tmpfs")]

AUDIT_OBSTACLE = "audit entries cannot be written"
SIZE = "3m"  # more than a store and the audit's reserve take, less than the audit would like to set aside


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    """Two keepers, which run, and no nexus yet."""
    cluster = make_cluster(Plan(keepers=2, threshold=2))
    cluster.run(*cluster.keepers)
    return cluster


@pytest.fixture
def data(cluster: Cluster) -> Iterator[SmallDisk]:
    """The disk of the database."""
    with small_disk(cluster.directory.data, SIZE) as disk:
        yield disk
        cluster.close()  # while the disk is there


@pytest.fixture
def audit(cluster: Cluster) -> Iterator[SmallDisk]:
    """The disk of the audit."""
    with small_disk(cluster.directory.audit, SIZE) as disk:
        yield disk
        cluster.close()


def start(cluster: Cluster, disk: SmallDisk) -> None:
    """Start the nexus where the disk is, and wait until it answers."""
    cluster.processes.start_instead("nexus", disk.wrap(server_command(cluster.directory, "nexus")))
    cluster.wait("the nexus answers", lambda: bool(cluster.fetch("nexus", "/livez")))


def restart(cluster: Cluster, disk: SmallDisk) -> str:
    cluster.kill("nexus")
    start(cluster, disk)
    return cluster.wait_settled()


def begin(cluster: Cluster, disk: SmallDisk) -> Ledger:
    """Initialise a cluster on the disk, with something in it."""
    start(cluster, disk)
    cluster.dev.init()
    cluster.wait_ready()
    cluster.wait_filled()
    ledger = Ledger(cluster.superuser)
    assert not ledger.put()
    return ledger


def is_audit_failing(cluster: Cluster) -> bool:
    return AUDIT_OBSTACLE in cluster.fetch("nexus", "/readyz")


def test_full_under_the_database(cluster: Cluster, data: SmallDisk) -> None:
    """Puts are refused, reads go on, through a kill as well; with room again puts go on without a restart."""
    ledger = begin(cluster, data)
    data.fill()
    cluster.wait("puts are refused", lambda: ledger.put() == "STORE_UNAVAILABLE")
    assert not ledger.read()
    assert restart(cluster, data) == "ready"
    assert not ledger.read()
    ledger.check()
    cluster.wait("puts are refused", lambda: ledger.put() == "STORE_UNAVAILABLE")
    data.make_room()
    assert not ledger.put()
    cluster.wait_ready()
    assert restart(cluster, data) == "ready"
    ledger.check()
    assert not ledger.put()


def test_full_under_the_audit(cluster: Cluster, audit: SmallDisk) -> None:
    """Readiness says so, status and seal go through; nothing else does, after a kill as well, until there is room."""
    ledger = begin(cluster, audit)
    audit.fill()
    cluster.wait("reads are refused", lambda: ledger.read() == "AUDIT_UNAVAILABLE")
    assert ledger.put() == "AUDIT_UNAVAILABLE"
    cluster.wait("readiness goes down", lambda: is_audit_failing(cluster))
    assert cluster.superuser.get_status().revision
    told = cluster.pilot("status", "--exit-code", exit_code=7)
    assert "blocked by  audit entries cannot be written, so almost every call is refused" in told.stdout
    assert cluster.superuser.seal().keepers_emptied == 2
    assert restart(cluster, audit) == "sealed"
    cluster.wait("nobody unseals", lambda: read_outcome(cluster.unseal).reason == "AUDIT_UNAVAILABLE")
    assert cluster.superuser.get_status().genesis is not None
    audit.make_room()
    cluster.wait("the audit works again", lambda: not is_audit_failing(cluster))
    cluster.bring_back()
    ledger.check()
    assert not ledger.put()
    cluster.kill("nexus")
    assert not verify(audit.seen).faults
