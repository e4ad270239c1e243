"""The floor of a ready nexus: what it last committed or proved of its store, below which the store never is.

1. The floor is raised when a change is committed, before the next change begins. It is never above what is committed.
2. A read is compared with the floor of before it began. Below that, the store was put back. Above it proves nothing: a
   change may have been committed meanwhile.
3. A change is compared with the floor of now. Every change of timeline, control revision, epoch, generation or KEK is
   alone in its commit, so these are exactly what the floor says, unless somebody else wrote the store. The revision may
   be higher: other changes of the same commit come before.
4. A change of control rows, moreover, finds the manifest whose digest the floor holds.
"""

import hmac
import threading
from dataclasses import dataclass

from common.errors import StoreLostError
from nexus.store.protocol import Position


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a store has come, and under which manifest."""

    position: Position
    manifest: bytes  # digest of the manifest, 32 bytes


class Floor:
    """Thread-safe. Every check raises `StoreLostError`, which says what was found and what was left."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._raising = threading.Lock()

    @property
    def standing(self) -> Standing:
        return self._standing

    @property
    def position(self) -> Position:
        return self._standing.position

    def raise_to(self, standing: Standing) -> None:
        """Take what a change of any number but the revision, which is committed, has left."""
        with self._raising:
            self._standing = standing

    def reach(self, revision: int) -> None:
        """Take the revision of a change of no control row, which is committed; an earlier one changes nothing."""
        if revision > self._standing.position.revision:
            with self._raising:
                standing = self._standing
                if revision > standing.position.revision:
                    self._standing = Standing(standing.position._replace(revision=revision), standing.manifest)

    def check_read(self, before: Position, found: Position) -> None:
        """Compare what a read *found* with the floor *before* it began (rule 2)."""
        if found != before and is_below(found, before):
            raise StoreLostError(describe(found, before))

    def check_basis(self, basis: Position) -> None:
        """Compare what a change begins with (rule 3)."""
        left = self._standing.position
        if basis.revision < left.revision or not differs_by_revision(basis, left):
            raise StoreLostError(describe(basis, left))

    def check_manifest(self, digest: bytes) -> None:
        """Compare the manifest that a change of control rows begins with (rule 4)."""
        if not hmac.compare_digest(digest, self._standing.manifest):
            raise StoreLostError("the control manifest is not the one that this nexus left")


def differs_by_revision(one: Position, other: Position) -> bool:
    """Say whether two positions are the same, or differ by nothing but their revision."""
    return one[0] == other[0] and one[2:] == other[2:]  # the revision is at 1; `_replace` would cost ten times as much


def is_below(found: Position, left: Position) -> bool:
    """Say whether a store was put back: it is in an earlier timeline, or in the same and less far in any count."""
    if found.timeline != left.timeline:
        return found.timeline < left.timeline
    return found.revision < left.revision or found.control_revision < left.control_revision or found.epoch < left.epoch


def describe(found: Position, left: Position) -> str:
    """Say where the store is found, and where this nexus left it."""
    verb = "was put back" if is_below(found, left) else "was changed by somebody else"
    names = [name for name in Position._fields if getattr(found, name) != getattr(left, name)]
    at = ", ".join(f"{name.replace('_', ' ')} {getattr(found, name)}" for name in names)
    by_us = ", ".join(f"{name.replace('_', ' ')} {getattr(left, name)}" for name in names)
    return f"the store {verb}: it is at {at}, and this nexus left it at {by_us}"
