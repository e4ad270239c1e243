"""RootService: message → operations → message."""

from collections.abc import Sequence

from common.errors import InvalidArgumentError
from common.server.edge import Call
from nexus.admin.operations.operations import Operations, OperationView
from nexus.admin.operations.reshare_plan import ResharePlan
from nexus.keys.operation.preflight import Check
from nexus.keys.operation.record import Depth, EndedRecord, Outcome, Step
from nexus.keys.shard_set import Member
from nexus.server.auth import Authenticator
from shardhold.v1 import root_pb2 as pb

_DEPTHS = {Depth.RESHARE: pb.DEPTH_RESHARE}
_STEPS = {
    Step.PREPARED: pb.STEP_PREPARED,
    Step.DISTRIBUTED: pb.STEP_DISTRIBUTED,
    Step.FLIPPED: pb.STEP_FLIPPED,
}
_OUTCOMES = {Outcome.SETTLED: pb.OUTCOME_SETTLED, Outcome.ABORTED: pb.OUTCOME_ABORTED}


class RootHandlers:
    def __init__(self, operations: Operations, authenticator: Authenticator) -> None:
        self._operations = operations
        self._identify = authenticator.identify

    def start_operation(self, call: Call, request: pb.StartOperationRequest) -> pb.StartOperationResponse:
        if request.depth != pb.DEPTH_RESHARE:
            raise InvalidArgumentError(f"depth: got {request.depth}, want {pb.DEPTH_RESHARE}")
        plan = ResharePlan(
            threshold=request.threshold,
            add=tuple(Member(one.name, one.spiffe_id, one.address) for one in request.add),
            remove=tuple(request.remove),
            lost=tuple(request.lost),
        )
        checks, view = self._operations.reshare(
            self._identify(call), request.operation_id, plan, request.reason, dry_run=request.dry_run
        )
        return pb.StartOperationResponse(checks=_to_checks(checks), operation=_to_operation(view))

    def get_operation(self, call: Call, _: pb.GetOperationRequest) -> pb.GetOperationResponse:
        view = self._operations.describe(self._identify(call))
        current = view.current
        response = pb.GetOperationResponse(
            generation=current.generation,
            set_number=current.set_number,
            threshold=current.threshold,
            keepers=len(current.members),
            operation=_to_operation(view.operation),
            last=_to_ended(view.last),
            dead_sets=view.dead_sets,
        )
        if current.drawn_at:
            response.drawn_at.FromMicroseconds(current.drawn_at)
        return response

    def abort_operation(self, call: Call, request: pb.AbortOperationRequest) -> pb.AbortOperationResponse:
        self._operations.abort(self._identify(call), request.operation_id, request.reason)
        return pb.AbortOperationResponse()

    def continue_operation(self, call: Call, request: pb.ContinueOperationRequest) -> pb.ContinueOperationResponse:
        view = self._operations.proceed(
            self._identify(call),
            request.operation_id,
            with_threshold=request.with_threshold,
            without_proof=request.without_proof,
            lost=tuple(request.lost),
        )
        return pb.ContinueOperationResponse(operation=_to_operation(view))


def _to_checks(checks: Sequence[Check]) -> list[pb.Check]:
    return [pb.Check(name=one.name, detail=one.found, refusal=one.reason or "") for one in checks]


def _to_operation(view: OperationView | None) -> pb.RootOperation | None:
    if view is None:
        return None
    record = view.record
    message = pb.RootOperation(
        operation_id=record.id,
        depth=_DEPTHS[record.depth],
        step=_STEPS[record.step],
        reason=record.reason,
        actor=record.actor,
        set_from=record.source.set_number,
        set_to=record.target.set_number,
        threshold=view.threshold,
        keepers=view.keepers,
        holders=view.holders,
        quorum=record.quorum,
        waits_for=view.waits_for,
    )
    message.started_at.FromMicroseconds(record.started_at)
    message.stepped_at.FromMicroseconds(record.stepped_at)
    return message


def _to_ended(record: EndedRecord | None) -> pb.EndedOperation | None:
    if record is None:
        return None
    message = pb.EndedOperation(
        operation_id=record.id,
        depth=_DEPTHS[record.depth],
        outcome=_OUTCOMES[record.outcome],
        detail=record.detail,
        set_from=record.source.set_number,
        set_to=record.target.set_number,
    )
    message.ended_at.FromMicroseconds(record.ended_at)
    return message
