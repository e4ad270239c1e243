"""Keepers that are dead, stopped, half-open, slow or lying, as many at once as may be, and then one too many."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import shardhold
from common.errors import MarkError
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most, patience
from tests.kit.probes import Status

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP, PATH, FIELDS = "/bad-keepers/app", "bad-keepers/secret", {"value": b"\x00 all the same \xff"}

NO_SHARD = "its shard does not match the commitment"
NO_MARK = "rollback mark has a broken signature"
NO_ANSWER = "does not answer"
FAULTS = {
    "dead": NO_ANSWER,
    "stopped": NO_ANSWER,
    "half-open": NO_ANSWER,
    "slow": NO_ANSWER,
    "flip": NO_SHARD,
    "foreign": NO_SHARD,
    "future-mark": NO_MARK,
    "foreign-mark": "the genesis record of another cluster",
    "hoard": "lies: it says that it holds 16 sets, and can hold 2",
    "undropped": "lies: it says that it holds set 0, which it has dropped",
}


@pytest.fixture(scope="module")
def app(cluster: Cluster) -> shardhold.Client:
    """A workload with a secret."""
    cluster.allow(APP, ["bad-keepers/**"], ["read", "write"])
    cluster.workload(APP).put(PATH, FIELDS)
    return cluster.workload(APP)


@pytest.fixture(autouse=True)
def _leave_whole(cluster: Cluster) -> Iterator[None]:
    """Whatever a test does to the cluster, the next one finds it whole."""
    yield
    cluster.restore()


def spoil(cluster: Cluster, name: str, kind: str) -> None:
    """Make a keeper one of a bad *kind*, with whatever it needs to be so."""
    if kind == "dead":
        cluster.kill(name)
    elif kind == "stopped":
        cluster.freeze(name)
    else:
        cluster.replace_keeper(name, kind)
    if kind in ("flip", "foreign"):
        cluster.wait_filled(name)
    if kind.endswith("-mark"):
        cluster.wait(f"{name} has a mark to lie about", lambda: is_lying(cluster, name))


def is_lying(cluster: Cluster, name: str) -> bool:
    try:
        cluster.fetch_mark(name)
    except MarkError:
        return True
    return False


def list_faults(status: Status) -> dict[str, str]:
    return {keeper["name"]: keeper["fault"] for keeper in status["keepers"] if keeper["fault"]}


def is_named(faults: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether these keepers and no others are at fault, each for its own reason."""
    return faults.keys() == wanted.keys() and all(said in faults[name] for name, said in wanted.items())


def wait_metrics(cluster: Cluster, *lines: str) -> None:
    cluster.wait(f"metrics {lines}", lambda: set(lines) <= set(cluster.fetch("nexus", "/metrics").splitlines()))


def use(app: shardhold.Client) -> None:
    """Do what callers do; none of it may fail."""
    for number in range(20):
        app.put("bad-keepers/more", {"value": b"%d" % number}, timeout=at_most(20))
        assert app.get("bad-keepers/more").fields == {"value": b"%d" % number}
    assert app.get(PATH).fields == FIELDS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("flip", "half-open", id="one lies about its shard, one accepts and says nothing"),
        pytest.param("foreign", "stopped", id="one gives another shard, one is stopped"),
        pytest.param("future-mark", "slow", id="one claims a mark of the future, one is slow"),
        pytest.param("foreign-mark", "dead", id="one has a mark of another cluster, one is gone"),
        pytest.param("hoard", "undropped", id="one claims more sets than it can hold, one a set that it dropped"),
    ],
)
def test_two_bad_keepers_of_five_are_named_and_not_felt(
    cluster: Cluster, app: shardhold.Client, one: str, other: str
) -> None:
    """Callers feel neither, nor does a recovery; status, metric and log name these two and say what is wrong."""
    spoil(cluster, "keeper-2", one)
    spoil(cluster, "keeper-4", other)
    use(app)
    cluster.restart_nexus()
    use(app)
    noted = len(list_notes(cluster))
    wanted = {"keeper-2": FAULTS[one], "keeper-4": FAULTS[other]}
    status = cluster.wait_status(f"it says {wanted}", lambda status: is_named(list_faults(status), wanted))
    assert status["state"] == "ready"
    wait_metrics(
        cluster, *(f'shardhold_keeper_faulty{{keeper="{name}"}} {float(name in wanted)}' for name in cluster.keepers)
    )
    assert {*list_logged(cluster, "keeper fault", "keeper")} >= {*wanted}
    assert len(list_notes(cluster)) - noted < 10, "each of the two is accused once, and nothing is dropped in vain"


def list_notes(cluster: Cluster) -> list[Mapping[str, Any]]:
    """Return what the audit says that the nexus did with these two keepers."""
    return [entry for entry in cluster.store.list_audit("") if entry["path"] in ("keeper-2", "keeper-4")]


def list_logged(cluster: Cluster, event: str, key: str) -> list[str]:
    """Return what the nexus logged as *key* of an event."""
    lines = cluster.directory.log("nexus").read_text().splitlines()
    return [line[key] for line in map(json.loads, lines) if line["event"] == event]


def test_one_keeper_too_few(cluster: Cluster, app: shardhold.Client) -> None:
    """A running nexus goes on; a restarted one says everywhere what it waits for, and takes recovery shares instead."""
    spoil(cluster, "keeper-3", "flip")
    cluster.freeze(*cluster.keepers)
    use(app)
    cluster.kill("nexus")
    cluster.thaw(*cluster.keepers[:3])
    cluster.run("nexus")
    wanted = {"keeper-3": NO_SHARD, "keeper-4": NO_ANSWER, "keeper-5": NO_ANSWER}
    status = cluster.wait_status(
        f"it says {wanted}",
        lambda status: is_named(list_faults(status), wanted) and "2 of 3" in status["blocked_by"][0],
    )
    assert status["state"] == "recovering"
    missing = (
        f"2 of 3 shards of set 1, generation 1: {'; '.join(f'{name} {list_faults(status)[name]}' for name in wanted)}"
    )
    cluster.wait("status says so", lambda: cluster.status()["blocked_by"] == [missing])
    cluster.wait("/readyz says so", lambda: missing in cluster.fetch("nexus", "/readyz"))
    assert not cluster.dev.is_ready()
    assert missing in list_logged(cluster, "still recovering", "missing")
    wait_metrics(
        cluster,
        "shardhold_recovery_lacking_shards 1.0",
        'shardhold_nexus_state{state="recovering"} 1.0',
        *(
            f'shardhold_keeper_holds_current_set{{keeper="{name}"}} {float(number < 2)}'
            for number, name in enumerate(cluster.keepers)
        ),
    )
    health = health_pb2_grpc.HealthStub(cluster.superuser.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=at_most(5))
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(shardhold.RecoveringError):
        app.get(PATH, timeout=patience(1))
    told = cluster.pilot("status")
    assert "2 of 3 shards" in told.stdout + told.stderr

    cluster.unseal(2, 3, 5)
    assert cluster.dev.is_ready()
    wait_metrics(cluster, "shardhold_recovery_lacking_shards 0.0")
    use(app)
