"""Design §5's table, driven: one cluster walks through all states, and in each of them every RPC is called.

The calls are such that none changes the state: where an RPC is served that would, somebody calls it who may not, or it
names what does not exist. What a call in its right place does is the affair of other tests.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nexus.access.calls import ALL, Rpc
from nexus.lifecycle.states import READY_ONLY
from nexus.policy.rules import Permission
from pilot.dev.cluster import server_command
from pilot.dev.directory import Plan
from shardhold.v1 import audit_pb2, backup_pb2, cluster_pb2, policies_pb2, recovery_pb2, root_pb2, secrets_pb2
from tests.cluster.founder import founding
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most
from tests.kit.person import Person
from tests.kit.refusal import read_outcome

pytestmark = pytest.mark.cluster

# In the order of the walk, which passes each but the first by way of the one before.
STATES = ("uninitialised", "initialising", "ready", "recovering", "sealed")

ID = bytes(16)
PATH = "states/secret"
POLICY = policies_pb2.Policy(
    name="states", spiffe_ids=["spiffe://x/y"], paths=["nothing"], permissions=[policies_pb2.PERMISSION_READ]
)
VERSION = root_pb2.VersionKey(path=PATH, incarnation=ID, version=1)
POLICY_FILE = """
[[policy]]
name = "states"
spiffe_ids = ["spiffe://x/y"]
paths = ["nothing"]
permissions = ["read"]
"""

OK = ("OK", "", "")
DENIED = ("PERMISSION_DENIED", "DENIED", "is not allowed")
NO_SESSION = ("FAILED_PRECONDITION", "WRONG_STATE", "no such session")
NO_OPERATION = ("FAILED_PRECONDITION", "NO_OPERATION", "is not in progress")
NOT_IN_QUARANTINE = ("NOT_FOUND", "NOT_FOUND", "")
NOT_BLOCKED = ("FAILED_PRECONDITION", "WRONG_STATE", "there is nothing to accept")
WRONG = ("FAILED_PRECONDITION", "WRONG_STATE", "in state ")
SEALED = ("UNAVAILABLE", "NEXUS_SEALED", "")
RECOVERING = ("UNAVAILABLE", "NEXUS_RECOVERING", "")

# RPC → what it answers in the states that serve it.
SERVED = {
    "GetStatus": OK,
    "BeginInit": DENIED,
    "ConfirmInit": DENIED,
    "AbortInit": DENIED,
    "StartUnseal": DENIED,
    "GetSealingKey": NO_SESSION,
    "SubmitShare": NO_SESSION,
    "GetProgress": OK,
    "ExcludeSubmitter": DENIED,
    "ResetUnseal": NO_SESSION,
    "Seal": DENIED,
    "AcceptOlderStore": NOT_BLOCKED,
    "TailAudit": OK,
    "AcceptNewChain": NOT_BLOCKED,
    "ListKeepers": OK,
    "PutSecret": OK,
    "PatchSecret": OK,
    "GetSecret": OK,
    "ListSecrets": OK,
    "ListVersions": OK,
    "DeleteSecret": OK,
    "UndeleteSecret": OK,
    "DestroySecret": OK,
    "UpdateSecretMetadata": OK,
    "ApplyPolicies": OK,
    "ListPolicies": OK,
    "DeletePolicy": OK,
    "StartOperation": OK,
    "GetOperation": OK,
    "AbortOperation": NO_OPERATION,
    "ContinueOperation": NO_OPERATION,
    "ListQuarantine": OK,
    "RetryQuarantined": NOT_IN_QUARANTINE,
    "AbandonQuarantined": DENIED,
    "PauseRotation": DENIED,
    "ResumeRotation": DENIED,
    "ListGenerations": OK,
    "ListImpact": OK,
    "CreateBackup": OK,
    "ListBackups": OK,
    "VerifyBackup": DENIED,
}
WAITING_HELPS = {"recovering": RECOVERING, "sealed": SEALED}

Call = Callable[["Walk"], object]


class Walk:
    """One cluster on its way through the states."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._passed = 0
        cluster.start_uninitialised()

    def reach(self, state: str) -> None:
        """Go on to *state*; there is no way back."""
        steps = (self._begin, self._confirm, self._lose_keys, self._seal)
        while STATES[self._passed] != state:
            steps[self._passed]()
            self._passed += 1
            self.cluster.wait_status(STATES[self._passed], lambda status: status["state"] == STATES[self._passed])

    @property
    def superuser(self) -> Person:
        return self.cluster.superuser

    @property
    def operator(self) -> Person:
        return self.cluster.person("operator", "dev")

    @property
    def auditor(self) -> Person:
        return self.cluster.person("auditor", "dev")

    @property
    def custodian(self) -> Person:
        return self.cluster.custodian(1)

    def _begin(self) -> None:
        with founding(self.cluster) as founder:
            founder.begin()

    def _confirm(self) -> None:
        self.cluster.dev.init()
        self.cluster.wait_ready()
        CALLS["PutSecret"](self)
        CALLS["ApplyPolicies"](self)

    def _lose_keys(self) -> None:
        self.cluster.rerun("nexus", *self.cluster.keepers)

    def _seal(self) -> None:
        self.superuser.seal("the walk goes on")


