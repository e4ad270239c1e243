"""RecoveryService: message → unseal → message."""

from google.protobuf.duration_pb2 import Duration

from common.server.edge import Call
from nexus.admin.unseal import SessionView, Unseal
from nexus.server.auth import Authenticator
from shardhold.v1 import recovery_pb2 as pb


class RecoveryHandlers:
    def __init__(self, unseal: Unseal, authenticator: Authenticator) -> None:
        self._unseal = unseal
        self._identify = authenticator.identify

    def start_unseal(self, call: Call, _: pb.StartUnsealRequest) -> pb.StartUnsealResponse:
        return pb.StartUnsealResponse(session=_to_message(self._unseal.start(self._identify(call))))

    def get_sealing_key(self, call: Call, request: pb.GetSealingKeyRequest) -> pb.GetSealingKeyResponse:
        signed = self._unseal.state_key(self._identify(call), request.session_id, request.nonce)
        return pb.GetSealingKeyResponse(
            statement=signed.statement, signature=signed.signature, certificates=signed.certificates
        )

    def submit_share(self, call: Call, request: pb.SubmitShareRequest) -> pb.SubmitShareResponse:
        submitted = self._unseal.submit(
            self._identify(call), request.session_id, request.statement_digest, request.sealed_share
        )
        return pb.SubmitShareResponse(
            number=submitted.number, submitted=submitted.submitted, needed=submitted.needed, ready=submitted.ready
        )

    def get_progress(self, call: Call, _: pb.GetProgressRequest) -> pb.GetProgressResponse:
        material, session = self._unseal.describe(self._identify(call))
        return pb.GetProgressResponse(
            cluster_id=material.genesis.cluster_id,
            genesis=material.genesis.fingerprint,
            recovery_shares=len(material.recovery.shares),
            recovery_threshold=material.recovery.threshold,
            session=_to_message(session) if session is not None else None,
        )

    def exclude_submitter(self, call: Call, request: pb.ExcludeSubmitterRequest) -> pb.ExcludeSubmitterResponse:
        session = self._unseal.exclude(self._identify(call), request.session_id, request.spiffe_id)
        return pb.ExcludeSubmitterResponse(session=_to_message(session))

    def reset_unseal(self, call: Call, request: pb.ResetUnsealRequest) -> pb.ResetUnsealResponse:
        return pb.ResetUnsealResponse(forgotten=self._unseal.reset(self._identify(call), request.session_id))


def _to_message(session: SessionView) -> pb.UnsealSession:
    return pb.UnsealSession(
        session_id=session.session_id,
        genesis=session.genesis,
        started_by=session.started_by,
        expires_in=Duration(seconds=int(session.expires_in)),
        submitted=session.submitted,
        needed=session.needed,
        excluded=session.excluded,
    )
