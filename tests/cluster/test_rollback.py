"""Rollback on real processes: an older copy of the store is put back, and the keepers remember better.

What marks do not cover: a put that is acknowledged before its mark went out with the next poll, so tests wait for the
marks; and an older store that was served again, by keepers or custodians without a mark, until it came further than it
had been when a mark turns up.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import shardhold
from pilot.dev.directory import Plan
from tests.kit.cluster import Cluster, running
from tests.kit.patience import patience
from tests.kit.probes import Status
from tests.kit.refusal import Refusal

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP = "/rollback/app"
KEPT, LOST = "rollback/kept", "rollback/lost"

ABORTED = grpc.StatusCode.ABORTED
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three keepers, threshold two, and a workload that has put one secret."""
    with running(tmp_path / "dev", Plan(keepers=3, threshold=2)) as own:
        own.allow(APP, ["rollback/**"], ["read", "write"])
        own.workload(APP).put(KEPT, {"value": b"kept"})
        own.wait_filled()
        yield own


def copy_older_store(cluster: Cluster, *marking: str) -> Path:
    """Copy the store, then put a secret that the copy does not have, and wait until keepers, or all, know of it."""
    cluster.wait_marked(*marking)
    cluster.kill("nexus")
    copy = cluster.store.copy("older")
    cluster.run("nexus")
    cluster.wait_ready()
    cluster.workload(APP).put(LOST, {"value": b"lost"})
    cluster.wait_marked(*marking)
    return copy


def put_back(cluster: Cluster, copy: Path) -> None:
    """Put the copy back under a nexus that is killed and started."""
    cluster.kill("nexus")
    cluster.store.put_back(copy)
    cluster.run("nexus")


def wait_blocked(cluster: Cluster) -> Status:
    """Wait until the nexus has its key back, and is blocked by nothing but the mark."""
    status = cluster.wait_status(
        "the older store is refused", lambda status: [*map(is_rollback, status["blocked_by"])] == [True]
    )
    assert status["state"] == "recovering"
    assert not cluster.dev.is_ready()
    return status


def is_rollback(obstacle: str) -> bool:
    return obstacle.startswith("the store is older than a rollback mark")


def accept(cluster: Cluster) -> int:
    """Accept the store as its status says it is."""
    status = cluster.superuser.get_status()
    return cluster.superuser.accept_older_store(status.timeline, status.revision)


def list_events(cluster: Cluster, event: str) -> list[dict[str, object]]:
    """Return what the nexus logged under this name."""
    lines = cluster.directory.log("nexus").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def get_fault(cluster: Cluster, name: str) -> str:
    """Return what is wrong with a keeper; empty when nothing is."""
    return next(keeper.fault for keeper in cluster.superuser.get_status().keepers if keeper.name == name)


def test_an_older_store_is_refused_until_it_is_accepted(cluster: Cluster) -> None:
    """Refused by status, /readyz, log and every call; accepted by a superuser alone, and only as it was looked at."""
    app = cluster.workload(APP)
    copy = copy_older_store(cluster)
    newer = cluster.superuser.get_status()
    put_back(cluster, copy)
    status = wait_blocked(cluster)
    older = status["revision"]
    assert older < newer.revision
    assert status["newer_mark"]["timeline"] == 1
    assert status["newer_mark"]["revision"] == newer.revision
    assert status["newer_mark"]["keepers"] == ["keeper-1", "keeper-2", "keeper-3"]
    said = (
        f"it is at timeline 1, revision {older}, and keeper-1, keeper-2, keeper-3 remember "
        f"timeline 1, revision {newer.revision}"
    )
    assert said in status["blocked_by"][0]
    assert said in cluster.fetch("nexus", "/readyz")
    (logged,) = list_events(cluster, "blocked")
    assert logged["level"] == "critical"
    assert said in str(logged["obstacles"])
    with pytest.raises(shardhold.RecoveringError):
        app.get(KEPT, timeout=patience(1))

    superuser = cluster.superuser
    for wrong in ((1, older - 1), (1, newer.revision), (2, older), (0, 0)):
        with Refusal(ABORTED, "VERSION_CONFLICT", says=f"store is at timeline 1, revision {older}"):
            superuser.accept_older_store(*wrong)
    with Refusal(PERMISSION_DENIED, "DENIED"):
        cluster.person("operator", "dev").accept_older_store(1, older)
    cluster.rerun("nexus")
    wait_blocked(cluster)

    assert superuser.accept_older_store(1, older) == 2
    assert cluster.dev.is_ready()
    after = cluster.wait_filled()
    assert (after["timeline"], after["newer_mark"], after["blocked_by"]) == (2, None, [])
    assert after["set_number"] > newer.set_number
    assert after["revision"] > older
    assert app.get(KEPT).fields == {"value": b"kept"}
    with pytest.raises(shardhold.NotFoundError):
        app.get(LOST)
    app.put(LOST, {"value": b"anew"})
    with Refusal(FAILED_PRECONDITION, "WRONG_STATE"):
        accept(cluster)
    cluster.restart_nexus()
    assert app.get(LOST).fields == {"value": b"anew"}

    # The same copy again is older than the timeline that began, and keepers hold no shard of its set any more.
    cluster.wait_marked()
    put_back(cluster, copy)
    cluster.wait_status("marks came", lambda status: status["newer_mark"] is not None)
    cluster.unseal()
    assert wait_blocked(cluster)["newer_mark"]["timeline"] == 2
    assert accept(cluster) == 3
    assert app.get(KEPT).fields == {"value": b"kept"}


