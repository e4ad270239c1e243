"""Who is nobody to a running cluster: odd certificates, wrong identities, and servers that are not who they seem to be.

The cluster is under an authority of the test, so each certificate here is one that the authority could have issued.
"""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta

import grpc
import pytest

from keeper.v1 import keeper_pb2
from pilot.dev.ca import DevelopmentCA
from pilot.dev.directory import Plan
from pilot.dev.identities import SUPERUSER_PATH, TRUST_DOMAIN, custodian_path
from shardhold.v1 import cluster_pb2, policies_pb2, recovery_pb2, secrets_pb2
from tests.cluster.authority import HeldCluster
from tests.cluster.cluster import Status
from tests.cluster.keepers import Credentials, call, certify, connect, wait_until
from tests.cluster.person import NEXUS_ID
from tests.cluster.refusal import Outcome
from tests.cluster.strangers import STRANGERS, MakeStranger

pytestmark = pytest.mark.cluster

DOMAIN = f"spiffe://{TRUST_DOMAIN}"
SUPERUSER = DOMAIN + SUPERUSER_PATH
NEXUS_NAME = "nexus.shardhold"
KEEPER, KEEPER_NAME = f"{DOMAIN}/shardhold/keeper/keeper-2", "keeper-2.keeper.shardhold"
APP, PATH, FIELDS = "/strangers/app", "strangers/secret", {"value": b"for friends"}

CONTRACTS = (secrets_pb2, policies_pb2, cluster_pb2, recovery_pb2)
NEXUS_RPCS = [
    f"/{service.full_name}/{rpc.name}"
    for contract in CONTRACTS
    for service in contract.DESCRIPTOR.services_by_name.values()
    for rpc in service.methods
]
KEEPER_RPCS = [
    f"/keeper.v1.KeeperService/{rpc.name}" for rpc in keeper_pb2.DESCRIPTOR.services_by_name["KeeperService"].methods
]
SERVED = 10  # RPCs that a ready nexus serves, status aside
STATUS, KEEPER_STATUS = "/shardhold.v1.ClusterService/GetStatus", "/keeper.v1.KeeperService/GetStatus"
# Calls that are looked at before it is asked who may make them: a well-formed one each.
ARGUMENTS = {
    "PutSecret": secrets_pb2.PutSecretRequest(path=PATH, fields={"value": b"forged"}, request_id=bytes(16)),
    "GetSecret": secrets_pb2.GetSecretRequest(path=PATH),
    "DeleteSecret": secrets_pb2.DeleteSecretRequest(path=PATH, request_id=bytes(16)),
    "ApplyPolicies": policies_pb2.ApplyPoliciesRequest(
        policies=[
            policies_pb2.Policy(
                name="mine", spiffe_ids=[KEEPER], paths=["**"], permissions=[policies_pb2.PERMISSION_READ]
            )
        ]
    ),
    "DeletePolicy": policies_pb2.DeletePolicyRequest(name="superusers"),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldCluster]:
    """Three keepers, threshold two, and a secret that a workload may read."""
    cluster = HeldCluster(tmp_path_factory.mktemp("strangers") / "dev", Plan(keepers=3, threshold=2))
    try:
        cluster.start()
        cluster.allow(APP, ["strangers/**"], ["read", "write"])
        cluster.workload(APP).put(PATH, FIELDS)
        cluster.wait_filled()
        yield cluster
    except Exception as exc:
        exc.add_note(cluster.logs())
        raise
    finally:
        cluster.close()


@pytest.fixture
def broken(cluster: HeldCluster) -> Iterator[HeldCluster]:
    """The cluster, for a test that puts others in the place of its servers."""
    yield cluster
    cluster.restore()


def connect_to(cluster: HeldCluster, server: str, credentials: Credentials | None) -> grpc.Channel:
    name = NEXUS_NAME if server == "nexus" else f"{server}.keeper.shardhold"
    return connect(cluster.port(server), credentials, cluster.ca, server_name=name)


