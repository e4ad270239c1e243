"""What a custodian asks of a nexus: the session that gathers shares, and to take a share sealed to that nexus."""

import os
import re
from typing import TYPE_CHECKING

from common.clock import Clock
from common.errors import StatementError
from common.forms.delivery import build_share_info
from common.keys.protected import wipe_bytes
from common.keys.sealing import seal
from common.keys.statement import NONCE_SIZE, SUBMIT_SHARE, SignedStatement, Statement, verify
from common.keys.words import encode_share
from pilot.connection import Connection
from pilot.terminal.output import show_name
from shardhold.v1 import cluster_pb2, recovery_pb2

if TYPE_CHECKING:
    from common.keys.words import RecoveryShare

_SUBMIT_S = 60.0  # the last share opens the escrow, proves the root key and commits
_NEXUS_PATH = r"/shardhold/nexus/[A-Za-z0-9._-]+"


class Recovery:
    """The calls of an unseal. All raise the SDK's `Error`.

    Args:
        connection: To the nexus, as the custodian.
        nexus_id: The exact SPIFFE ID that shares are sealed to; None: any nexus of the custodian's trust domain.
        clock: The time at which statements must be valid.
        timeout: Seconds for each call; a submission gets more.
    """

    def __init__(self, connection: Connection, *, nexus_id: str | None, clock: Clock, timeout: float) -> None:
        self._connection = connection
        self._stub = connection.recovery
        self._nexus_id = nexus_id
        self._clock = clock
        self._submit_timeout = max(timeout, _SUBMIT_S)

    def load_state(self) -> str:
        """Return the state of the nexus, as status names it."""
        response = self._connection.call(self._connection.cluster.GetStatus, cluster_pb2.GetStatusRequest())
        return show_name(cluster_pb2.State.Name, response.state, "STATE_")

    def load_progress(self) -> recovery_pb2.GetProgressResponse:
        response: recovery_pb2.GetProgressResponse = self._connection.call(
            self._stub.GetProgress, recovery_pb2.GetProgressRequest()
        )
        return response

    def start(self) -> recovery_pb2.UnsealSession:
        """Open the session."""
        response = self._connection.call(self._stub.StartUnseal, recovery_pb2.StartUnsealRequest())
        session: recovery_pb2.UnsealSession = response.session
        return session

    def submit(
        self, share: "RecoveryShare", *, cluster_id: bytes, session_id: bytes, genesis: bytes
    ) -> recovery_pb2.SubmitShareResponse:
        """Seal *share* to a fresh one-shot key of the nexus, for the *genesis* that was compared, and submit it.

        Raises:
            StatementError: The statement of that key does not verify; nothing was sealed or sent.
        """
        statement = self._fetch_statement(cluster_id, session_id)
        digest = statement.digest()
        wire = encode_share(share.words)
        try:
            info = build_share_info(statement_digest=digest, session_id=session_id, genesis=genesis)
            sealed = seal(memoryview(wire), recipient=statement.public_key, info=info)
        finally:
            wipe_bytes(wire)
        request = recovery_pb2.SubmitShareRequest(session_id=session_id, statement_digest=digest, sealed_share=sealed)
        response: recovery_pb2.SubmitShareResponse = self._connection.call(
            self._stub.SubmitShare, request, timeout=self._submit_timeout
        )
        return response

    def exclude(self, session_id: bytes, spiffe_id: str) -> None:
        """Exclude a caller from the session."""
        request = recovery_pb2.ExcludeSubmitterRequest(session_id=session_id, spiffe_id=spiffe_id)
        self._connection.call(self._stub.ExcludeSubmitter, request)

    def reset(self, session_id: bytes) -> int:
        """End the session; return how many shares were forgotten."""
        request = recovery_pb2.ResetUnsealRequest(session_id=session_id)
        forgotten: int = self._connection.call(self._stub.ResetUnseal, request).forgotten
        return forgotten

    def _fetch_statement(self, cluster_id: bytes, session_id: bytes) -> Statement:
        nonce = os.urandom(NONCE_SIZE)
        request = recovery_pb2.GetSealingKeyRequest(session_id=session_id, nonce=nonce)
        answer = self._connection.call(self._stub.GetSealingKey, request)
        signed = SignedStatement(answer.statement, answer.signature, tuple(answer.certificates))
        svid = self._connection.svid
        return verify(
            signed,
            roots=svid.bundle(),
            cluster_id=cluster_id,
            # The name it claims is only a guess until the certificate confirms it.
            issuer=self._choose_issuer(Statement.decode(signed.statement).issuer, svid.trust_domain),
            audience=svid.spiffe_id,
            purpose=SUBMIT_SHARE,
            nonce=nonce,
            now=self._clock.now(),
        )

    def _choose_issuer(self, claimed: str, trust_domain: str) -> str:
        if self._nexus_id is not None:
            return self._nexus_id
        if not re.fullmatch(rf"spiffe://{re.escape(trust_domain)}{_NEXUS_PATH}", claimed):
            raise StatementError(
                f"the key is {claimed[:256]!r}'s, want that of a spiffe://{trust_domain}/shardhold/nexus/NAME "
                "(--nexus-id names another)"
            )
        return claimed