CALLS: dict[str, Call] = {
    "GetStatus": lambda walk: walk.superuser.get_status(),
    "BeginInit": lambda walk: walk.operator.cluster.BeginInit(
        cluster_pb2.BeginInitRequest(
            recovery_threshold=2,
            recovery_public_key=bytes(1216),
            share_hashes=[cluster_pb2.ShareHash(salt=ID, digest=bytes([number]) * 32) for number in range(3)],
        )
    ),
    "ConfirmInit": lambda walk: walk.operator.cluster.ConfirmInit(cluster_pb2.ConfirmInitRequest(attempt=1)),
    "AbortInit": lambda walk: walk.operator.cluster.AbortInit(cluster_pb2.AbortInitRequest(attempt=1)),
    "StartUnseal": lambda walk: walk.auditor.start_unseal(),
    "GetSealingKey": lambda walk: walk.custodian.recovery.GetSealingKey(
        recovery_pb2.GetSealingKeyRequest(session_id=ID, nonce=os.urandom(32))
    ),
    "SubmitShare": lambda walk: walk.custodian.recovery.SubmitShare(
        recovery_pb2.SubmitShareRequest(session_id=ID, statement_digest=bytes(32), sealed_share=bytes(114))
    ),
    "GetProgress": lambda walk: walk.custodian.get_progress(),
    "ExcludeSubmitter": lambda walk: walk.custodian.exclude(ID, walk.superuser.spiffe_id),
    "ResetUnseal": lambda walk: walk.custodian.reset_unseal(ID),
    "Seal": lambda walk: walk.auditor.seal(),
    "AcceptOlderStore": lambda walk: walk.superuser.accept_older_store(1, 1),
    "TailAudit": lambda walk: walk.auditor.audit.TailAudit(audit_pb2.TailAuditRequest()),
    "AcceptNewChain": lambda walk: walk.operator.audit.AcceptNewChain(audit_pb2.AcceptNewChainRequest(reason="x")),
    "ListKeepers": lambda walk: walk.superuser.cluster.ListKeepers(cluster_pb2.ListKeepersRequest()),
    "PutSecret": lambda walk: walk.superuser.secrets.PutSecret(
        secrets_pb2.PutSecretRequest(path=PATH, fields={"value": b"v"}, request_id=os.urandom(16))
    ),
    "PatchSecret": lambda walk: walk.superuser.secrets.PatchSecret(
        secrets_pb2.PatchSecretRequest(path=PATH, fields={"other": b"v"}, request_id=os.urandom(16))
    ),
    "GetSecret": lambda walk: walk.superuser.secrets.GetSecret(secrets_pb2.GetSecretRequest(path=PATH)),
    "ListSecrets": lambda walk: walk.superuser.secrets.ListSecrets(secrets_pb2.ListSecretsRequest()),
    "ListVersions": lambda walk: walk.superuser.secrets.ListVersions(secrets_pb2.ListVersionsRequest(path=PATH)),
    "DeleteSecret": lambda walk: walk.superuser.secrets.DeleteSecret(
        secrets_pb2.DeleteSecretRequest(path=PATH, request_id=os.urandom(16))
    ),
    "UndeleteSecret": lambda walk: walk.superuser.secrets.UndeleteSecret(
        secrets_pb2.UndeleteSecretRequest(path=PATH, versions=[1], request_id=os.urandom(16))
    ),
    "DestroySecret": lambda walk: walk.superuser.secrets.DestroySecret(
        secrets_pb2.DestroySecretRequest(path=PATH, versions=[1], request_id=os.urandom(16))
    ),
    "UpdateSecretMetadata": lambda walk: walk.superuser.secrets.UpdateSecretMetadata(
        secrets_pb2.UpdateSecretMetadataRequest(path=PATH, max_versions=7, request_id=os.urandom(16))
    ),
    "ApplyPolicies": lambda walk: walk.superuser.policies.ApplyPolicies(
        policies_pb2.ApplyPoliciesRequest(policies=[POLICY])
    ),
    "ListPolicies": lambda walk: walk.superuser.policies.ListPolicies(policies_pb2.ListPoliciesRequest()),
    "DeletePolicy": lambda walk: walk.superuser.policies.DeletePolicy(
        policies_pb2.DeletePolicyRequest(name=POLICY.name)
    ),
    "StartOperation": lambda walk: walk.operator.root.StartOperation(
        root_pb2.StartOperationRequest(operation_id=ID, depth=root_pb2.DEPTH_RESHARE, dry_run=True)
    ),
    "GetOperation": lambda walk: walk.auditor.root.GetOperation(root_pb2.GetOperationRequest()),
    "AbortOperation": lambda walk: walk.operator.root.AbortOperation(root_pb2.AbortOperationRequest(operation_id=ID)),
    "ContinueOperation": lambda walk: walk.operator.root.ContinueOperation(
        root_pb2.ContinueOperationRequest(operation_id=ID, with_threshold=True)
    ),
    "ListQuarantine": lambda walk: walk.auditor.root.ListQuarantine(root_pb2.ListQuarantineRequest()),
    "RetryQuarantined": lambda walk: walk.operator.root.RetryQuarantined(root_pb2.RetryQuarantinedRequest(key=VERSION)),
    "AbandonQuarantined": lambda walk: walk.operator.root.AbandonQuarantined(
        root_pb2.AbandonQuarantinedRequest(key=VERSION, reason="x")
    ),
    "PauseRotation": lambda walk: walk.auditor.root.PauseRotation(root_pb2.PauseRotationRequest(reason="x")),
    "ResumeRotation": lambda walk: walk.auditor.root.ResumeRotation(root_pb2.ResumeRotationRequest()),
    "ListGenerations": lambda walk: walk.auditor.root.ListGenerations(root_pb2.ListGenerationsRequest()),
    "ListImpact": lambda walk: walk.auditor.root.ListImpact(root_pb2.ListImpactRequest(generation=1)),
    "CreateBackup": lambda walk: walk.operator.backups.CreateBackup(backup_pb2.CreateBackupRequest()),
    "ListBackups": lambda walk: walk.auditor.backups.ListBackups(backup_pb2.ListBackupsRequest()),
    "VerifyBackup": lambda walk: walk.auditor.backups.VerifyBackup(backup_pb2.VerifyBackupRequest()),
}


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """A cluster of two keepers that has no root key yet."""
    cluster = Cluster(tmp_path_factory.mktemp("states") / "dev", Plan(keepers=2, threshold=2))
    try:
        yield Walk(cluster)
    except Exception as exc:
        exc.add_note(cluster.logs())
        raise
    finally:
        cluster.close()