def ask_status(cluster: HeldCluster, server: str, credentials: Credentials | None, body: bytes = b"") -> Outcome:
    """Ask over a connection of its own."""
    with connect_to(cluster, server, credentials) as channel:
        return call(channel, STATUS if server == "nexus" else KEEPER_STATUS, body)


def list_denied(cluster: HeldCluster, actor: str) -> list[str]:
    """Return the actions of the audit's entries that say so of *actor*."""
    lines = [line for file in cluster.directory.audit.glob("*.jsonl") for line in file.read_text().splitlines()]
    entries = [json.loads(line).get("entry", {}) for line in lines]
    return [entry["action"] for entry in entries if (entry.get("actor"), entry.get("decision")) == (actor, "deny")]


# Callers


@pytest.mark.parametrize("server", ["nexus", "keeper-1"])
@pytest.mark.parametrize(("make", "code"), STRANGERS)
@pytest.mark.parametrize("body", [pytest.param(b"", id="good request"), pytest.param(b"\xff", id="garbage")])
def test_strangers_are_refused(cluster: HeldCluster, server: str, make: MakeStranger, code: str, body: bytes) -> None:
    """Without one proved SPIFFE ID nothing is answered, not even the status; the same names in order are let in."""
    good = SUPERUSER if server == "nexus" else NEXUS_ID
    assert ask_status(cluster, server, make(cluster.ca, good), body).code is grpc.StatusCode[code]
    assert ask_status(cluster, server, certify(cluster.ca, uris=[good])).code is grpc.StatusCode.OK


def test_a_leaf_that_expires_on_an_open_connection(cluster: HeldCluster) -> None:
    """Its next call is refused: gRPC itself asks for the dates in the handshake only."""
    # A busy machine may be late for the handshake with a leaf that is to expire soon.
    assert any(is_cut_off(cluster, "nexus", STATUS, lifetime=seconds) for seconds in (2, 8, 25))
    assert any(is_cut_off(cluster, "keeper-1", KEEPER_STATUS, lifetime=seconds) for seconds in (2, 8, 25))


def is_cut_off(cluster: HeldCluster, server: str, rpc: str, *, lifetime: int) -> bool:
    """Call with a leaf that lives so many seconds until a call is refused; False: it was never let in."""
    credentials = certify(cluster.ca, uris=[NEXUS_ID], valid=(timedelta(minutes=-1), timedelta(seconds=lifetime)))
    with connect_to(cluster, server, credentials) as channel:
        if call(channel, rpc).code is not grpc.StatusCode.OK:
            return False
        refused = wait_until(
            lambda: (outcome := call(channel, rpc)).code is not grpc.StatusCode.OK and outcome, what="it expires"
        )
    assert refused.code is grpc.StatusCode.UNAUTHENTICATED
    assert "is not valid now" in refused.details
    return True


@pytest.mark.parametrize(
    ("spiffe_id", "dns"),
    [
        pytest.param(KEEPER, [KEEPER_NAME], id="a keeper"),
        pytest.param(NEXUS_ID, [NEXUS_NAME], id="the nexus itself"),
        pytest.param(f"{DOMAIN}/team/app", [NEXUS_NAME], id="a workload with the nexus's DNS SAN"),
        pytest.param(f"{SUPERUSER}/more", [], id="a workload below a superuser's ID"),
    ],
)
def test_who_is_no_admin_is_denied_and_audited(cluster: HeldCluster, spiffe_id: str, dns: list[str]) -> None:
    """It gets nothing but the state, every other call is denied with an entry each, and changes nothing."""
    before = cluster.superuser.get_status()
    denied = 0
    with connect_to(cluster, "nexus", certify(cluster.ca, uris=[spiffe_id], dns=dns)) as channel:
        for rpc in NEXUS_RPCS:
            name = rpc.rpartition("/")[2]
            body = ARGUMENTS[name].SerializeToString() if name in ARGUMENTS else b""
            outcome = call(channel, rpc, body)
            if name == "GetStatus":
                said = cluster_pb2.GetStatusResponse.FromString(outcome.answer)
                assert said == cluster_pb2.GetStatusResponse(state=cluster_pb2.STATE_READY, version=said.version)
            elif outcome.reason == "WRONG_STATE":
                assert outcome.details.startswith(f"{name} in state ready, want ")
            else:
                assert (outcome.code, outcome.reason) == (grpc.StatusCode.PERMISSION_DENIED, "DENIED"), rpc
                assert spiffe_id in outcome.details
                denied += 1
    assert denied == SERVED
    assert len(list_denied(cluster, spiffe_id)) == denied
    after = cluster.superuser.get_status()
    assert (after.state, after.revision) == (before.state, before.revision)
    assert cluster.workload(APP).get(PATH).fields == FIELDS


