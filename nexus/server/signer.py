"""Statements signed with the SVID of this nexus."""

import os

from common.keys.statement import SignedStatement, StatementDesk
from shardhold.identity import IdentitySource


class SvidSigner:
    """Implements `nexus.keepers.link.StatementSigner`. Thread-safe."""

    def __init__(self, identity: IdentitySource) -> None:
        self._identity = identity
        self._boot_id = os.urandom(16)

    def state(
        self, desk: StatementDesk, *, cluster_id: bytes, audience: str, purpose: str, nonce: bytes
    ) -> SignedStatement:
        """Have *desk* issue a statement for *audience*; raises as `StatementDesk.issue`."""
        return desk.issue(
            cluster_id=cluster_id,
            audience=audience,
            purpose=purpose,
            nonce=nonce,
            boot_id=self._boot_id,
            svid=self._identity.current(),
        )
