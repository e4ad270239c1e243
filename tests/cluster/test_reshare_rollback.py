"""A store from before a reshare is put back, or one from the middle of it: keepers remember better."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot.dev.directory import Plan
from shardhold.v1 import root_pb2 as pb
from tests.cluster.reshares import Reshares
from tests.kit.cluster import running

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reshares]:
    """Three keepers, threshold two."""
    with running(tmp_path_factory.mktemp("rollback") / "dev", Plan(keepers=3, threshold=2)) as cluster:
        yield Reshares(cluster)


@pytest.fixture
def reshares(shared: Reshares) -> Reshares:
    """The shared cluster, whole and with a secret."""
    shared.cluster.restore()
    shared.cluster.wait_marked()
    shared.ledger.turn()
    assert not shared.ledger.put()
    return shared


def wait_refused(reshares: Reshares) -> tuple[int, int]:
    """Wait until nothing but a newer mark blocks the nexus, and return where its store stands."""
    cluster = reshares.cluster
    cluster.wait_status(
        "the older store is refused",
        lambda status: (
            status["blocked_by"] and all("older than a rollback mark" in why for why in status["blocked_by"])
        ),
    )
    status = cluster.superuser.get_status()
    return status.timeline, status.revision


def unseal_old_set(reshares: Reshares) -> None:
    """Wait until no keeper gives a shard of the set that the store names, and have custodians bring the key."""
    reshares.cluster.wait_status(
        "keepers have dropped the set", lambda status: any("0 of 2 shards" in why for why in status["blocked_by"])
    )
    reshares.cluster.unseal()


def copy_store(reshares: Reshares) -> Path:
    """Copy the store of a nexus that has just been killed."""
    return reshares.cluster.store.copy(f"at-{reshares.find_current().set_number}-{os.urandom(4).hex()}")


def test_a_store_from_before_a_reshare(reshares: Reshares) -> None:
    """Keepers have dropped the set that it names: custodians bring the key, and the marks still block."""
    cluster = reshares.cluster
    cluster.wait_marked()
    cluster.kill("nexus")
    older = copy_store(reshares)
    cluster.start_nexus()
    reshares.reshare()
    reshares.check_world()
    cluster.wait_marked()
    cluster.kill("nexus")
    cluster.store.put_back(older)
    cluster.run("nexus")
    unseal_old_set(reshares)
    cluster.superuser.accept_older_store(*wait_refused(reshares))
    reshares.check_world()


def test_a_store_from_the_middle_of_a_reshare(reshares: Reshares) -> None:
    """Its operation was settled since then; accepting the store takes it back, and nothing carries it on."""
    cluster = reshares.cluster
    point = "distribute.commit:after:1:kill"
    reshares.arm("nexus", point)
    cluster.wait_ready()
    cluster.wait_filled()
    begun = reshares.begin()
    reshares.wait_killed("nexus", point)
    older = copy_store(reshares)
    cluster.start_nexus()
    assert reshares.wait_ended().outcome == pb.OUTCOME_SETTLED
    reshares.check_world()
    cluster.wait_marked()
    cluster.kill("nexus")
    cluster.store.put_back(older)
    cluster.run("nexus")
    unseal_old_set(reshares)
    position = wait_refused(reshares)
    cluster.superuser.accept_older_store(*position)
    ended = reshares.wait_ended()
    assert (ended.operation_id, ended.outcome) == (begun.operation_id, pb.OUTCOME_ABORTED)
    reshares.check_world()
