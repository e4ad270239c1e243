"""Servers that are not who they seem to be: the right DNS name, which gRPC looks at, and another SPIFFE ID.

Each runs the true program, with a certificate that the cluster's authority could have issued.
"""

from collections.abc import Callable, Iterator

import pytest

from pilot.dev.directory import Plan
from pilot.dev.identities import TRUST_DOMAIN, custodian_path
from tests.cluster.held_cluster import HeldCluster
from tests.kit.authority import Authority
from tests.kit.cluster import started
from tests.kit.credentials import Credentials, certify
from tests.kit.person import NEXUS_ID
from tests.kit.probes import Status

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

DOMAIN = f"spiffe://{TRUST_DOMAIN}"
NEXUS_NAME = "nexus.shardhold"
KEEPER, KEEPER_NAME = f"{DOMAIN}/shardhold/keeper/keeper-2", "keeper-2.keeper.shardhold"
APP, PATH, FIELDS = "/impostors/app", "impostors/secret", {"value": b"for friends"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldCluster]:
    """Three keepers, threshold two, and a secret that a workload may read."""
    root = tmp_path_factory.mktemp("impostors") / "dev"
    with started(HeldCluster(root, Plan(keepers=3, threshold=2))) as cluster:
        cluster.allow(APP, ["impostors/**"], ["read", "write"])
        cluster.workload(APP).put(PATH, FIELDS)
        yield cluster


@pytest.fixture
def cluster(shared: HeldCluster) -> Iterator[HeldCluster]:
    """A whole cluster; each test finds it so."""
    shared.wait_filled()
    yield shared
    shared.restore()


def list_faults(status: Status) -> dict[str, str]:
    """Return what is wrong with keepers, by name."""
    return {keeper["name"]: keeper["fault"] for keeper in status["keepers"] if keeper["fault"]}


NO_KEEPER_2 = "certificate is of ['{got}'], want exactly '" + KEEPER + "'"


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        pytest.param(
            lambda ca: certify(ca, uris=[f"{DOMAIN}{APP}"], dns=[KEEPER_NAME]),
            NO_KEEPER_2.format(got=f"{DOMAIN}{APP}"),
            id="a workload with the DNS SAN of the keeper",
        ),
        pytest.param(
            lambda ca: certify(ca, uris=[f"{KEEPER}2"], dns=[KEEPER_NAME]),
            NO_KEEPER_2.format(got=f"{KEEPER}2"),
            id="another keeper with the DNS SAN of this one",
        ),
        pytest.param(
            lambda ca: certify(ca, uris=[KEEPER], dns=["keeper-3.keeper.shardhold"]),
            "does not answer",
            id="the keeper with the DNS SAN of another one",
        ),
        pytest.param(
            lambda ca: certify(Authority(TRUST_DOMAIN), uris=[KEEPER], dns=[KEEPER_NAME]),
            "does not answer",
            id="the keeper by another authority of the same name",
        ),
    ],
)
def test_an_impostor_gets_no_shard(cluster: HeldCluster, make: Callable[[Authority], Credentials], fault: str) -> None:
    """In the place of a keeper it is named by status and metric, is given nothing, and nobody else feels it."""
    cluster.kill("keeper-2")
    told = cluster.directory.log("keeper-2").read_text().count("shard held")
    cluster.start_as("keeper-2", make(cluster.ca))
    cluster.restart_nexus()
    status = cluster.wait_status("it is named", lambda status: fault in list_faults(status).get("keeper-2", ""))
    assert list(list_faults(status)) == ["keeper-2"]
    assert not status["keepers"][1]["holds_current_set"]
    assert 'shardhold_keeper_faulty{keeper="keeper-2"} 1.0' in cluster.fetch("nexus", "/metrics")
    assert cluster.workload(APP).get(PATH).fields == FIELDS
    assert cluster.count_sets("keeper-2") == 0
    assert cluster.directory.log("keeper-2").read_text().count("shard held") == told


@pytest.mark.parametrize(
    ("spiffe_id", "options", "said"),
    [
        pytest.param(f"{DOMAIN}{APP}", (), f"the key is '{DOMAIN}{APP}''s, want that of", id="a workload"),
        pytest.param(
            f"{NEXUS_ID}0", ("--nexus-id", NEXUS_ID), f"certificate is of ['{NEXUS_ID}0']", id="another nexus"
        ),
    ],
)
def test_an_impostor_gets_no_recovery_share(
    cluster: HeldCluster, spiffe_id: str, options: tuple[str, ...], said: str
) -> None:
    """A thief of the store with the DNS SAN of the nexus: keepers deny them shards, custodians seal them nothing."""
    cluster.kill("nexus")
    cluster.start_as("nexus", certify(cluster.ca, uris=[spiffe_id], dns=[NEXUS_NAME]))
    status = cluster.wait_status(
        "keepers refuse the thief",
        lambda status: " ".join(status["blocked_by"]).count("does not accept this nexus") == 3,
    )
    assert status["state"] == "recovering"
    assert "0 of 2 shards" in status["blocked_by"][0]
    card = min(cluster.directory.recovery_shares.iterdir())
    refused = cluster.pilot("unseal", f"@{card}", *options, path=custodian_path(1), exit_code=None)
    assert refused.returncode != 0
    assert said in refused.stderr
    session = cluster.custodian(1).get_progress().session
    assert (session.submitted, session.needed) == (0, 3), "a thief may open a session, and gets nothing into it"