def test_the_newest_copy_may_be_put_back_instead(cluster: Cluster) -> None:
    """Refused, the nexus has changed nothing: with the right store it is ready by itself, and nothing is lost."""
    copy = copy_older_store(cluster)
    cluster.kill("nexus")
    newest = cluster.store.copy("newest")
    cluster.run("nexus")
    cluster.wait_ready()
    put_back(cluster, copy)
    wait_blocked(cluster)
    put_back(cluster, newest)
    cluster.wait_ready()
    assert cluster.workload(APP).get(LOST).fields == {"value": b"lost"}


def test_a_copy_of_now_is_not_older(cluster: Cluster) -> None:
    """A store that is moved with all it has is ready by itself."""
    cluster.wait_marked()
    cluster.kill("nexus")
    copy = cluster.store.copy("now")
    cluster.run("nexus")
    cluster.wait_ready()
    put_back(cluster, copy)
    cluster.wait_ready()
    assert cluster.workload(APP).get(KEPT).fields == {"value": b"kept"}


def test_a_mark_that_comes_later_ends_ready(cluster: Cluster) -> None:
    """A keeper that was away at the start and remembers more ends serving, until the older store is accepted."""
    app = cluster.workload(APP)
    cluster.wait_marked()
    cluster.kill("nexus")
    copy = cluster.store.copy("older")
    cluster.run("nexus")
    cluster.wait_ready()
    others = ("keeper-1", "keeper-2")
    cluster.freeze(*others)
    app.put(LOST, {"value": b"lost"})
    newest = cluster.wait_marked("keeper-3")
    cluster.kill("nexus")
    cluster.freeze("keeper-3")
    cluster.thaw(*others)
    cluster.store.put_back(copy)
    cluster.run("nexus")
    cluster.wait_ready()
    assert app.get(KEPT).fields == {"value": b"kept"}
    cluster.thaw("keeper-3")
    status = wait_blocked(cluster)
    assert status["newer_mark"]["keepers"] == ["keeper-3"]
    assert (status["newer_mark"]["timeline"], status["newer_mark"]["revision"]) == newest
    assert list_events(cluster, "store was put back")[0]["level"] == "critical"
    with pytest.raises(shardhold.RecoveringError):
        app.get(KEPT, timeout=patience(1))
    assert accept(cluster) == 2
    assert app.get(KEPT).fields == {"value": b"kept"}
    cluster.wait_filled()
    cluster.restart_nexus()
    cluster.wait_filled()
    assert cluster.status()["blocked_by"] == []


def test_a_mark_that_comes_after_an_unseal_ends_ready(cluster: Cluster) -> None:
    """Custodians brought an older store back while no keeper was there: the first that comes says so."""
    copy = copy_older_store(cluster)
    cluster.workload(APP).put(LOST, {"value": b"lost as well"})
    cluster.wait_marked()
    cluster.freeze(*cluster.keepers)
    put_back(cluster, copy)
    cluster.unseal()
    cluster.wait_ready()
    cluster.thaw("keeper-2")
    cluster.wait_status("ready ends", lambda status: status["state"] == "recovering")
    cluster.unseal()  # the new set has reached one keeper at most
    assert wait_blocked(cluster)["newer_mark"]["keepers"] == ["keeper-2"]
    accept(cluster)
    assert cluster.workload(APP).get(KEPT).fields == {"value": b"kept"}


def test_keepers_that_were_restarted_are_given_the_mark_again(cluster: Cluster) -> None:
    """One keeper after another restarts while nothing is written: the marks survive, and the rollback is seen."""
    copy = copy_older_store(cluster)
    for name in cluster.keepers:
        cluster.rerun(name)
        cluster.wait_filled(name)
        cluster.wait_marked(name)
    put_back(cluster, copy)
    wait_blocked(cluster)
    accept(cluster)


