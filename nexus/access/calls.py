"""The one table of RPCs: how each stands in the audit, who may call it, and in which states it is served.

Rules:
- The gate takes a row and looks up everything in it; whoever calls the gate repeats none of it.
- A role is always needed. `Rpc[None]` needs nothing else; `Rpc[Permission]` needs a policy besides.
- An RPC of the contracts without a row stops the start (`nexus.server.methods`).
- `docs/calls.md` is written from this table by `python docs/generate.py`; a test compares it, and the comments in
  `proto/shardhold/v1`, with the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from nexus.access.roles import Role
from nexus.lifecycle.states import READY_ONLY, State
from nexus.policy.rules import Permission

PACKAGE: Final = "shardhold.v1"

P_co = TypeVar("P_co", bound=Permission | None, covariant=True)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[P_co]):
    """The row of one RPC."""

    service: str
    name: str
    action: str  # in the audit
    permission: P_co  # that a policy has to give besides; None: the role is enough
    roles: frozenset[Role]
    states: frozenset[State]  # elsewhere it is refused before anything is looked at
    uses_reserve: bool = False  # its entry may use the audit's reserve when a person calls: workloads could use it up
    roles_over_others: frozenset[Role] = frozenset()  # of *roles*, those that may undo what another caller started

    @property
    def full_name(self) -> str:
        """The name on the wire."""
        return f"/{PACKAGE}.{self.service}/{self.name}"


_EVERYBODY = frozenset(Role)
BY_POLICY: Final = frozenset({Role.WORKLOAD, Role.SUPERUSER})  # no other role reads secrets, whatever a policy says
_SUPERUSER = frozenset({Role.SUPERUSER})
_ADMINS = frozenset({Role.SUPERUSER, Role.OPERATOR})
_CUSTODIANS = _ADMINS | {Role.RECOVER}

_ALWAYS = frozenset(State)
_BEFORE_CLUSTER = frozenset({State.UNINITIALISED, State.INITIALISING})
_OPEN_ATTEMPT = frozenset({State.INITIALISING})
_KEYLESS = frozenset({State.RECOVERING, State.SEALED})

PUT_SECRET = Rpc("SecretService", "PutSecret", "secret.write", Permission.WRITE, BY_POLICY, READY_ONLY)
GET_SECRET = Rpc("SecretService", "GetSecret", "secret.read", Permission.READ, BY_POLICY, READY_ONLY)
PATCH_SECRET = Rpc("SecretService", "PatchSecret", "secret.patch", Permission.WRITE, BY_POLICY, READY_ONLY)
LIST_VERSIONS = Rpc("SecretService", "ListVersions", "secret.versions", Permission.READ, BY_POLICY, READY_ONLY)
LIST_SECRETS = Rpc("SecretService", "ListSecrets", "secret.list", Permission.LIST, BY_POLICY, READY_ONLY)
DELETE_SECRET = Rpc("SecretService", "DeleteSecret", "secret.delete", Permission.DELETE, BY_POLICY, READY_ONLY)
UNDELETE_SECRET = Rpc("SecretService", "UndeleteSecret", "secret.undelete", Permission.WRITE, BY_POLICY, READY_ONLY)
DESTROY_SECRET = Rpc("SecretService", "DestroySecret", "secret.destroy", Permission.DELETE, BY_POLICY, READY_ONLY)
UPDATE_SECRET_METADATA = Rpc(
    "SecretService", "UpdateSecretMetadata", "secret.metadata", Permission.WRITE, BY_POLICY, READY_ONLY
)

APPLY_POLICIES = Rpc("PolicyService", "ApplyPolicies", "policy.apply", None, _SUPERUSER, READY_ONLY)
GET_POLICY = Rpc("PolicyService", "GetPolicy", "policy.get", None, _SUPERUSER | {Role.AUDITOR}, READY_ONLY)
LIST_POLICIES = Rpc("PolicyService", "ListPolicies", "policy.list", None, _SUPERUSER | {Role.AUDITOR}, READY_ONLY)
DELETE_POLICY = Rpc("PolicyService", "DeletePolicy", "policy.delete", None, _SUPERUSER, READY_ONLY)
EXPLAIN_ACCESS = Rpc("PolicyService", "ExplainAccess", "policy.explain", None, _SUPERUSER | {Role.AUDITOR}, READY_ONLY)

GET_STATUS = Rpc("ClusterService", "GetStatus", "status.get", None, _EVERYBODY, _ALWAYS, uses_reserve=True)
BEGIN_INIT = Rpc("ClusterService", "BeginInit", "init.begin", None, _SUPERUSER, _BEFORE_CLUSTER)
CONFIRM_INIT = Rpc("ClusterService", "ConfirmInit", "init.confirm", None, _SUPERUSER, _OPEN_ATTEMPT | READY_ONLY)
ABORT_INIT = Rpc("ClusterService", "AbortInit", "init.abort", None, _SUPERUSER, _OPEN_ATTEMPT, uses_reserve=True)
SEAL = Rpc("ClusterService", "Seal", "seal", None, _ADMINS, _KEYLESS | READY_ONLY, uses_reserve=True)
ACCEPT_OLDER_STORE = Rpc(
    "ClusterService", "AcceptOlderStore", "store.accept-older", None, _SUPERUSER, frozenset({State.RECOVERING})
)
LIST_KEEPERS = Rpc("ClusterService", "ListKeepers", "keeper.list", None, _ADMINS | {Role.AUDITOR}, READY_ONLY)

TAIL_AUDIT = Rpc("AuditService", "TailAudit", "audit.tail", None, _ADMINS | {Role.AUDITOR}, _ALWAYS)
ACCEPT_NEW_CHAIN = Rpc(
    "AuditService",
    "AcceptNewChain",
    "audit.accept-new-chain",
    None,
    _ADMINS,
    _KEYLESS | READY_ONLY,
    uses_reserve=True,
)

START_OPERATION = Rpc("RootService", "StartOperation", "root.start", None, _ADMINS, READY_ONLY)
GET_OPERATION = Rpc("RootService", "GetOperation", "root.status", None, _ADMINS | {Role.AUDITOR}, READY_ONLY)
ABORT_OPERATION = Rpc("RootService", "AbortOperation", "root.abort", None, _ADMINS, READY_ONLY, uses_reserve=True)
CONTINUE_OPERATION = Rpc("RootService", "ContinueOperation", "root.continue", None, _ADMINS, READY_ONLY)
LIST_QUARANTINE = Rpc("RootService", "ListQuarantine", "quarantine.list", None, _ADMINS | {Role.AUDITOR}, READY_ONLY)
RETRY_QUARANTINED = Rpc("RootService", "RetryQuarantined", "quarantine.retry", None, _ADMINS, READY_ONLY)
ABANDON_QUARANTINED = Rpc("RootService", "AbandonQuarantined", "quarantine.abandon", None, _SUPERUSER, READY_ONLY)
PAUSE_ROTATION = Rpc("RootService", "PauseRotation", "root.pause", None, _ADMINS, READY_ONLY)
RESUME_ROTATION = Rpc("RootService", "ResumeRotation", "root.resume", None, _ADMINS, READY_ONLY)
LIST_GENERATIONS = Rpc("RootService", "ListGenerations", "root.history", None, _ADMINS | {Role.AUDITOR}, READY_ONLY)
LIST_IMPACT = Rpc("RootService", "ListImpact", "root.impact", None, _ADMINS | {Role.AUDITOR}, READY_ONLY)

CREATE_BACKUP = Rpc("BackupService", "CreateBackup", "backup.create", None, _ADMINS, READY_ONLY)
LIST_BACKUPS = Rpc("BackupService", "ListBackups", "backup.list", None, _ADMINS | {Role.AUDITOR}, READY_ONLY)
VERIFY_BACKUP = Rpc("BackupService", "VerifyBackup", "backup.verify", None, _ADMINS, READY_ONLY)
PRUNE_BACKUPS = Rpc("BackupService", "PruneBackups", "backup.prune", None, _ADMINS, READY_ONLY)

START_UNSEAL = Rpc("RecoveryService", "StartUnseal", "unseal.start", None, _CUSTODIANS, _KEYLESS)
GET_SEALING_KEY = Rpc("RecoveryService", "GetSealingKey", "unseal.key", None, _CUSTODIANS, _KEYLESS)
SUBMIT_SHARE = Rpc("RecoveryService", "SubmitShare", "unseal.submit", None, _CUSTODIANS, _KEYLESS)
GET_PROGRESS = Rpc(
    "RecoveryService",
    "GetProgress",
    "unseal.progress",
    None,
    _CUSTODIANS | {Role.AUDITOR},
    _KEYLESS,
    uses_reserve=True,
)
EXCLUDE_SUBMITTER = Rpc("RecoveryService", "ExcludeSubmitter", "unseal.exclude", None, _ADMINS, _KEYLESS)
RESET_UNSEAL = Rpc(
    "RecoveryService", "ResetUnseal", "unseal.reset", None, _CUSTODIANS, _KEYLESS, roles_over_others=_ADMINS
)

ALL: Final[tuple[Rpc[Permission | None], ...]] = (
    PUT_SECRET,
    PATCH_SECRET,
    GET_SECRET,
    LIST_SECRETS,
    LIST_VERSIONS,
    DELETE_SECRET,
    UNDELETE_SECRET,
    DESTROY_SECRET,
    UPDATE_SECRET_METADATA,
    APPLY_POLICIES,
    GET_POLICY,
    LIST_POLICIES,
    DELETE_POLICY,
    EXPLAIN_ACCESS,
    GET_STATUS,
    BEGIN_INIT,
    CONFIRM_INIT,
    ABORT_INIT,
    SEAL,
    ACCEPT_OLDER_STORE,
    LIST_KEEPERS,
    START_UNSEAL,
    GET_SEALING_KEY,
    SUBMIT_SHARE,
    GET_PROGRESS,
    EXCLUDE_SUBMITTER,
    RESET_UNSEAL,
    TAIL_AUDIT,
    ACCEPT_NEW_CHAIN,
    START_OPERATION,
    GET_OPERATION,
    ABORT_OPERATION,
    CONTINUE_OPERATION,
    LIST_QUARANTINE,
    RETRY_QUARANTINED,
    ABANDON_QUARANTINED,
    PAUSE_ROTATION,
    RESUME_ROTATION,
    LIST_GENERATIONS,
    LIST_IMPACT,
    CREATE_BACKUP,
    LIST_BACKUPS,
    VERIFY_BACKUP,
    PRUNE_BACKUPS,
)

BY_FULL_NAME: Final[Mapping[str, Rpc[Permission | None]]] = {rpc.full_name: rpc for rpc in ALL}