@pytest.mark.parametrize(
    "spiffe_id",
    [
        pytest.param(f"{DOMAIN}{APP}", id="a workload"),
        pytest.param(SUPERUSER, id="a superuser"),
        pytest.param(DOMAIN + custodian_path(1), id="a custodian"),
        pytest.param(KEEPER, id="another keeper"),
        pytest.param(f"{NEXUS_ID}0", id="another nexus"),
    ],
)
def test_a_keeper_answers_its_nexus_alone(cluster: HeldCluster, spiffe_id: str) -> None:
    """Every RPC is denied to everybody else of the trust domain, and the denial names the caller."""
    with connect_to(cluster, "keeper-1", certify(cluster.ca, uris=[spiffe_id], dns=[NEXUS_NAME])) as channel:
        for rpc in KEEPER_RPCS:
            outcome = call(channel, rpc)
            assert (outcome.code, outcome.reason) == (grpc.StatusCode.PERMISSION_DENIED, "DENIED"), rpc
            assert spiffe_id in outcome.details


# Servers


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
            lambda ca: certify(DevelopmentCA(TRUST_DOMAIN), uris=[KEEPER], dns=[KEEPER_NAME]),
            "does not answer",
            id="the keeper by another authority of the same name",
        ),
    ],
)
def test_an_impostor_gets_no_shard(
    broken: HeldCluster, make: Callable[[DevelopmentCA], Credentials], fault: str
) -> None:
    """In the place of a keeper it is named by status and metric, is given nothing, and nobody else feels it."""
    broken.kill("keeper-2")
    broken.start_as("keeper-2", make(broken.ca))
    told = broken.directory.log("keeper-2").read_text().count("shard held")
    broken.restart_nexus()
    status = broken.wait_status("it is named", lambda status: fault in list_faults(status).get("keeper-2", ""))
    assert list(list_faults(status)) == ["keeper-2"]
    assert not status["keepers"][1]["holds_current_set"]
    assert 'shardhold_keeper_faulty{keeper="keeper-2"} 1.0' in broken.fetch("nexus", "/metrics")
    assert broken.workload(APP).get(PATH).fields == FIELDS
    assert broken.count_sets("keeper-2") == 0
    assert broken.directory.log("keeper-2").read_text().count("shard held") == told


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
    broken: HeldCluster, spiffe_id: str, options: tuple[str, ...], said: str
) -> None:
    """A thief of the store with the DNS SAN of the nexus: keepers deny him shards, custodians seal him nothing."""
    broken.kill("nexus")
    broken.start_as("nexus", certify(broken.ca, uris=[spiffe_id], dns=[NEXUS_NAME]))
    status = broken.wait_status(
        "keepers refuse him", lambda status: " ".join(status["blocked_by"]).count("does not accept this nexus") == 3
    )
    assert status["state"] == "recovering"
    assert "0 of 2 shards" in status["blocked_by"][0]
    card = min(broken.directory.recovery_shares.iterdir())
    refused = broken.pilot("unseal", f"@{card}", *options, path=custodian_path(1), exit_code=None)
    assert refused.returncode != 0
    assert said in refused.stderr
    session = broken.custodian(1).get_progress().session
    assert (session.submitted, session.needed) == (0, 3), "he may open a session, and gets nothing into it"
