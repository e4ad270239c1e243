"""SVIDs from the Workload API in motion: they rotate under calls, their authority is replaced, and they stop coming.

SVIDs live 5 s here, the shortest that there are, and are replaced at half of it. Whatever happens, nobody is started
anew: the process ids are the same in the end.
"""

import contextlib
import json
from collections.abc import Iterator

import pytest

import shardhold
from pilot.dev.directory import Plan
from pilot.dev.identities import parse_workload
from shardhold import WorkloadAPI
from tests.cluster.traffic import Traffic
from tests.kit.cluster import Cluster, running

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

LIFETIME_S = 5.0
LIFETIMES = 3
STANDSTILL_S = 1.0
APP = "/motion/app"
FIXED = "motion/fixed"
SERVERS = ("nexus", "keeper-1", "keeper-2", "keeper-3")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three keepers, threshold two, and a workload with a policy; each test leaves it well."""
    plan = Plan(keepers=3, threshold=2, lifetime_s=LIFETIME_S)
    with running(tmp_path_factory.mktemp("motion") / "dev", plan) as cluster:
        cluster.wait_filled()
        cluster.allow(APP, ["motion/**"], ["read", "write"])
        pids = {name: cluster.dev.state.processes[name].pid for name in SERVERS}
        yield cluster
        assert pids == {name: cluster.dev.state.processes[name].pid for name in SERVERS}
        assert all(cluster.dev.is_alive(name) for name in SERVERS)


@pytest.fixture
def identity(cluster: Cluster) -> Iterator[WorkloadAPI]:
    """The workload's SVIDs."""
    with contextlib.closing(WorkloadAPI(f"unix:{cluster.dev.add_identity(parse_workload(APP))}")) as identity:
        yield identity


@pytest.fixture
def client(cluster: Cluster, identity: WorkloadAPI) -> Iterator[shardhold.Client]:
    """The workload's client, after it wrote the secret that `is_served` reads."""
    with shardhold.Client(cluster.dev.address, identity) as client:
        client.put(FIXED, {"value": b"fixed"})
        yield client


def list_events(cluster: Cluster, name: str, event: str) -> list[dict[str, object]]:
    """Return what a server logged under a name that begins so."""
    lines = map(json.loads, cluster.directory.log(name).read_text().splitlines())
    return [line for line in lines if str(line["event"]).startswith(event)]


def is_served(client: shardhold.Client) -> bool:
    try:
        return client.get(FIXED, timeout=2).fields == {"value": b"fixed"}
    except shardhold.Error:
        return False


def wait_well(cluster: Cluster) -> None:
    """Wait until status names nothing wrong, everybody is ready, and the people have the authority of the others."""
    cluster.wait_status(
        "nothing is wrong",
        lambda status: (
            status["state"] == "ready"
            and not status["blocked_by"]
            and all(one["holds_current_set"] and not one["fault"] for one in status["keepers"])
        ),
    )
    cluster.wait("all are ready", lambda: all(cluster.dev.is_ready(name) for name in SERVERS))
    people = [cluster.superuser, *(cluster.custodian(number) for number in (1, 2, 3))]
    cluster.wait("all trust one authority", lambda: len({person.trusts() or person for person in people}) == 1)


def check_links(cluster: Cluster) -> None:
    """Key material goes between nexus and keepers: a keeper drops its shard and is filled, with a statement anew."""
    cluster.superuser.seal("motion")
    cluster.unseal()
    cluster.wait_ready()
    cluster.wait_filled()


def test_rotation_drops_no_call(cluster: Cluster, identity: WorkloadAPI) -> None:
    """For three lifetimes no try of any call fails, by readers and writers of both clients.

    A try says nothing when the machine stood still for so long that SVIDs of 5 s could not be replaced in time.
    """
    seen = {identity.current().leaf().serial_number}
    identity.subscribe(lambda: seen.add(identity.current().leaf().serial_number))
    for _ in range(3):
        traffic = flow_through_rotations(cluster, identity, seen)
        if traffic.standstill < STANDSTILL_S:
            break
    assert traffic.failures == [], f"the machine stood still for at most {traffic.standstill:.2f} s"
    assert min(traffic.answered.values()) > 100
    for name in SERVERS:
        assert len(list_events(cluster, name, "svid rotated")) >= LIFETIMES, name
    check_links(cluster)
    wait_well(cluster)


def flow_through_rotations(cluster: Cluster, identity: WorkloadAPI, seen: set[int]) -> Traffic:
    """Call until two SVIDs for each lifetime joined the ones *seen*."""
    seen_before = len(seen)
    with Traffic(cluster.dev.address, identity, "motion").flowing() as traffic:
        cluster.wait("the workload's SVID rotates", lambda: len(seen) >= seen_before + 2 * LIFETIMES)
        traffic.wait_answered(cluster, 10)
    return traffic


def test_a_new_authority_is_followed_by_all(cluster: Cluster, identity: WorkloadAPI, client: shardhold.Client) -> None:
    """The provider dies with its authority and comes back with another: calls and links recover by themselves.

    No certificate of before is worth anything then, and nobody could tell anybody of the authority to come.
    """
    before = identity.current().bundle()
    cluster.rerun("identity")
    cluster.wait("the workload has the new authority", lambda: has_svid(identity, other_than=before))
    cluster.wait("the secret is served", lambda: is_served(client))
    wait_well(cluster)
    with Traffic(cluster.dev.address, identity, "motion").flowing() as traffic:
        traffic.wait_answered(cluster, 50)
    assert traffic.failures == []
    check_links(cluster)


def has_svid(identity: WorkloadAPI, *, other_than: object = None) -> bool:
    """Whether there is an SVID, of another bundle than the one given."""
    try:
        return identity.current().bundle() != other_than
    except shardhold.IdentityUnavailableError:
        return False


def test_the_workload_api_is_gone_past_expiry(
    cluster: Cluster, identity: WorkloadAPI, client: shardhold.Client
) -> None:
    """Everybody says that the SVID has expired, nobody serves, and all of it is as before when the provider is back."""
    cluster.kill("identity")
    cluster.wait("readiness says so", lambda: all("expired" in cluster.fetch(name, "/readyz") for name in SERVERS))
    cluster.wait(
        "logs say so", lambda: all("has expired" in cluster.directory.log(name).read_text() for name in SERVERS)
    )
    assert {cluster.fetch(name, "/livez") for name in SERVERS} == {"live\n"}
    cluster.wait("the workload's SVID expires", lambda: not has_svid(identity))
    with pytest.raises(shardhold.IdentityUnavailableError, match="expired at") as caught:
        client.get(FIXED)
    assert "has given no newer one" in caught.value.hint
    cluster.wait("the nexus has lost its keepers", lambda: count_reachable(cluster) == 0)
    pilot = cluster.dev.run_pilot(["status"])
    assert pilot.returncode != 0
    assert "pilot: hint: " in pilot.stderr
    cluster.run("identity")
    cluster.wait("the secret is served", lambda: is_served(client))
    wait_well(cluster)
    check_links(cluster)


def count_reachable(cluster: Cluster) -> int:
    """Count the keepers that answer the nexus, as its metrics say."""
    lines = cluster.fetch("nexus", "/metrics").splitlines()
    return sum(line.startswith("shardhold_keeper_reachable{") and line.endswith(" 1.0") for line in lines)
