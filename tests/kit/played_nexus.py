"""A played nexus: real mTLS, statements and sealed shares, with answers that a test sets."""

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration

from common.clock import SystemClock
from common.errors import InvalidArgumentError, ShardholdError, WrongStateError
from common.forms.delivery import build_share_info
from common.keys.statement import SUBMIT_SHARE, StatementDesk
from common.keys.words import WIRE_SIZE, decode_share, read_share
from common.server.edge import Call, GrpcServer, Method
from shardhold.identity import Svid
from shardhold.v1 import cluster_pb2, recovery_pb2, root_pb2
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity

NEXUS_PATH = "/shardhold/nexus/n1"
CUSTODIAN_PATH = "/shardhold/pilot/role/recover/ann"
_MESSAGES: dict[str, Any] = {
    "shardhold.v1.ClusterService": cluster_pb2,
    "shardhold.v1.RecoveryService": recovery_pb2,
    "shardhold.v1.RootService": root_pb2,
}
CLUSTER_ID, GENESIS, SESSION_ID = b"c" * 16, bytes(range(32)), b"s" * 16


BEGUN = b"the one that was begun"  # stands in what a test sets for the id that pilot chose


class PlayedNexus:
    """Serves status, seal, accept, unseal (with two shares) and operations; `errors`, by method, are raised instead."""

    def __init__(self, ca: Authority, *, path: str = NEXUS_PATH, svid: Svid | None = None) -> None:
        identity = FixedIdentity(svid or ca.issue(path, dns="nexus.shardhold"))
        self.status = cluster_pb2.GetStatusResponse(
            state=cluster_pb2.STATE_SEALED, cluster_id=CLUSTER_ID, recovery_threshold=2, recovery_shares=3
        )
        self.keepers: list[cluster_pb2.KeeperInfo] = []
        self.checks: list[root_pb2.Check] = []  # of StartOperation
        self.begun = root_pb2.RootOperation()
        self.quarantine: list[root_pb2.QuarantinedVersion] = []  # told in pages of two
        self.history: list[root_pb2.Generation] = []
        self.impact: list[root_pb2.ListImpactResponse] = [root_pb2.ListImpactResponse()]  # page by page
        self._told: Sequence[root_pb2.GetOperationResponse | ShardholdError] = ()
        self.errors: dict[str, ShardholdError] = {}
        self.requests: list[Any] = []
        self.shares: list[str] = []
        self.excluded: list[str] = []
        self.is_open = False
        self.bend: Callable[[Any], Any] = lambda answer: answer  # of GetSealingKey
        self._desk = StatementDesk(SystemClock())
        self._identity = identity
        cluster, recovery = "/shardhold.v1.ClusterService/", "/shardhold.v1.RecoveryService/"
        root = "/shardhold.v1.RootService/"
        handlers: list[tuple[str, Callable[[Call, Any], Any]]] = [
            (cluster + "GetStatus", lambda call, request: self.status),
            (cluster + "Seal", lambda call, request: cluster_pb2.SealResponse(keepers_emptied=4, keepers=5)),
            (cluster + "AcceptOlderStore", lambda call, request: cluster_pb2.AcceptOlderStoreResponse(timeline=2)),
            (cluster + "ListKeepers", lambda call, request: cluster_pb2.ListKeepersResponse(keepers=self.keepers)),
            (root + "StartOperation", self._begin),
            (root + "GetOperation", self._tell_operation),
            (root + "AbortOperation", lambda call, request: root_pb2.AbortOperationResponse()),
            (root + "ContinueOperation", self._continue),
            (root + "ListQuarantine", self._list_quarantine),
            (root + "RetryQuarantined", lambda call, request: root_pb2.RetryQuarantinedResponse()),
            (root + "AbandonQuarantined", lambda call, request: root_pb2.AbandonQuarantinedResponse()),
            (root + "PauseRotation", lambda call, request: root_pb2.PauseRotationResponse()),
            (root + "ResumeRotation", lambda call, request: root_pb2.ResumeRotationResponse()),
            (
                root + "ListGenerations",
                lambda call, request: root_pb2.ListGenerationsResponse(generations=self.history),
            ),
            (root + "ListImpact", self._list_impact),
            (recovery + "StartUnseal", self._start),
            (recovery + "GetSealingKey", self._state_key),
            (recovery + "SubmitShare", self._take_share),
            (recovery + "GetProgress", self._tell_progress),
            (recovery + "ExcludeSubmitter", self._exclude),
            (recovery + "ResetUnseal", self._reset),
        ]
        methods = [self._bind(name, handle) for name, handle in handlers]
        self._server = GrpcServer(methods, address="127.0.0.1:0", identity=identity, trust_domain=ca.trust_domain)
        self.address = f"127.0.0.1:{self._server.start()}"

    def tell(self, *told: root_pb2.GetOperationResponse | ShardholdError) -> None:
        """Answer GetOperation with these, one after the other, and go on with the last one."""
        self._told = told

    def stop(self) -> None:
        self._server.stop(0)

    def find(self, kind: type[Any]) -> list[Any]:
        """Return the requests of one kind, in order."""
        return [request for request in self.requests if isinstance(request, kind)]

    def _bind(self, name: str, handle: Callable[[Call, Any], Any]) -> Method:
        short = name.rpartition("/")[2]
        messages = _MESSAGES[name.split("/")[1]]

        def answer(call: Call, request: Any) -> Any:
            self.requests.append(request)
            if short in self.errors:
                raise self.errors[short]
            return handle(call, request)

        return Method(name, getattr(messages, f"{short}Request"), getattr(messages, f"{short}Response"), answer)

    def _begin(self, call: Call, request: root_pb2.StartOperationRequest) -> root_pb2.StartOperationResponse:
        self.begun.operation_id = request.operation_id
        begun = None if request.dry_run else self.begun
        return root_pb2.StartOperationResponse(checks=self.checks, operation=begun)

    def _tell_operation(self, call: Call, request: Any) -> root_pb2.GetOperationResponse:
        told, *left = self._told
        self._told = left or self._told
        if isinstance(told, ShardholdError):
            raise told
        assert isinstance(told, root_pb2.GetOperationResponse)
        for part in (told.operation, told.last):
            if part.operation_id == BEGUN:
                part.operation_id = self.begun.operation_id
        return told

    def _continue(self, call: Call, request: Any) -> root_pb2.ContinueOperationResponse:
        told = self._told[0]
        assert isinstance(told, root_pb2.GetOperationResponse)
        return root_pb2.ContinueOperationResponse(operation=told.operation if told.HasField("operation") else None)

    def _list_quarantine(self, call: Call, request: root_pb2.ListQuarantineRequest) -> root_pb2.ListQuarantineResponse:
        keys = [row.key for row in self.quarantine]
        first = keys.index(request.after) + 1 if request.HasField("after") else 0
        rows = self.quarantine[first : first + 2]
        return root_pb2.ListQuarantineResponse(rows=rows, next=rows[-1].key if len(rows) == 2 else None)

    def _list_impact(self, call: Call, request: root_pb2.ListImpactRequest) -> root_pb2.ListImpactResponse:
        begins = ["", *(page.next for page in self.impact)]
        return self.impact[begins.index(request.after)]

    def _session(self) -> recovery_pb2.UnsealSession:
        return recovery_pb2.UnsealSession(
            session_id=SESSION_ID,
            genesis=GENESIS,
            expires_in=Duration(seconds=900),
            submitted=len(self.shares),
            needed=2,
            excluded=self.excluded,
        )

    def _start(self, call: Call, request: Any) -> recovery_pb2.StartUnsealResponse:
        self.is_open = True
        return recovery_pb2.StartUnsealResponse(session=self._session())

    def _tell_progress(self, call: Call, request: Any) -> recovery_pb2.GetProgressResponse:
        progress = recovery_pb2.GetProgressResponse(
            cluster_id=CLUSTER_ID, genesis=GENESIS, recovery_shares=3, recovery_threshold=2
        )
        if self.is_open:
            progress.session.CopyFrom(self._session())
        return progress

    def _state_key(self, call: Call, request: recovery_pb2.GetSealingKeyRequest) -> recovery_pb2.GetSealingKeyResponse:
        signed = self._desk.issue(
            cluster_id=CLUSTER_ID,
            audience=call.caller,
            purpose=SUBMIT_SHARE,
            nonce=request.nonce,
            boot_id=b"b" * 16,
            svid=self._identity.current(),
        )
        answer = recovery_pb2.GetSealingKeyResponse(
            statement=signed.statement, signature=signed.signature, certificates=signed.certificates
        )
        return self.bend(answer) or answer

    def _take_share(self, call: Call, request: recovery_pb2.SubmitShareRequest) -> recovery_pb2.SubmitShareResponse:
        _, key = self._desk.take(request.statement_digest)
        wire = bytearray(WIRE_SIZE)
        info = build_share_info(
            statement_digest=request.statement_digest, session_id=request.session_id, genesis=GENESIS
        )
        key.open(request.sealed_share, info=info, into=memoryview(wire))
        words = decode_share(wire)
        if words in self.shares:
            raise WrongStateError("this share was submitted before")
        if read_share(words).threshold != 2:
            raise InvalidArgumentError("these words are no share of this cluster's recovery key")
        self.shares.append(words)
        return recovery_pb2.SubmitShareResponse(
            number=read_share(words).number,
            submitted=len(self.shares),
            needed=2,
            ready=len(self.shares) == 2 and not self.status.HasField("newer_mark"),
        )

    def _exclude(
        self, call: Call, request: recovery_pb2.ExcludeSubmitterRequest
    ) -> recovery_pb2.ExcludeSubmitterResponse:
        self.excluded.append(request.spiffe_id)
        return recovery_pb2.ExcludeSubmitterResponse(session=self._session())

    def _reset(self, call: Call, request: Any) -> recovery_pb2.ResetUnsealResponse:
        forgotten, self.shares, self.is_open = len(self.shares), [], False
        return recovery_pb2.ResetUnsealResponse(forgotten=forgotten)
