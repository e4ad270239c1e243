"""Every RPC of the contracts, walked: each is authorised and audited, or refused by the state of the nexus."""

import os
from collections.abc import Callable, Mapping

import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from common.errors import (
    DeniedError,
    InvalidArgumentError,
    RecoveringError,
    SealedError,
    ShardholdError,
    UnauthenticatedError,
    WrongStateError,
)
from common.forms.audit.entry import Entry
from common.server.edge import Call, Method
from nexus.access.calls import ALL, BY_FULL_NAME, Rpc
from nexus.access.gate import Caller
from nexus.access.roles import Role
from nexus.lifecycle.states import State
from nexus.policy.rules import Permission, Policy
from nexus.server.methods import bind
from shardhold.v1 import audit_pb2, backup_pb2, cluster_pb2, policies_pb2, recovery_pb2, root_pb2, secrets_pb2
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import APP, AUDITOR, KEEPER, NEXUS, OPERATOR, RECOVER, STRANGER, SUPERUSER, NexusCore
from tests.nexus.founder import PUBLIC_KEY

PATH = "team/app/db"
APP_POLICY = Policy(name="app", spiffe_ids=(APP.spiffe_id,), paths=("team/app/**",), permissions=tuple(Permission))
POLICY = policies_pb2.Policy(
    name="p", spiffe_ids=[APP.spiffe_id], paths=["x"], permissions=[policies_pb2.PERMISSION_READ]
)
HASHES = [cluster_pb2.ShareHash(salt=bytes(16), digest=os.urandom(32)) for _ in range(3)]
VERSION = root_pb2.VersionKey(path=PATH, incarnation=bytes(16), version=1)