def test_what_was_put_just_before_a_seal_is_remembered(cluster: Cluster) -> None:
    """The last mark goes out before the keepers drop their sets: an older store does not open the door in silence."""
    copy = copy_older_store(cluster)
    sealed_at = 0
    for number in range(5):
        cluster.workload(APP).put(LOST, {"value": b"%d" % number})
        sealed_at = cluster.superuser.get_status().revision
        assert cluster.superuser.seal().keepers_emptied == 3
        marks = [cluster.fetch_mark(name) for name in cluster.keepers]
        assert [mark.revision for mark in marks if mark] == [sealed_at + 1] * 3  # the seal itself
        cluster.unseal()
        cluster.wait_filled()
    cluster.superuser.seal()
    put_back(cluster, copy)
    status = cluster.wait_status(
        "marks came, and no shards",
        lambda status: status["newer_mark"] is not None and "0 of 2 shards" in " ".join(status["blocked_by"]),
    )
    assert status["state"] == "recovering"  # the copy knows of no seal
    assert status["newer_mark"]["revision"] > sealed_at
    with Refusal(FAILED_PRECONDITION, "WRONG_STATE", says="there is no root key yet"):
        accept(cluster)
    session = cluster.custodian(1).start_unseal()
    for number in (1, 2, 3):
        submitted = cluster.custodian(number).submit_words(session.session_id, cluster.words[number - 1])
    assert (submitted.submitted, submitted.ready) == (3, False)
    wait_blocked(cluster)
    assert accept(cluster) == 2
    assert cluster.workload(APP).get(KEPT).fields == {"value": b"kept"}
    cluster.wait_filled()
    cluster.restart_nexus()


def test_a_sealed_older_store_stays_sealed_and_blocked(cluster: Cluster) -> None:
    """Both doors are shut: custodians open the one, a superuser the other; a restart between them starts anew."""
    cluster.superuser.seal()
    cluster.kill("nexus")
    copy = cluster.store.copy("sealed")
    cluster.run("nexus")
    cluster.unseal()
    cluster.wait_filled()
    cluster.workload(APP).put(LOST, {"value": b"lost"})
    cluster.wait_marked()
    put_back(cluster, copy)
    status = cluster.wait_status("marks came", lambda status: status["newer_mark"] is not None)
    assert status["state"] == "sealed"
    cluster.unseal()
    wait_blocked(cluster)
    cluster.rerun("nexus")
    assert cluster.status()["state"] == "sealed"
    cluster.wait_status("marks came again", lambda status: status["newer_mark"] is not None)
    cluster.unseal()
    wait_blocked(cluster)
    accept(cluster)
    assert cluster.workload(APP).get(KEPT).fields == {"value": b"kept"}
    cluster.wait_filled()
    cluster.restart_nexus()


@pytest.mark.parametrize("restart", [False, True], ids=["at once", "after a restart"])
def test_a_blocked_nexus_can_be_sealed(cluster: Cluster, restart: bool) -> None:
    """The key that was held is wiped, and however often it is sealed: the block is still there after the unseal."""
    put_back(cluster, copy_older_store(cluster))
    wait_blocked(cluster)
    for _ in range(3):
        assert cluster.superuser.seal().keepers_emptied == 3
    assert cluster.status()["state"] == "sealed"
    if restart:
        cluster.rerun("nexus")
        cluster.wait_status("marks came", lambda status: status["newer_mark"] is not None)
        assert cluster.status()["state"] == "sealed"
    cluster.unseal()
    wait_blocked(cluster)
    accept(cluster)
    assert cluster.workload(APP).get(KEPT).fields == {"value": b"kept"}


@pytest.mark.parametrize(
    ("lie", "fault"),
    [
        ("future-mark", "rollback mark has a broken signature"),
        ("broken-mark", "rollback mark has a broken signature"),
        ("foreign-mark", "the genesis record of another cluster"),
    ],
)
def test_a_lying_keepers_mark_blocks_nothing(cluster: Cluster, lie: str, fault: str) -> None:
    """It is named and nobody else is; the nexus is ready, and a true mark beside the lie still blocks."""
    cluster.replace_keeper("keeper-2", lie)
    cluster.wait_filled("keeper-2")
    copy = copy_older_store(cluster, "keeper-1", "keeper-3")
    cluster.restart_nexus()
    assert cluster.workload(APP).get(LOST).fields == {"value": b"lost"}
    cluster.wait("keeper-2 is named", lambda: fault in get_fault(cluster, "keeper-2"))
    assert not any(get_fault(cluster, name) for name in ("keeper-1", "keeper-3"))
    assert any(fault in str(line["fault"]) for line in list_events(cluster, "keeper fault"))
    put_back(cluster, copy)
    assert wait_blocked(cluster)["newer_mark"]["keepers"] == ["keeper-1", "keeper-3"]


def test_a_slow_keeper_delays_the_block_check_by_half_a_second(cluster: Cluster) -> None:
    """A nexus that has t shards waits 500 ms for the marks of the other keepers, and no longer."""
    cluster.freeze("keeper-3")
    cluster.kill("nexus")
    began = time.monotonic()
    cluster.run("nexus")
    cluster.wait_ready()
    assert time.monotonic() - began < patience(10)  # not for ever, on a slow machine
