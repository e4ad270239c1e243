"""RootService: message → operations, quarantine and schedule → message."""

from collections.abc import Iterable, Sequence

from common.errors import InvalidArgumentError
from common.server.edge import Call
from nexus.access.gate import Caller
from nexus.admin.operations.impact import Impact
from nexus.admin.operations.operations import Operations, OperationView
from nexus.admin.operations.quarantine import Quarantine
from nexus.admin.operations.reshare_plan import ResharePlan
from nexus.admin.operations.rotate_plan import RotatePlan
from nexus.admin.operations.rotation_calls import RotationCalls
from nexus.keys.operation.preflight import Check
from nexus.keys.shard_set import Member
from nexus.server.auth import Authenticator
from nexus.server.root_messages import (
    to_checks,
    to_generation,
    to_impact,
    to_key,
    to_operation,
    to_quarantined,
    to_root,
)
from nexus.store.rewrapping import VersionKey
from shardhold.v1 import root_pb2 as pb

_MAX_PAGE = 1000
# Bytes that a damaged row in quarantine may have and people can still name it; an intact one has up to 512, and 16.
_MAX_PATH, _MAX_INCARNATION = 4096, 64
_OF_RESHARES = ("threshold", "add", "remove", "lost")
# Fields that an operation of another depth has no use for: they would be ignored, and somebody counts on them.
_FOREIGN_FIELDS = {
    pb.DEPTH_RESHARE: ("without_backup", "force", "suspected_since"),
    pb.DEPTH_ROTATE: (*_OF_RESHARES, "suspected_since"),
    pb.DEPTH_EMERGENCY: (*_OF_RESHARES, "force"),
}


class RootHandlers:
    def __init__(
        self,
        operations: Operations,
        quarantine: Quarantine,
        rotation_calls: RotationCalls,
        impact: Impact,
        authenticator: Authenticator,
    ) -> None:
        self._operations = operations
        self._quarantine = quarantine
        self._rotation_calls = rotation_calls
        self._impact = impact
        self._identify = authenticator.identify

    def start_operation(self, call: Call, request: pb.StartOperationRequest) -> pb.StartOperationResponse:
        if request.depth not in _FOREIGN_FIELDS:
            raise InvalidArgumentError(f"depth: got {request.depth}, want one of {sorted(_FOREIGN_FIELDS)}")
        _check_unset(request, _FOREIGN_FIELDS[request.depth])
        begin = self._reshare if request.depth == pb.DEPTH_RESHARE else self._rotate
        checks, view = begin(self._identify(call), request)
        return pb.StartOperationResponse(checks=to_checks(checks), operation=to_operation(view))

    def get_operation(self, call: Call, _: pb.GetOperationRequest) -> pb.GetOperationResponse:
        return to_root(self._operations.describe(self._identify(call)))

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
        return pb.ContinueOperationResponse(operation=to_operation(view))

    def list_quarantine(self, call: Call, request: pb.ListQuarantineRequest) -> pb.ListQuarantineResponse:
        if request.limit > _MAX_PAGE:
            raise InvalidArgumentError(f"limit: got {request.limit}, want 0 to {_MAX_PAGE}")
        limit = request.limit or _MAX_PAGE
        after = _read_key(request.after) if request.HasField("after") else None
        rows = self._quarantine.list(self._identify(call), after, limit)
        following = to_key(rows[-1].key) if len(rows) == limit else None
        return pb.ListQuarantineResponse(rows=map(to_quarantined, rows), next=following)

    def retry_quarantined(self, call: Call, request: pb.RetryQuarantinedRequest) -> pb.RetryQuarantinedResponse:
        self._quarantine.retry(self._identify(call), _read_named(request))
        return pb.RetryQuarantinedResponse()

    def abandon_quarantined(self, call: Call, request: pb.AbandonQuarantinedRequest) -> pb.AbandonQuarantinedResponse:
        self._quarantine.abandon(self._identify(call), _read_named(request), request.reason)
        return pb.AbandonQuarantinedResponse()

    def pause_rotation(self, call: Call, request: pb.PauseRotationRequest) -> pb.PauseRotationResponse:
        self._rotation_calls.pause(self._identify(call), request.reason)
        return pb.PauseRotationResponse()

    def resume_rotation(self, call: Call, _: pb.ResumeRotationRequest) -> pb.ResumeRotationResponse:
        self._rotation_calls.resume(self._identify(call))
        return pb.ResumeRotationResponse()

    def list_generations(self, call: Call, _: pb.ListGenerationsRequest) -> pb.ListGenerationsResponse:
        records = self._rotation_calls.history(self._identify(call))
        return pb.ListGenerationsResponse(generations=[to_generation(*one) for one in sorted(records.items())])

    def list_impact(self, call: Call, request: pb.ListImpactRequest) -> pb.ListImpactResponse:
        caller = self._identify(call)
        page = self._impact.list_page(caller, request.generation, after=request.after, is_wanted=call.is_wanted)
        return to_impact(page)

    def _reshare(
        self, caller: Caller, request: pb.StartOperationRequest
    ) -> tuple[Sequence[Check], OperationView | None]:
        plan = ResharePlan(
            threshold=request.threshold,
            add=tuple(Member(one.name, one.spiffe_id, one.address) for one in request.add),
            remove=tuple(request.remove),
            lost=tuple(request.lost),
        )
        return self._operations.reshare(caller, request.operation_id, plan, request.reason, dry_run=request.dry_run)

    def _rotate(
        self, caller: Caller, request: pb.StartOperationRequest
    ) -> tuple[Sequence[Check], OperationView | None]:
        plan = RotatePlan(
            is_emergency=request.depth == pb.DEPTH_EMERGENCY,
            suspected_at=_read_moment(request),
            is_forced=request.force,
            without_backup=request.without_backup,
        )
        return self._operations.rotate(caller, request.operation_id, plan, request.reason, dry_run=request.dry_run)


def _check_unset(request: pb.StartOperationRequest, names: Iterable[str]) -> None:
    given = {field.name for field, _ in request.ListFields()}
    if wrong := [name for name in names if name in given]:
        depth = pb.Depth.Name(request.depth).removeprefix("DEPTH_").lower()
        raise InvalidArgumentError(f"{wrong[0]}: given, want none with the depth {depth}")


def _read_moment(request: pb.StartOperationRequest) -> int:
    """Return since when the root key is suspected, in microseconds since 1970; 0: not known."""
    try:
        return request.suspected_since.ToMicroseconds()
    except ValueError as exc:
        raise InvalidArgumentError("suspected_since: want a time of the years 1 to 9999") from exc


def _read_named(request: pb.RetryQuarantinedRequest | pb.AbandonQuarantinedRequest) -> VersionKey:
    if not request.HasField("key"):
        raise InvalidArgumentError("key: not given, want the version in quarantine")
    size = len(request.key.path.encode())
    if not 0 < size <= _MAX_PATH:
        raise InvalidArgumentError(f"key: path is {size} bytes, want 1 to {_MAX_PATH}")
    if len(request.key.incarnation) > _MAX_INCARNATION:
        found = f"incarnation is {len(request.key.incarnation)} bytes"
        raise InvalidArgumentError(f"key: {found}, want at most {_MAX_INCARNATION}")
    return _read_key(request.key)


def _read_key(key: pb.VersionKey) -> VersionKey:
    return VersionKey(key.path, key.incarnation, key.version)