# A well-formed request for each RPC. One that is missing here fails the walk.
REQUESTS: Mapping[str, Callable[[], Message]] = {
    "PutSecret": lambda: secrets_pb2.PutSecretRequest(path=PATH, fields={"value": b"v"}, request_id=os.urandom(16)),
    "PatchSecret": lambda: secrets_pb2.PatchSecretRequest(path=PATH, fields={"a": b"b"}, request_id=os.urandom(16)),
    "GetSecret": lambda: secrets_pb2.GetSecretRequest(path=PATH),
    "ListSecrets": lambda: secrets_pb2.ListSecretsRequest(),
    "ListVersions": lambda: secrets_pb2.ListVersionsRequest(path=PATH),
    "DeleteSecret": lambda: secrets_pb2.DeleteSecretRequest(path=PATH, request_id=os.urandom(16)),
    "UndeleteSecret": lambda: secrets_pb2.UndeleteSecretRequest(path=PATH, versions=[1], request_id=os.urandom(16)),
    "DestroySecret": lambda: secrets_pb2.DestroySecretRequest(path=PATH, request_id=os.urandom(16)),
    "UpdateSecretMetadata": lambda: secrets_pb2.UpdateSecretMetadataRequest(
        path=PATH, max_versions=3, request_id=os.urandom(16)
    ),
    "ApplyPolicies": lambda: policies_pb2.ApplyPoliciesRequest(policies=[POLICY]),
    "GetPolicy": lambda: policies_pb2.GetPolicyRequest(name="superusers"),
    "ListPolicies": lambda: policies_pb2.ListPoliciesRequest(),
    "DeletePolicy": lambda: policies_pb2.DeletePolicyRequest(name="app"),
    "ExplainAccess": lambda: policies_pb2.ExplainAccessRequest(
        spiffe_id=APP.spiffe_id, permission=policies_pb2.PERMISSION_READ, path=PATH
    ),
    "GetStatus": lambda: cluster_pb2.GetStatusRequest(),
    "BeginInit": lambda: cluster_pb2.BeginInitRequest(
        recovery_threshold=2, recovery_public_key=PUBLIC_KEY, share_hashes=HASHES
    ),
    "ConfirmInit": lambda: cluster_pb2.ConfirmInitRequest(attempt=1, answer=bytes(32)),
    "AbortInit": lambda: cluster_pb2.AbortInitRequest(attempt=1),
    "Seal": lambda: cluster_pb2.SealRequest(reason="test"),
    "AcceptOlderStore": lambda: cluster_pb2.AcceptOlderStoreRequest(timeline=1, revision=1),
    "ListKeepers": lambda: cluster_pb2.ListKeepersRequest(),
    "StartUnseal": lambda: recovery_pb2.StartUnsealRequest(),
    "GetSealingKey": lambda: recovery_pb2.GetSealingKeyRequest(session_id=bytes(16), nonce=os.urandom(32)),
    "SubmitShare": lambda: recovery_pb2.SubmitShareRequest(
        session_id=bytes(16), statement_digest=bytes(32), sealed_share=bytes(114)
    ),
    "GetProgress": lambda: recovery_pb2.GetProgressRequest(),
    "ExcludeSubmitter": lambda: recovery_pb2.ExcludeSubmitterRequest(session_id=bytes(16), spiffe_id=APP.spiffe_id),
    "ResetUnseal": lambda: recovery_pb2.ResetUnsealRequest(session_id=bytes(16)),
    "TailAudit": lambda: audit_pb2.TailAuditRequest(),
    "AcceptNewChain": lambda: audit_pb2.AcceptNewChainRequest(reason="test"),
    "StartOperation": lambda: root_pb2.StartOperationRequest(operation_id=os.urandom(16), depth=root_pb2.DEPTH_RESHARE),
    "GetOperation": lambda: root_pb2.GetOperationRequest(),
    "AbortOperation": lambda: root_pb2.AbortOperationRequest(operation_id=bytes(16)),
    "ContinueOperation": lambda: root_pb2.ContinueOperationRequest(operation_id=bytes(16), with_threshold=True),
    "ListQuarantine": lambda: root_pb2.ListQuarantineRequest(),
    "RetryQuarantined": lambda: root_pb2.RetryQuarantinedRequest(key=VERSION),
    "AbandonQuarantined": lambda: root_pb2.AbandonQuarantinedRequest(key=VERSION, reason="test"),
    "PauseRotation": lambda: root_pb2.PauseRotationRequest(reason="test"),
    "ResumeRotation": lambda: root_pb2.ResumeRotationRequest(),
    "ListGenerations": lambda: root_pb2.ListGenerationsRequest(),
    "ListImpact": lambda: root_pb2.ListImpactRequest(generation=1),
    "CreateBackup": lambda: backup_pb2.CreateBackupRequest(),
    "ListBackups": lambda: backup_pb2.ListBackupsRequest(),
    "VerifyBackup": lambda: backup_pb2.VerifyBackupRequest(),
    "PruneBackups": lambda: backup_pb2.PruneBackupsRequest(),
}
CALLERS = [SUPERUSER, OPERATOR, RECOVER, AUDITOR, NEXUS, KEEPER, STRANGER]


def where(state: State) -> list[Rpc[Permission | None]]:
    return [rpc for rpc in ALL if state in rpc.states]


def name_case(value: Rpc[Permission | None] | Caller | State) -> str:
    if isinstance(value, Caller):
        return value.role
    return value.name if isinstance(value, Rpc) else value.value


def find(core: NexusCore, rpc: str) -> Method:
    return next(method for method in core.list_methods() if method.name.endswith(f"/{rpc}"))


def call(core: NexusCore, rpc: str, caller: Caller, request: Message | None = None) -> ShardholdError | None:
    """Make the call as the edge does; return what it was refused with."""
    method = find(core, rpc)
    request = REQUESTS[rpc]() if request is None else request
    parsed = method.request.FromString(request.SerializeToString())
    try:
        response = method.handle(Call(caller.spiffe_id, caller.address, 1.0), parsed)
    except ShardholdError as exc:
        return exc
    assert type(response) is method.response
    response.SerializeToString()
    return None


