"""ClusterService: message → status, init and seal → message."""

from google.protobuf.timestamp_pb2 import Timestamp

from common.forms.mark import decode_mark
from common.keys.recovery_key import ShareHash
from common.server.edge import Call
from nexus import __version__
from nexus.admin.initialise import Initialisation, InitPlan, make_recovery
from nexus.admin.operations.schedule import ScheduleView
from nexus.admin.seal import Seal
from nexus.admin.status import ClusterView, KeeperView, Status
from nexus.admin.vitals import AuditSigns, Vitals
from nexus.lifecycle.states import State
from nexus.server.auth import Authenticator
from nexus.server.moments import to_time, to_timestamp
from nexus.server.root_messages import DEPTHS, to_job
from shardhold.v1 import cluster_pb2 as pb
from shardhold.v1.root_pb2 import DEPTH_UNSPECIFIED

_STATES = {
    State.UNINITIALISED: pb.STATE_UNINITIALISED,
    State.INITIALISING: pb.STATE_INITIALISING,
    State.RECOVERING: pb.STATE_RECOVERING,
    State.SEALED: pb.STATE_SEALED,
    State.READY: pb.STATE_READY,
}
_KEEPER_WAIT = 10.0  # seconds to wait for keepers when the caller set no deadline
_MAX_KEEPER_WAIT = 60.0  # seconds, whatever the caller's deadline is: it holds a worker
_ANSWER_TIME = 1.0  # seconds of the caller's deadline that are kept for the answer


class ClusterHandlers:
    def __init__(
        self, status: Status, initialisation: Initialisation, seal: Seal, authenticator: Authenticator
    ) -> None:
        self._status = status
        self._seal = seal
        self._initialisation = initialisation
        self._identify = authenticator.identify

    def get_status(self, call: Call, _: pb.GetStatusRequest) -> pb.GetStatusResponse:
        state, view = self._status.describe(self._identify(call))
        response = pb.GetStatusResponse(state=_STATES[state], version=__version__)
        if view is not None:
            _fill(response, view)
        return response

    def begin_init(self, call: Call, request: pb.BeginInitRequest) -> pb.BeginInitResponse:
        hashes = [ShareHash(share.salt, share.digest) for share in request.share_hashes]
        recovery = make_recovery(request.recovery_public_key, request.recovery_threshold, hashes)
        started = self._initialisation.begin(self._identify(call), InitPlan(request.shard_threshold, recovery))
        return pb.BeginInitResponse(
            attempt=started.attempt,
            cluster_id=started.cluster_id,
            genesis=started.genesis,
            challenge=started.challenge,
            voided_attempt=started.attempt - 1,
        )

    def confirm_init(self, call: Call, request: pb.ConfirmInitRequest) -> pb.ConfirmInitResponse:
        seconds = _waiting_time(call)
        confirmed = self._initialisation.confirm(self._identify(call), request.attempt, request.answer, seconds=seconds)
        return pb.ConfirmInitResponse(keepers_filled=confirmed.keepers_filled, keepers_wanted=confirmed.keepers_wanted)

    def abort_init(self, call: Call, request: pb.AbortInitRequest) -> pb.AbortInitResponse:
        self._initialisation.abort(self._identify(call), request.attempt)
        return pb.AbortInitResponse()

    def seal(self, call: Call, request: pb.SealRequest) -> pb.SealResponse:
        emptied = self._seal.seal(self._identify(call), request.reason, seconds=_waiting_time(call))
        return pb.SealResponse(keepers_emptied=emptied.keepers_emptied, keepers=emptied.keepers)

    def accept_older_store(self, call: Call, request: pb.AcceptOlderStoreRequest) -> pb.AcceptOlderStoreResponse:
        timeline = self._seal.accept_older_store(self._identify(call), request.timeline, request.revision)
        return pb.AcceptOlderStoreResponse(timeline=timeline)

    def list_keepers(self, call: Call, _: pb.ListKeepersRequest) -> pb.ListKeepersResponse:
        views = self._status.list_keepers(self._identify(call))
        return pb.ListKeepersResponse(keepers=[_to_info(view) for view in views])


def _waiting_time(call: Call) -> float:
    return _KEEPER_WAIT if call.deadline is None else min(max(0.0, call.deadline - _ANSWER_TIME), _MAX_KEEPER_WAIT)


