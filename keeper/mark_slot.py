"""Which rollback mark a keeper remembers. No I/O, no clock; nothing of a mark is secret.

Order: marks of one chain are ordered by (timeline, revision, audit timeline, audit seq).

1. No mark is taken before a shard pinned cluster and genesis: until then nothing says whom to believe.
2. A mark whose chain begins with another genesis record than the pinned one is refused.
3. A mark is taken only if it verifies: its chain, its signature, its cluster. The chain of the newest mark is kept, and
   what was verified of it once is not verified again.
4. Within one timeline, a mark whose chain goes on where that of the newest one ends is newer, whatever it says, and one
   whose chain ends before is older: the key of an earlier generation is dead.
5. Otherwise, a mark with a lower control revision than the newest one, in the same timeline, is refused: whoever writes
   the database can raise the revision of an older copy, but the manifest authenticates the control revision.
6. The newest one is remembered; an older one, and another one of the same order, is accepted and changes nothing. The
   nexus that gave an older one is told the newest.
7. Dropping sets changes nothing: a sealed cluster's rollback has to be seen. The mark is gone when the process ends.

A refused call changes nothing.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import MarkError, NotFoundError, WrongStateError
from common.forms.chain import Chain
from common.forms.mark import Mark, SignedMark, open_mark, verify_mark_chain
from keeper.slots import Pin


@dataclass(frozen=True, slots=True)
class _Held:
    mark: Mark
    signed: SignedMark
    chain: Chain


class MarkSlot:
    """The one mark of a keeper. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: _Held | None = None

    @property
    def chain(self) -> Chain | None:
        """The chain that was verified with the newest mark, None before there is one."""
        newest = self._newest
        return None if newest is None else newest.chain

    def complete(self, records: Sequence[bytes], *, follows: bytes) -> tuple[bytes, ...] | None:
        """Return the whole chain that *records* are the end of; *follows* is the digest of the record before them.

        Empty: there is none before them. None is returned when this keeper does not know that record.
        """
        chain = self.chain
        if not follows:
            return tuple(records)
        if chain is None or follows not in chain.digests:
            return None
        return (*chain.records[: chain.digests.index(follows) + 1], *records)

    def put(self, signed: SignedMark, *, pin: Pin | None) -> SignedMark | None:
        """Remember *signed* if it is newer; return the newest when that is newer. *pin* is None before there is one.

        Raises:
            WrongStateError: Nothing is pinned, another genesis, or a lower control revision (rule 5).
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
        chain = verify_mark_chain(signed, pin.genesis, verified=self.chain)
        mark = open_mark(signed, chain)
        if mark.cluster_id != pin.cluster_id:
            raise MarkError("rollback mark is of another cluster")
        with self._lock:
            if self._newest is not None and not _is_newer(mark, chain, self._newest):
                return None if (mark.order, chain.digest) == _identify(self._newest) else self._newest.signed
            self._newest = _Held(mark, signed, chain)
            return None

    def get(self, cluster_id: bytes) -> SignedMark:
        """Return the mark that is remembered.

        Raises:
            NotFoundError: There is none of this cluster.
        """
        with self._lock:
            newest = self._newest
        if newest is None or newest.mark.cluster_id != cluster_id:
            raise NotFoundError(f"no rollback mark of cluster {cluster_id.hex()} is held")
        return newest.signed


def _is_newer(mark: Mark, chain: Chain, newest: _Held) -> bool:
    """Compare a mark that verified with the newest one (rules 4 to 6)."""
    if mark.timeline == newest.mark.timeline:
        if chain.extends(newest.chain):
            return True
        if newest.chain.extends(chain):
            return False
        if mark.control_revision < newest.mark.control_revision:
            raise WrongStateError(
                f"rollback mark is of control revision {mark.control_revision}, and one of "
                f"{newest.mark.control_revision} is held: the store is older"
            )
    return mark.order > newest.mark.order


def _identify(held: _Held) -> tuple[tuple[int, int, int, int], bytes]:
    return held.mark.order, held.chain.digest