def list_entries(core: NexusCore, caller: Caller) -> list[Entry]:
    """List what *caller* left, in the audit files and in the store."""
    changes = [entry for _, entry in core.list_change_entries()]
    return [entry for entry in [*core.list_entries(), *changes] if entry.actor == caller.spiffe_id]


def test_a_request_is_known_for_every_rpc() -> None:
    """A new RPC has to be entered here, or the walk below would not call it."""
    assert list(REQUESTS) == [rpc.name for rpc in ALL]


def test_an_rpc_without_a_row_in_the_table_stops_the_start() -> None:
    """Who may call it, and where, would be decided by nothing."""
    with pytest.raises(LookupError, match="no row in nexus.access.calls: /grpc.health.v1.Health/Check"):
        bind(health_pb2.DESCRIPTOR.services_by_name["Health"], object())


def test_an_rpc_without_a_handler_stops_the_start() -> None:
    """Its handler has its name, in lower case."""
    with pytest.raises(AttributeError, match="put_secret"):
        bind(secrets_pb2.DESCRIPTOR.services_by_name["SecretService"], object())


def test_every_rpc_of_the_contracts_is_in_the_table_of_methods(core: NexusCore) -> None:
    """By the name on the wire, in the order of the table."""
    assert [method.name for method in core.list_methods()] == list(BY_FULL_NAME)


def assert_authorised_and_audited_once(nexus: NexusCore, rpc: Rpc[Permission | None], caller: Caller) -> None:
    """Whoever calls, with whatever outcome: exactly one entry names the caller and the action of the row."""
    refused = call(nexus, rpc.name, caller)
    is_allowed = caller.role in rpc.roles and (rpc.permission is None or caller is SUPERUSER)
    assert isinstance(refused, DeniedError) != is_allowed
    (entry,) = list_entries(nexus, caller)
    assert (entry.action, entry.decision) == (rpc.action, "allow" if is_allowed else "deny")


@pytest.mark.parametrize("caller", CALLERS, ids=name_case)
@pytest.mark.parametrize("rpc", where(State.READY), ids=name_case)
def test_every_rpc_of_a_ready_nexus_is_authorised_by_role_and_audited_once(
    make_nexus: MakeNexus, rpc: Rpc[Permission | None], caller: Caller
) -> None:
    """No policy is about any of these callers but the superuser."""
    assert_authorised_and_audited_once(make_nexus(APP_POLICY), rpc, caller)


@pytest.mark.parametrize("caller", CALLERS, ids=name_case)
@pytest.mark.parametrize("rpc", where(State.INITIALISING), ids=name_case)
def test_every_rpc_of_init_is_authorised_by_role_and_audited_once(
    core: NexusCore, rpc: Rpc[Permission | None], caller: Caller
) -> None:
    """Also when the attempt is void."""
    core.lifecycle.enter(State.INITIALISING)
    assert_authorised_and_audited_once(core, rpc, caller)


@pytest.mark.parametrize("caller", CALLERS, ids=name_case)
@pytest.mark.parametrize(
    ("state", "rpc"),
    [(state, rpc) for state in (State.RECOVERING, State.SEALED) for rpc in where(state)],
    ids=name_case,
)
def test_every_rpc_of_a_nexus_without_a_key_is_authorised_by_role_and_audited_once(
    make_nexus: MakeNexus, rpc: Rpc[Permission | None], caller: Caller, state: State
) -> None:
    """Also when there is no session, or nothing that blocks."""
    nexus = make_nexus()
    nexus.lifecycle.withdraw(state, seconds=0)
    assert_authorised_and_audited_once(nexus, rpc, caller)


