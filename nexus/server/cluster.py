"""ClusterService: message → status, init and seal → message."""

from common.keys.recovery_key import ShareHash
from common.server.edge import Call
from nexus import __version__
from nexus.admin.initialise import Initialisation, InitPlan, make_recovery
from nexus.admin.seal import Seal
from nexus.admin.status import ClusterView, KeeperView, Status
from nexus.lifecycle.states import State
from nexus.server.auth import Authenticator
from shardhold.v1 import cluster_pb2 as pb

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


def _to_status(view: KeeperView) -> pb.KeeperStatus:
    return pb.KeeperStatus(
        name=view.member.name,
        address=view.member.address,
        reachable=view.status.reachable,
        holds_current_set=view.status.holds_current_set,
        fault=view.status.fault,
    )


def _to_info(view: KeeperView) -> pb.KeeperInfo:
    return pb.KeeperInfo(
        status=_to_status(view),
        spiffe_id=view.member.spiffe_id,
        x=view.x,
        version=view.status.version,
        memory_protection=view.status.memory_protection,
        sets=view.sets,
    )
