"""Who is nobody to a running cluster: callers with odd certificates, and callers with wrong identities.

The cluster is under an authority of the test, so each certificate here is one that the authority could have issued.
"""

import ssl
from collections.abc import Iterator
from datetime import timedelta

import grpc
import pytest

from keeper.v1 import keeper_pb2
from pilot.dev.directory import Plan
from pilot.dev.identities import SUPERUSER_PATH, TRUST_DOMAIN, custodian_path
from shardhold.v1 import audit_pb2, cluster_pb2, policies_pb2, recovery_pb2, secrets_pb2
from tests.cluster.held_cluster import HeldCluster
from tests.kit.cluster import started
from tests.kit.credentials import Credentials, certify
from tests.kit.person import NEXUS_ID
from tests.kit.raw_calls import call, connect
from tests.kit.raw_http2 import tls_connection
from tests.kit.refusal import Outcome
from tests.kit.strangers import STRANGERS, MakeStranger
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.cluster

DOMAIN = f"spiffe://{TRUST_DOMAIN}"
SUPERUSER = DOMAIN + SUPERUSER_PATH
NEXUS_NAME = "nexus.shardhold"
KEEPER, KEEPER_NAME = f"{DOMAIN}/shardhold/keeper/keeper-2", "keeper-2.keeper.shardhold"
APP, PATH, FIELDS = "/strangers/app", "strangers/secret", {"value": b"for friends"}

CONTRACTS = (secrets_pb2, policies_pb2, cluster_pb2, recovery_pb2, audit_pb2)
NEXUS_RPCS = [
    f"/{service.full_name}/{rpc.name}"
    for contract in CONTRACTS
    for service in contract.DESCRIPTOR.services_by_name.values()
    for rpc in service.methods
]
KEEPER_RPCS = [
    f"/keeper.v1.KeeperService/{rpc.name}" for rpc in keeper_pb2.DESCRIPTOR.services_by_name["KeeperService"].methods
]
SERVED = 19  # RPCs that a ready nexus serves, status aside
STATUS, KEEPER_STATUS = "/shardhold.v1.ClusterService/GetStatus", "/keeper.v1.KeeperService/GetStatus"
# Calls that are looked at before it is asked who may make them: a well-formed one each.
ARGUMENTS = {
    "PutSecret": secrets_pb2.PutSecretRequest(path=PATH, fields={"value": b"forged"}, request_id=bytes(16)),
    "GetSecret": secrets_pb2.GetSecretRequest(path=PATH),
    "PatchSecret": secrets_pb2.PatchSecretRequest(path=PATH, fields={"value": b"forged"}, request_id=bytes(16)),
    "ListVersions": secrets_pb2.ListVersionsRequest(path=PATH),
    "DeleteSecret": secrets_pb2.DeleteSecretRequest(path=PATH, request_id=bytes(16)),
    "UndeleteSecret": secrets_pb2.UndeleteSecretRequest(path=PATH, versions=[1], request_id=bytes(16)),
    "DestroySecret": secrets_pb2.DestroySecretRequest(path=PATH, request_id=bytes(16)),
    "UpdateSecretMetadata": secrets_pb2.UpdateSecretMetadataRequest(path=PATH, max_versions=1, request_id=bytes(16)),
    "ApplyPolicies": policies_pb2.ApplyPoliciesRequest(
        policies=[
            policies_pb2.Policy(
                name="mine", spiffe_ids=[KEEPER], paths=["**"], permissions=[policies_pb2.PERMISSION_READ]
            )
        ]
    ),
    "DeletePolicy": policies_pb2.DeletePolicyRequest(name="superusers"),
    "ExplainAccess": policies_pb2.ExplainAccessRequest(
        spiffe_id="spiffe://example.org/x", permission=policies_pb2.PERMISSION_READ, path=PATH
    ),
    "AcceptNewChain": audit_pb2.AcceptNewChainRequest(reason="mine"),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldCluster]:
    """Two keepers, and a secret that a workload may read."""
    root = tmp_path_factory.mktemp("strangers") / "dev"
    with started(HeldCluster(root, Plan(keepers=2, threshold=2))) as cluster:
        cluster.allow(APP, ["strangers/**"], ["read", "write"])
        cluster.workload(APP).put(PATH, FIELDS)
        yield cluster


def connect_to(cluster: HeldCluster, server: str, credentials: Credentials | None) -> grpc.Channel:
    name = NEXUS_NAME if server == "nexus" else f"{server}.keeper.shardhold"
    return connect(cluster.port(server), credentials, cluster.ca, server_name=name)


def ask_status(cluster: HeldCluster, server: str, credentials: Credentials | None, body: bytes = b"") -> Outcome:
    """Ask over a connection of its own."""
    with connect_to(cluster, server, credentials) as channel:
        return call(channel, STATUS if server == "nexus" else KEEPER_STATUS, body)


@pytest.mark.parametrize("server", ["nexus", "keeper-1"])
@pytest.mark.parametrize(("make", "code"), STRANGERS)
@pytest.mark.parametrize("body", [pytest.param(b"", id="good request"), pytest.param(b"\xff", id="garbage")])
def test_strangers_are_refused(cluster: HeldCluster, server: str, make: MakeStranger, code: str, body: bytes) -> None:
    """A peer without one proved SPIFFE ID gets no answer, not even the status; the same names in order are let in."""
    good = SUPERUSER if server == "nexus" else NEXUS_ID
    assert ask_status(cluster, server, make(cluster.ca, good), body).code is grpc.StatusCode[code]
    assert ask_status(cluster, server, certify(cluster.ca, uris=[good])).code is grpc.StatusCode.OK


@pytest.mark.parametrize("server", ["nexus", "keeper-1"])
def test_tls_below_1_3_ends_in_the_handshake(cluster: HeldCluster, server: str) -> None:
    """A client that speaks TLS 1.2 is refused before it can send anything, though its certificate is good."""
    name = NEXUS_NAME if server == "nexus" else f"{server}.keeper.shardhold"
    credentials = certify(cluster.ca, uris=[SUPERUSER if server == "nexus" else NEXUS_ID])
    with tls_connection(cluster.port(server), credentials, server_name=name) as tls:
        assert tls.version() == "TLSv1.3"
    old = tls_connection(cluster.port(server), credentials, server_name=name, version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ssl.SSLEOFError), old:
        pass


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
    assert [entry["decision"] for entry in cluster.store.list_audit(spiffe_id)].count("deny") == denied
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