@pytest.mark.parametrize("rpc", ALL, ids=name_case)
def test_a_policy_lets_a_workload_through_to_secrets_only(make_nexus: MakeNexus, rpc: Rpc[Permission | None]) -> None:
    """Every call of a workload is audited once, or refused by the state."""
    nexus = make_nexus(APP_POLICY)
    before = ["PutSecret", "DeleteSecret"] if rpc.name == "UndeleteSecret" else ["PutSecret"]
    for name in before:
        call(nexus, name, APP)
    refused = call(nexus, rpc.name, APP)
    if State.READY not in rpc.states:
        assert isinstance(refused, WrongStateError)
    elif Role.WORKLOAD in rpc.roles:
        assert refused is None
    else:
        assert isinstance(refused, DeniedError)
    assert len(list_entries(nexus, APP)) == len(before) + (State.READY in rpc.states)


@pytest.mark.parametrize(
    ("rpc", "state"), [(rpc, state) for rpc in ALL for state in State if state not in rpc.states], ids=name_case
)
def test_where_an_rpc_is_not_served_it_is_refused_by_the_state(
    core: NexusCore, rpc: Rpc[Permission | None], state: State
) -> None:
    """Before anything is authorised, read or audited; this walks the handlers, not the table alone."""
    core.bind(state)
    refused = call(core, rpc.name, SUPERUSER)
    wanted = {State.RECOVERING: RecoveringError, State.SEALED: SealedError} if rpc.states == {State.READY} else {}
    assert type(refused) is wanted.get(state, WrongStateError)
    assert core.list_entries() == []
    assert core.list_change_entries() == []


@pytest.mark.parametrize("rpc", REQUESTS)
def test_a_caller_of_another_trust_domain_gets_nowhere(make_nexus: MakeNexus, rpc: str) -> None:
    """The edge refuses it before; the core does so again."""
    foreign = Caller("spiffe://other.example/shardhold/pilot/role/superuser/eve", Role.SUPERUSER, "")
    nexus = make_nexus()
    assert isinstance(call(nexus, rpc, foreign), UnauthenticatedError)


def test_a_secret_goes_through_its_messages_whole(make_nexus: MakeNexus) -> None:
    """Put, get, list and delete, field by field."""
    nexus = make_nexus(APP_POLICY)
    peer = Call(APP.spiffe_id, APP.address, None)
    put = find(nexus, "PutSecret").handle(peer, REQUESTS["PutSecret"]())
    assert (put.version, len(put.incarnation)) == (1, 16)
    got = find(nexus, "GetSecret").handle(peer, REQUESTS["GetSecret"]())
    assert (got.path, got.version, got.incarnation, dict(got.fields)) == (PATH, 1, put.incarnation, {"value": b"v"})
    assert got.created_at.ToDatetime().isoformat() == nexus.clock.now().replace(tzinfo=None).isoformat()
    listed = find(nexus, "ListSecrets").handle(peer, REQUESTS["ListSecrets"]())
    assert [(entry.path, entry.current_version) for entry in listed.secrets] == [(PATH, 1)]
    assert listed.next_page_token == ""
    request = secrets_pb2.DeleteSecretRequest(path=PATH, expected_version=1, request_id=os.urandom(16))
    deleted = find(nexus, "DeleteSecret").handle(peer, request)
    assert list(deleted.versions) == [1]
    assert deleted.revision == put.revision + 1


