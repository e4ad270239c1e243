"""Which rollback mark a keeper remembers. No I/O, no clock; nothing of a mark is secret.

Order: marks are ordered by (timeline, revision).

1. No mark is taken before a shard pinned cluster and genesis: until then nothing says whom to believe.
2. A mark whose chain begins with another genesis record than the pinned one is refused.
3. A mark is taken only if it verifies: its chain, its signature, its cluster.
4. The newest one is remembered; an older one, and another one of the same order, is accepted and changes nothing.
5. Dropping sets changes nothing: a sealed cluster's rollback has to be seen. The mark is gone when the process ends.

A refused call changes nothing.
"""

import hashlib
import threading

from common.errors import MarkError, NotFoundError, WrongStateError
from common.forms.mark import Mark, SignedMark, verify_mark
from keeper.slots import Pin


class MarkSlot:
    """The one mark of a keeper. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: tuple[Mark, SignedMark] | None = None

    def put(self, signed: SignedMark, *, pin: Pin | None) -> bool:
        """Remember *signed* if it is newer; return whether it is. *pin* is the keeper's, None before there is one.

        Raises:
            WrongStateError: Nothing is pinned, or another genesis.
            MarkError: It does not verify.
        """
        if pin is None:
            raise WrongStateError("nothing is pinned here: a shard has to come before a rollback mark")
        if not signed.chain:
            raise MarkError("rollback mark has a chain of 0 records")
        genesis = hashlib.sha256(signed.chain[0]).digest()
        if genesis != pin.genesis:
            raise WrongStateError(
                f"rollback mark begins at genesis {genesis.hex()}, this keeper serves {pin.genesis.hex()}"
            )
        mark = verify_mark(signed, cluster_id=pin.cluster_id, genesis=pin.genesis)
        with self._lock:
            if self._newest is not None and mark.order <= self._newest[0].order:
                return False
            self._newest = mark, signed
            return True

    def get(self, cluster_id: bytes) -> SignedMark:
        """Return the mark that is remembered.

        Raises:
            NotFoundError: There is none of this cluster.
        """
        with self._lock:
            newest = self._newest
        if newest is None or newest[0].cluster_id != cluster_id:
            raise NotFoundError(f"no rollback mark of cluster {cluster_id.hex()} is held")
        return newest[1]
