"""Which rollback mark a keeper remembers. No I/O, no clock; nothing of a mark is secret.

Order: marks are ordered by (timeline, revision, audit timeline, audit seq).

1. No mark is taken before a shard pinned cluster and genesis: until then nothing says whom to believe.
2. A mark whose chain begins with another genesis record than the pinned one is refused.
3. A mark is taken only if it verifies: its chain, its signature, its cluster.
4. A mark with a lower control revision than the newest one, in the same timeline, is refused: whoever writes the
   database can raise the revision of an older copy, but the manifest authenticates the control revision.
5. The newest one is remembered; an older one, and another one of the same order, is accepted and changes nothing. The
   nexus that gave an older one is told the newest.
6. Dropping sets changes nothing: a sealed cluster's rollback has to be seen. The mark is gone when the process ends.

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

    def put(self, signed: SignedMark, *, pin: Pin | None) -> SignedMark | None:
        """Remember *signed* if it is newer; return the newest when that is newer. *pin* is None before there is one.

        Raises:
            WrongStateError: Nothing is pinned, another genesis, or a lower control revision (rule 4).
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
            if self._newest is not None:
                newest, held = self._newest
                if mark.timeline == newest.timeline and mark.control_revision < newest.control_revision:
                    raise WrongStateError(
                        f"rollback mark is of control revision {mark.control_revision}, and one of "
                        f"{newest.control_revision} is held: the store is older"
                    )
                if mark.order <= newest.order:
                    return held if mark.order < newest.order else None
            self._newest = mark, signed
            return None

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