def test_versions_go_through_their_messages_whole(make_nexus: MakeNexus) -> None:
    """Patch, versions, undelete, destroy and metadata, field by field."""
    nexus = make_nexus(APP_POLICY)
    peer = Call(APP.spiffe_id, APP.address, None)
    put = find(nexus, "PutSecret").handle(peer, REQUESTS["PutSecret"]())
    patch = secrets_pb2.PatchSecretRequest(
        path=PATH,
        fields={"a": b"b"},
        removed_fields=["value"],
        expected_version=1,
        expected_incarnation=put.incarnation,
        request_id=os.urandom(16),
    )
    patched = find(nexus, "PatchSecret").handle(peer, patch)
    assert (patched.version, patched.incarnation, patched.revision) == (2, put.incarnation, put.revision + 1)
    assert dict(find(nexus, "GetSecret").handle(peer, REQUESTS["GetSecret"]()).fields) == {"a": b"b"}
    find(nexus, "DeleteSecret").handle(peer, REQUESTS["DeleteSecret"]())
    shown = secrets_pb2.ListSecretsRequest(include_deleted=True)
    (entry,) = find(nexus, "ListSecrets").handle(peer, shown).secrets
    assert (entry.current_version, entry.newest_live_version) == (2, 0)
    undeleted = find(nexus, "UndeleteSecret").handle(peer, REQUESTS["UndeleteSecret"]())
    assert (list(undeleted.versions), undeleted.revision) == ([1], put.revision + 3)
    destroy = secrets_pb2.DestroySecretRequest(
        path=PATH, versions=[2], expected_version=2, expected_incarnation=put.incarnation, request_id=os.urandom(16)
    )
    destroyed = find(nexus, "DestroySecret").handle(peer, destroy)
    assert (list(destroyed.versions), destroyed.revision) == ([2], put.revision + 4)
    metadata = find(nexus, "UpdateSecretMetadata").handle(peer, REQUESTS["UpdateSecretMetadata"]())
    assert metadata.revision == put.revision + 5
    page = find(nexus, "ListVersions").handle(peer, secrets_pb2.ListVersionsRequest(path=PATH, page_size=1))
    head = (page.incarnation, page.current_version, page.max_versions, page.max_versions_is_own)
    assert head == (put.incarnation, 2, 3, True)
    (version,) = page.versions
    now = nexus.clock.now().replace(tzinfo=None)
    assert (version.version, version.state) == (2, secrets_pb2.VERSION_STATE_DESTROYED)
    assert version.created_at.ToDatetime() == version.destroyed_at.ToDatetime() == now
    following = secrets_pb2.ListVersionsRequest(path=PATH, page_size=1, page_token=page.next_page_token)
    page = find(nexus, "ListVersions").handle(peer, following)
    (version,) = page.versions
    assert (version.version, version.state) == (1, secrets_pb2.VERSION_STATE_LIVE)
    assert (version.HasField("destroyed_at"), page.next_page_token) == (False, "")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(secrets_pb2.PatchSecretRequest(path=PATH, fields={"a": b"b"}), id="patch"),
        pytest.param(secrets_pb2.DeleteSecretRequest(path=PATH), id="delete"),
        pytest.param(secrets_pb2.DestroySecretRequest(path=PATH), id="destroy"),
        pytest.param(secrets_pb2.UpdateSecretMetadataRequest(path=PATH, max_versions=0), id="metadata"),
    ],
)
def test_a_zero_that_is_set_is_not_one_that_is_unset(make_nexus: MakeNexus, request_: Message) -> None:
    """No check-and-set wants version 0 of what has to exist; a limit of 0 is one, and no limit is none."""
    nexus = make_nexus(APP_POLICY)
    assert call(nexus, "PutSecret", APP) is None
    name = type(request_).__name__.removesuffix("Request")
    optional = "max_versions" if name == "UpdateSecretMetadata" else "expected_version"
    for is_set in (True, False):
        request = type(request_)()
        request.CopyFrom(request_)
        request.request_id = os.urandom(16)  # type: ignore[attr-defined]
        if is_set:
            setattr(request, optional, 0)
        else:
            request.ClearField(optional)
        refused = call(nexus, name, APP, request)
        assert isinstance(refused, InvalidArgumentError) is (is_set != (optional == "max_versions")), refused


