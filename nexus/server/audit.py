"""AuditService: message → audit → message."""

from common.server.edge import Call
from nexus.admin.audit import MAX_WAIT_S, Audit
from nexus.server.auth import Authenticator
from shardhold.v1 import audit_pb2 as pb

_ANSWER_TIME = 1.0  # seconds of the caller's deadline that are kept for the answer


class AuditHandlers:
    def __init__(self, audit: Audit, authenticator: Authenticator) -> None:
        self._audit = audit
        self._identify = authenticator.identify

    def tail_audit(self, call: Call, request: pb.TailAuditRequest) -> pb.TailAuditResponse:
        timeline, lines, timelines, head = self._audit.tail(
            self._identify(call),
            request.timeline if request.HasField("timeline") else None,
            after=request.after_seq if request.HasField("after_seq") else None,
            limit=request.limit,
            wait_s=request.wait.seconds + request.wait.nanos / 1e9,
            longest_s=MAX_WAIT_S if call.deadline is None else max(0.0, call.deadline - _ANSWER_TIME),
        )
        response = pb.TailAuditResponse(nexus=self._audit.nexus, timeline=timeline, lines=lines, timelines=timelines)
        if head is not None:
            response.head.timeline, response.head.seq, response.head.hash = head.timeline, head.seq, head.digest
        return response

    def accept_new_chain(self, call: Call, request: pb.AcceptNewChainRequest) -> pb.AcceptNewChainResponse:
        position = self._audit.accept_new_chain(self._identify(call), request.reason)
        return pb.AcceptNewChainResponse(timeline=position.timeline, seq=position.seq)