def _fill(response: pb.GetStatusResponse, view: ClusterView) -> None:
    response.blocked_by.extend(view.blocked_by)
    response.alarms.extend(view.alarms)
    response.cluster_id = view.meta.cluster_id
    response.timeline = view.meta.timeline
    response.revision = view.meta.revision
    response.restored = view.meta.is_restored
    response.memory_protection = view.memory_protection
    response.keepers.extend(_to_status(keeper) for keeper in view.keepers)
    if view.operation is not None:
        response.operation.kind = view.operation.kind
        response.operation.step = view.operation.step
        response.operation.waits_for = view.operation.waits_for
        _set_time(response.operation.started_at, view.operation.started_at)
        _set_time(response.operation.stepped_at, view.operation.stepped_at)
    _fill_vitals(response, view.vitals)
    if view.newer is not None:
        mark = view.newer.mark
        response.newer_mark.timeline, response.newer_mark.revision = mark.timeline, mark.revision
        response.newer_mark.made_at.FromMicroseconds(mark.made_at)
        response.newer_mark.keepers.extend(view.newer.holders)
    if view.unseal is not None:
        response.unseal.submitted, response.unseal.needed = view.unseal
    if view.facts is not None:
        shard_set = view.facts.shard_set
        response.genesis = view.facts.genesis
        response.generation = shard_set.generation
        response.shard_threshold = shard_set.threshold
        response.shard_count = len(shard_set.members)
        response.set_number = shard_set.set_number
        if (recovery := view.facts.recovery) is not None:
            response.recovery_threshold, response.recovery_shares = recovery.threshold, len(recovery.shares)


def _fill_vitals(response: pb.GetStatusResponse, vitals: Vitals) -> None:
    response.told_at.CopyFrom(to_timestamp(vitals.told_at))
    response.started_at.CopyFrom(to_timestamp(vitals.started_at))
    _set_time(response.svid_expires_at, vitals.svid_expires_at)
    response.calls = vitals.calls
    response.audit.CopyFrom(_to_audit(vitals.audit))
    response.rotation.CopyFrom(_to_rotation(vitals.rotation))
    if (job := to_job(vitals.job)) is not None:
        response.keyring_job.CopyFrom(job)
    response.backup.CopyFrom(_to_backup(vitals))


def _to_audit(signs: AuditSigns) -> pb.AuditStatus:
    return pb.AuditStatus(fault=signs.fault, seq=signs.seq, unsynced=signs.unsynced, unexported=signs.unexported)


def _to_rotation(view: ScheduleView) -> pb.RotationStatus:
    return pb.RotationStatus(
        activated_at=to_time(view.activated_at),
        due=view.is_rotation_due,
        next=DEPTHS[view.next.depth] if view.next else DEPTH_UNSPECIFIED,
        next_at=to_time(view.next.at if view.next else 0),
        paused=bool(view.hold),
    )


def _to_backup(vitals: Vitals) -> pb.BackupStatus:
    record = vitals.backup
    if record is None:
        return pb.BackupStatus(configured=vitals.makes_backups)
    return pb.BackupStatus(
        configured=vitals.makes_backups,
        created_at=to_time(record.made_at),
        verified_at=to_time(record.verified_at),
        timeline=record.timeline,
        revision=record.revision,
    )


def _to_status(view: KeeperView) -> pb.KeeperStatus:
    return pb.KeeperStatus(
        name=view.member.name,
        address=view.member.address,
        reachable=view.status.reachable,
        holds_current_set=view.status.holds_current_set,
        fault=view.status.fault,
        mark=_to_mark(view.status.mark),
    )


def _to_mark(encoded: bytes) -> pb.TakenMark | None:
    if not encoded:
        return None
    mark = decode_mark(encoded)
    return pb.TakenMark(timeline=mark.timeline, revision=mark.revision, made_at=to_timestamp(mark.made_at))


def _set_time(field: Timestamp, microseconds: int) -> None:
    if (moment := to_time(microseconds)) is not None:
        field.CopyFrom(moment)


def _to_info(view: KeeperView) -> pb.KeeperInfo:
    return pb.KeeperInfo(
        status=_to_status(view),
        spiffe_id=view.member.spiffe_id,
        x=view.x,
        version=view.status.version,
        memory_protection=view.status.memory_protection,
        sets=view.sets,
    )
