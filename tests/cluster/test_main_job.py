"""Shardhold's main job on real processes: a restarted nexus gets its key back from its keepers, without a human."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardhold
from pilot.dev.identities import TRUST_DOMAIN
from tests.kit.cluster import Cluster
from tests.kit.probes import Status

pytestmark = pytest.mark.cluster

APP = "/main-job/app"
FIELDS = {"user": b"app", "password": b"\x00\xff correct horse"}


@pytest.fixture(scope="module")
def app(cluster: Cluster) -> shardhold.Client:
    """A workload that may read and write below main-job/."""
    cluster.allow(APP, ["main-job/**"], ["read", "write", "delete", "list"])
    return cluster.workload(APP)


@pytest.fixture(autouse=True)
def _leave_whole(cluster: Cluster) -> Iterator[None]:
    """Whatever a test does to the cluster, the next one finds it whole."""
    yield
    cluster.restore()


def get_keeper(status: Status, name: str) -> Status:
    """Return the line of one keeper."""
    return next(keeper for keeper in status["keepers"] if keeper["name"] == name)


def test_an_initialised_cluster_says_what_it_is(cluster: Cluster) -> None:
    """All keepers hold the first set of the first generation, nothing is wrong, and status has every promised line."""
    status = cluster.wait_filled()
    assert {
        "state": "ready",
        "blocked_by": [],
        "generation": 1,
        "shard_threshold": 3,
        "shard_count": 5,
        "set_number": 1,
        "recovery_threshold": 3,
        "recovery_shares": 5,
        "operation": None,
    }.items() <= status.items()
    assert {"cluster_id", "genesis", "timeline", "revision", "memory_protection", "version"} <= set(status)
    assert [keeper["name"] for keeper in status["keepers"]] == list(cluster.keepers)
    assert all(set(keeper) >= {"address", "reachable", "holds_current_set", "fault"} for keeper in status["keepers"])
    assert not [keeper for keeper in status["keepers"] if keeper["fault"]]


def test_a_secret_comes_back_as_it_was_put(app: shardhold.Client) -> None:
    """Every field, bytes for bytes, in versions."""
    app.put("main-job/first", {"old": b"1"})
    app.put("main-job/first", FIELDS)
    assert app.get("main-job/first").fields == FIELDS
    assert app.get("main-job/first").version == 2


def test_nobody_else_reads_it(cluster: Cluster, app: shardhold.Client) -> None:
    """A workload without a policy is denied, whether the path exists or not."""
    app.put("main-job/first", FIELDS)
    stranger = cluster.workload("/main-job/stranger")
    for path in ("main-job/first", "main-job/nothing-there"):
        with pytest.raises(shardhold.DeniedError):
            stranger.get(path)


def test_what_tests_ask_for_directly_is_what_pilot_says(cluster: Cluster, app: shardhold.Client) -> None:
    """`Cluster.status` and `Cluster.allow` go past pilot: the real one shows the same status and the same policy."""
    cluster.wait_filled()
    status = json.loads(cluster.pilot("status", "-o", "json").stdout)
    assert status == cluster.status()
    policies = json.loads(cluster.pilot("policy", "list", "-o", "json").stdout)["policies"]
    assert {
        "name": "main-job-app",
        "spiffe_ids": [f"spiffe://{TRUST_DOMAIN}{APP}"],
        "paths": ["main-job/**"],
        "permissions": ["read", "write", "delete", "list"],
    } in policies


def test_a_killed_nexus_comes_back_without_a_human(cluster: Cluster, app: shardhold.Client) -> None:
    """After kill -9 the same secrets, versions and policies are served, by the same root key."""
    app.put("main-job/killed", FIELDS)
    before = cluster.status()
    cluster.restart_nexus()
    assert app.get("main-job/killed").fields == FIELDS
    after = cluster.status()
    for unchanged in ("cluster_id", "genesis", "generation", "set_number", "timeline"):
        assert after[unchanged] == before[unchanged]
    assert after["revision"] >= before["revision"]


def test_an_ended_nexus_comes_back_as_well(cluster: Cluster, app: shardhold.Client) -> None:
    """SIGTERM drains and ends in time, and the next start recovers."""
    app.put("main-job/ended", FIELDS)
    cluster.stop("nexus")
    cluster.run("nexus")
    cluster.wait_ready()
    assert app.get("main-job/ended").fields == FIELDS


def test_two_lost_keepers_are_not_felt(cluster: Cluster, app: shardhold.Client) -> None:
    """Three of five keepers are enough: callers feel nothing, lost ones are named, and a restarted nexus recovers."""
    cluster.kill("keeper-4", "keeper-5")
    for number in range(50):
        app.put("main-job/lost", {"value": b"%d" % number})
        assert app.get("main-job/lost").fields == {"value": b"%d" % number}
    status = cluster.wait_status(
        "keeper-4 and keeper-5 are named",
        lambda status: all(get_keeper(status, name)["fault"] for name in ("keeper-4", "keeper-5")),
    )
    assert [keeper["name"] for keeper in status["keepers"] if keeper["reachable"]] == list(cluster.keepers[:3])
    cluster.restart_nexus()
    assert app.get("main-job/lost").fields == {"value": b"49"}


def test_an_empty_keeper_is_filled_again(cluster: Cluster) -> None:
    """A keeper that lost its shard with its process holds it again; `make bench` says how soon."""
    cluster.kill("keeper-1", "keeper-3")
    cluster.run("keeper-1", "keeper-3")
    cluster.wait_filled()


def test_refilled_keepers_carry_a_recovery(cluster: Cluster, app: shardhold.Client) -> None:
    """The shards that a refill made are of the same set: three of them alone bring the root key back."""
    app.put("main-job/refilled", FIELDS)
    cluster.kill("keeper-1", "keeper-2", "keeper-3")
    cluster.run("keeper-1", "keeper-2", "keeper-3")
    cluster.wait_filled()
    cluster.kill("keeper-4", "keeper-5")
    cluster.restart_nexus()
    assert app.get("main-job/refilled").fields == FIELDS


def test_below_the_threshold_it_waits_and_says_for_what(cluster: Cluster, app: shardhold.Client) -> None:
    """A running nexus goes on without keepers; a restarted one says what is missing until the third is back."""
    app.put("main-job/waiting", FIELDS)
    away = ("keeper-3", "keeper-4", "keeper-5")
    cluster.freeze(*away)
    assert app.get("main-job/waiting").fields == FIELDS
    cluster.kill("nexus")
    cluster.run("nexus")
    status = cluster.wait_status(
        "2 of 3 shards", lambda status: any("2 of 3 shards" in reason for reason in status["blocked_by"])
    )
    assert status["state"] == "recovering"
    assert "set 1" in status["blocked_by"][0]
    assert all(name in status["blocked_by"][0] for name in away)
    cluster.thaw("keeper-4")
    cluster.wait_ready()
    assert app.get("main-job/waiting").fields == FIELDS


@pytest.mark.parametrize("lie", ["flip", "foreign"])
def test_a_liar_is_named_and_outvoted(cluster: Cluster, app: shardhold.Client, lie: str) -> None:
    """A keeper that gives back another shard than it was given changes nothing, and is named at the next restart."""
    app.put("main-job/lied", FIELDS)
    cluster.replace_keeper("keeper-2", lie)
    cluster.wait_filled("keeper-2")
    cluster.restart_nexus()
    assert app.get("main-job/lied").fields == FIELDS
    status = cluster.wait_status("keeper-2 is named", lambda status: bool(get_keeper(status, "keeper-2")["fault"]))
    assert not get_keeper(status, "keeper-2")["holds_current_set"]
    assert [keeper["name"] for keeper in status["keepers"] if keeper["fault"]] == ["keeper-2"]


@pytest.mark.parametrize("lie", ["slow", "half-open"])
def test_a_keeper_that_does_not_answer_holds_nobody_up(cluster: Cluster, app: shardhold.Client, lie: str) -> None:
    """A slow or half-open keeper is named, delays no caller and no recovery."""
    app.put("main-job/slow", FIELDS)
    cluster.replace_keeper("keeper-5", lie)
    cluster.wait_status("keeper-5 is named", lambda status: bool(get_keeper(status, "keeper-5")["fault"]))
    cluster.restart_nexus()
    assert app.get("main-job/slow").fields == FIELDS
    cluster.wait_status("keeper-5 is named again", lambda status: bool(get_keeper(status, "keeper-5")["fault"]))


def test_keepers_write_no_file(cluster: Cluster) -> None:
    """A keeper has no file open for writing but its log, which the development cluster made for it."""
    for name in cluster.keepers:
        pid = cluster.dev.state.processes[name].pid
        targets = {fd.name: fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir()}
        writable = {
            str(target)
            for fd, target in targets.items()
            if str(target).startswith("/")
            and not str(target).startswith("/dev/")
            and int(_field(Path(f"/proc/{pid}/fdinfo/{fd}").read_text(), "flags"), 8) & 3
        }
        assert writable <= {str(cluster.directory.log(name))}


def _field(text: str, name: str) -> str:
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:"))
