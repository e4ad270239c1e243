"""What an unseal needs of the SVID of this nexus, as a Protocol; `nexus.server.signer` implements it."""

from typing import Protocol

from common.keys.statement import SignedStatement, StatementDesk


class StatementSigner(Protocol):
    """Signs statements of one-shot keys with the SVID of this nexus."""

    def state(
        self, desk: StatementDesk, *, cluster_id: bytes, audience: str, purpose: str, nonce: bytes
    ) -> SignedStatement:
        """Have *desk* issue a statement for *audience*; raises as `StatementDesk.issue`."""
        ...