def test_an_unset_expected_version_is_no_check_and_a_set_zero_is_one(make_nexus: MakeNexus) -> None:
    """proto3 has to tell them apart."""
    nexus = make_nexus(APP_POLICY)
    assert call(nexus, "PutSecret", APP) is None
    assert call(nexus, "PutSecret", APP) is None
    request = secrets_pb2.PutSecretRequest(
        path=PATH, fields={"value": b"v"}, request_id=os.urandom(16), expected_version=0
    )
    refused = call(nexus, "PutSecret", APP, request)
    assert refused is not None
    assert refused.reason == "VERSION_CONFLICT"


@pytest.mark.parametrize("number", [policies_pb2.PERMISSION_UNSPECIFIED, 99])
def test_an_unknown_permission_is_refused(make_nexus: MakeNexus, number: int) -> None:
    """Never taken for another one."""
    policy = policies_pb2.Policy(name="p", spiffe_ids=[APP.spiffe_id], paths=["x"])
    policy.permissions.append(number)  # type: ignore[arg-type]
    nexus = make_nexus()
    refused = call(nexus, "ApplyPolicies", SUPERUSER, policies_pb2.ApplyPoliciesRequest(policies=[policy]))
    assert isinstance(refused, InvalidArgumentError)
    assert f"permissions: got {number}" in str(refused)
    asked = policies_pb2.ExplainAccessRequest(spiffe_id=APP.spiffe_id, permission=number, path="x")  # type: ignore[arg-type]
    refused = call(nexus, "ExplainAccess", SUPERUSER, asked)
    assert isinstance(refused, InvalidArgumentError)
    assert f"permission: got {number}" in str(refused)


def test_a_policy_goes_through_its_messages_whole(make_nexus: MakeNexus) -> None:
    """Apply, apply again, get and explain, field by field."""
    nexus = make_nexus()
    peer = Call(SUPERUSER.spiffe_id, SUPERUSER.address, None)
    foreign = policies_pb2.Policy(
        name="q",
        spiffe_ids=["spiffe://other.example/x"],
        paths=["x", "y/*"],
        permissions=[policies_pb2.PERMISSION_LIST, policies_pb2.PERMISSION_DELETE],
    )
    request = policies_pb2.ApplyPoliciesRequest(policies=[POLICY, foreign])
    first = find(nexus, "ApplyPolicies").handle(peer, request)
    assert (list(first.unchanged), len(first.warnings)) == ([], 1)
    again = find(nexus, "ApplyPolicies").handle(peer, request)
    assert (again.revision, list(again.unchanged), again.warnings) == (first.revision, ["p", "q"], first.warnings)
    got = find(nexus, "GetPolicy").handle(peer, policies_pb2.GetPolicyRequest(name="q"))
    assert got.policy == foreign
    asked = policies_pb2.ExplainAccessRequest(
        spiffe_id=APP.spiffe_id, permission=policies_pb2.PERMISSION_READ, path="x"
    )
    told = find(nexus, "ExplainAccess").handle(peer, asked)
    assert (told.is_allowed, list(told.policies), told.explanation) == (True, ["p"], "allowed by policy p")
    asked.permission = policies_pb2.PERMISSION_WRITE
    told = find(nexus, "ExplainAccess").handle(peer, asked)
    assert (told.is_allowed, list(told.policies)) == (False, [])


def test_status_tells_a_workload_state_and_version_only(make_nexus: MakeNexus) -> None:
    """Every other field of the message is empty."""
    nexus = make_nexus()
    response = find(nexus, "GetStatus").handle(Call(APP.spiffe_id), cluster_pb2.GetStatusRequest())
    assert {field.name for field, _ in response.ListFields()} == {"state", "version"}
    response = find(nexus, "GetStatus").handle(Call(AUDITOR.spiffe_id), cluster_pb2.GetStatusRequest())
    told = {field.name for field, _ in response.ListFields()}
    assert told >= {"cluster_id", "genesis", "generation", "shard_threshold", "shard_count", "keepers", "timeline"}
    assert (response.state, response.shard_threshold, response.shard_count) == (cluster_pb2.STATE_READY, 2, 3)
