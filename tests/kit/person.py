"""People with a role, who seal, unseal and accept by single calls of the contract: any step can be stopped or wrong."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from common.forms.delivery import build_share_info
from common.keys.sealing import seal
from common.keys.statement import SUBMIT_SHARE, SignedStatement, Statement, verify
from common.keys.words import encode_share
from pilot.dev.identities import NEXUS_PATH, TRUST_DOMAIN
from shardhold import IdentityUnavailableError, WorkloadAPI
from shardhold.channel import PinnedChannel
from shardhold.v1 import cluster_pb2, policies_pb2, recovery_pb2, root_pb2
from shardhold.v1.audit_pb2_grpc import AuditServiceStub
from shardhold.v1.backup_pb2_grpc import BackupServiceStub
from shardhold.v1.cluster_pb2_grpc import ClusterServiceStub
from shardhold.v1.policies_pb2_grpc import PolicyServiceStub
from shardhold.v1.recovery_pb2_grpc import RecoveryServiceStub
from shardhold.v1.root_pb2_grpc import RootServiceStub
from shardhold.v1.secrets_pb2_grpc import SecretServiceStub
from tests.kit.patience import at_most, patience

TIMEOUT_S = 20.0
NEXUS_ID = f"spiffe://{TRUST_DOMAIN}{NEXUS_PATH}"


@dataclass(frozen=True)
class SealedShare:
    """A share on its way: for one statement, in one session."""

    session_id: bytes
    statement_digest: bytes
    sealed: bytes

    def to_request(self) -> recovery_pb2.SubmitShareRequest:
        return recovery_pb2.SubmitShareRequest(
            session_id=self.session_id, statement_digest=self.statement_digest, sealed_share=self.sealed
        )


class Person:
    """One SPIFFE ID that calls a nexus. Errors are those of gRPC.

    Calls that a person begins with wait until the nexus is there. Those that a test may want to kill do not: what was
    not sent before the kill would be sent after it.
    """

    def __init__(self, channel: PinnedChannel, identity: WorkloadAPI) -> None:
        self._identity = identity
        self.channel = channel
        self.cluster = ClusterServiceStub(channel)
        self.recovery = RecoveryServiceStub(channel)
        self.root = RootServiceStub(channel)
        self.policies = PolicyServiceStub(channel)
        self.secrets = SecretServiceStub(channel)
        self.audit = AuditServiceStub(channel)
        self.backups = BackupServiceStub(channel)

    @property
    def spiffe_id(self) -> str:
        return self._identity.current().spiffe_id

    def trusts(self) -> tuple[x509.Certificate, ...]:
        """Return the authorities that come with the SVID; none while there is no SVID."""
        try:
            return self._identity.current().bundle()
        except IdentityUnavailableError:
            return ()

    def count_dead_sets(self) -> int:
        """Count the sets of which a keeper may hold a shard yet."""
        return self.root.GetOperation(root_pb2.GetOperationRequest(), timeout=TIMEOUT_S, wait_for_ready=True).dead_sets

    def get_status(self) -> cluster_pb2.GetStatusResponse:
        return self.cluster.GetStatus(cluster_pb2.GetStatusRequest(), timeout=patience(5), wait_for_ready=True)

    def seal(self, reason: str = "", *, timeout: float = TIMEOUT_S) -> cluster_pb2.SealResponse:
        """Seal; it waits for the keepers until a second before *timeout*."""
        return self.cluster.Seal(cluster_pb2.SealRequest(reason=reason), timeout=timeout)

    def accept_older_store(self, timeline: int, revision: int) -> int:
        """Accept the store at this position; return the timeline that began."""
        request = cluster_pb2.AcceptOlderStoreRequest(timeline=timeline, revision=revision)
        return self.cluster.AcceptOlderStore(request, timeout=at_most(TIMEOUT_S)).timeline

    def apply_policy(self, policy: policies_pb2.Policy) -> None:
        """Create a policy, or replace the one of its name."""
        request = policies_pb2.ApplyPoliciesRequest(policies=[policy])
        self.policies.ApplyPolicies(request, timeout=TIMEOUT_S, wait_for_ready=True)

    def start_unseal(self) -> recovery_pb2.UnsealSession:
        return self.recovery.StartUnseal(
            recovery_pb2.StartUnsealRequest(), timeout=at_most(TIMEOUT_S), wait_for_ready=True
        ).session

    def get_progress(self) -> recovery_pb2.GetProgressResponse:
        return self.recovery.GetProgress(
            recovery_pb2.GetProgressRequest(), timeout=at_most(TIMEOUT_S), wait_for_ready=True
        )

    def reset_unseal(self, session_id: bytes) -> int:
        """End the session; return how many shares were forgotten."""
        request = recovery_pb2.ResetUnsealRequest(session_id=session_id)
        return self.recovery.ResetUnseal(request, timeout=at_most(TIMEOUT_S)).forgotten

    def exclude(self, session_id: bytes, spiffe_id: str) -> recovery_pb2.UnsealSession:
        """Exclude a caller from the session."""
        request = recovery_pb2.ExcludeSubmitterRequest(session_id=session_id, spiffe_id=spiffe_id)
        return self.recovery.ExcludeSubmitter(request, timeout=at_most(TIMEOUT_S)).session

    def ask_statement(self, session_id: bytes) -> Statement:
        """Ask for a one-shot key, and verify that it is the nexus's and for this caller."""
        nonce = os.urandom(32)
        request = recovery_pb2.GetSealingKeyRequest(session_id=session_id, nonce=nonce)
        answer = self.recovery.GetSealingKey(request, timeout=at_most(TIMEOUT_S), wait_for_ready=True)
        return verify(
            SignedStatement(answer.statement, answer.signature, tuple(answer.certificates)),
            roots=self._identity.current().bundle(),
            cluster_id=self.get_progress().cluster_id,
            issuer=NEXUS_ID,
            audience=self.spiffe_id,
            purpose=SUBMIT_SHARE,
            nonce=nonce,
            now=datetime.now(UTC),
        )

    def seal_share(self, session_id: bytes, wire: bytes, *, bound_to: bytes | None = None) -> SealedShare:
        """Seal a share in wire form for the nexus, bound to its session or, for a wrong one, to another."""
        statement = self.ask_statement(session_id)
        digest = statement.digest()
        info = build_share_info(
            statement_digest=digest,
            session_id=session_id if bound_to is None else bound_to,
            genesis=self.get_progress().genesis,
        )
        sealed = seal(memoryview(wire), recipient=statement.public_key, info=info)
        return SealedShare(session_id, digest, sealed)

    def submit(self, share: SealedShare) -> recovery_pb2.SubmitShareResponse:
        return self.recovery.SubmitShare(share.to_request(), timeout=at_most(TIMEOUT_S))

    def submit_words(self, session_id: bytes, words: str) -> recovery_pb2.SubmitShareResponse:
        """Do what a custodian does: words in, sealed to the nexus alone."""
        return self.submit(self.seal_share(session_id, encode_share(words)))