@pytest.fixture(scope="module", params=STATES)
def state(request: pytest.FixtureRequest, walk: Walk) -> str:
    """The state that the cluster is in."""
    walk.reach(request.param)
    return str(request.param)


@pytest.mark.parametrize("rpc", ALL, ids=lambda rpc: rpc.name)
def test_an_rpc_is_served_where_the_table_says(walk: Walk, state: str, rpc: Rpc[Permission | None]) -> None:
    """It is served, or refused with the code and reason that tell a caller whether waiting helps."""
    if state in rpc.states:
        wanted = SERVED[rpc.name]
    else:
        wanted = WAITING_HELPS.get(state, WRONG) if rpc.states == READY_ONLY else WRONG
    code, reason, says = wanted
    outcome = read_outcome(lambda: CALLS[rpc.name](walk))
    assert (outcome.code.name, outcome.reason) == (code, reason), outcome
    assert says in outcome.details
    if wanted == WRONG:
        assert outcome.details.startswith(f"{rpc.name} in state {state}, want ")


def test_health_and_probes_say_whether_it_is_ready(walk: Walk, state: str) -> None:
    """Health answers in every state and says SERVING in ready alone; so does /readyz, and /metrics is there."""
    is_ready = state == "ready"
    health = health_pb2_grpc.HealthStub(walk.superuser.channel)
    for service in ("", "shardhold.v1.SecretService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=at_most(5))
        assert answer.status == (health_pb2.HealthCheckResponse.SERVING if is_ready else 2), service
    assert walk.cluster.dev.is_ready() is is_ready
    assert f'shardhold_nexus_state{{state="{state}"}} 1.0' in walk.cluster.fetch("nexus", "/metrics")


@pytest.mark.parametrize("live", [pytest.param(False, id="ready"), pytest.param(True, id="live")])
def test_the_health_command_tells_ready_from_alive(walk: Walk, state: str, live: bool) -> None:
    """`nexus health` exits with 0 in ready alone, `nexus health --live` in every state; both print the answer."""
    command = [*server_command(walk.cluster.directory, "nexus"), "health", *(["--live"] if live else [])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=at_most(60), check=False)
    is_ready = state == "ready"
    assert (ended.returncode, ended.stdout) == (0 if live or is_ready else 1, f"{'' if is_ready else 'NOT_'}SERVING\n")


def test_what_automation_repeats_leaves_the_nexus_alone(walk: Walk, state: str) -> None:
    """`init --if-needed` finds any cluster that is one, and `policy apply --if-ready` one that waits for its key."""
    cluster = walk.cluster
    policy, shares = cluster.directory.root / "policy.toml", cluster.directory.root / "other-shares"
    policy.write_text(POLICY_FILE)
    if state in ("uninitialised", "initialising"):
        cluster.pilot("policy", "apply", "--if-ready", str(policy), exit_code=1)
        return
    again = json.loads(cluster.pilot("init", "--if-needed", "--shares-dir", str(shares), "-o", "json").stdout)
    assert again == {"initialised_before": True, "state": state}
    assert not shares.exists()
    applied = json.loads(cluster.pilot("policy", "apply", "--if-ready", "-o", "json", str(policy)).stdout)
    assert applied["applied"] == (["states"] if state == "ready" else [])
    assert ("why" in applied) is (state != "ready")


def test_the_nexus_stays_in_its_state(walk: Walk, state: str) -> None:
    """None of the calls changed it, and it says what keeps it from being ready."""
    status = walk.cluster.status()
    assert status["state"] == state
    assert bool(status["blocked_by"]) is (state != "ready")


def test_every_rpc_is_in_the_table() -> None:
    """The table has no RPC that is not called here."""
    assert {rpc.name for rpc in ALL} == set(SERVED) == set(CALLS)
