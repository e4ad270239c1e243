"""The rollback marks of this cluster: those that keepers remember, and the one that this nexus gives them.

- A keeper is asked once for each of its boots. A mark that does not verify blocks nothing and names its keeper.
- A mark that is newer than the store says that the store was put back: it blocks the way to ready, or ends it. Newer is
  a higher (timeline, revision); or, in the same timeline, a higher control revision: who writes the database can raise
  the revision of an older copy, but the manifest authenticates the control revision.
- While ready, the nexus marks how far its store has come; the mark goes to every keeper with the next poll.
"""

import threading
from dataclasses import dataclass

import structlog

from common.clock import Clock, to_micros
from common.forms.genesis import Genesis
from common.forms.mark import Mark, SignedMark, verify_mark
from nexus.keys.signer import Signer
from nexus.store.protocol import Meta

log = structlog.get_logger("marks")


@dataclass(frozen=True, slots=True)
class NewerMark:
    """The newest mark, of a store that had come further than this one."""

    mark: Mark
    keepers: tuple[str, ...]
    last_generation: int  # highest that any verified mark knows
    last_set_number: int

    def describe(self, meta: Meta) -> str:
        """Say in words what blocks the store with *meta*."""
        if self.mark.order <= (meta.timeline, meta.revision):
            return (
                f"policies or settings of the store are older than a rollback mark: control revision "
                f"{meta.control_revision}, and {', '.join(self.keepers)} remember {self.mark.control_revision}"
            )
        return (
            f"the store is older than a rollback mark: it is at timeline {meta.timeline}, revision {meta.revision}, "
            f"and {', '.join(self.keepers)} remember timeline {self.mark.timeline}, revision {self.mark.revision}"
        )


class MarkBook:
    """What keepers answered since this nexus started. Thread-safe."""

    def __init__(self, genesis: Genesis) -> None:
        self._cluster_id = genesis.cluster_id
        self._fingerprint = genesis.fingerprint
        # By keeper: the newest by timeline and revision, and the newest by timeline and control revision.
        self._marks: dict[str, tuple[Mark, Mark]] = {}
        self._answered: set[str] = set()
        self._changed = threading.Condition()

    @property
    def cluster_id(self) -> bytes:
        return self._cluster_id

    @property
    def fingerprint(self) -> bytes:
        """Of the genesis record that marks have to begin with."""
        return self._fingerprint

    def take(self, keeper: str, signed: SignedMark | None) -> Mark | None:
        """Take what *keeper* answered when it was asked for its mark.

        A keeper that was restarted may remember less than it told before: that counts all the same.

        Raises:
            MarkError: The keeper lies; its answer counts for nothing.
        """
        mark: Mark | None = None
        try:
            if signed is not None:
                mark = verify_mark(signed, cluster_id=self._cluster_id, genesis=self._fingerprint)
            return mark
        finally:
            with self._changed:
                if mark is not None:
                    by_revision, by_control = self._marks.get(keeper, (mark, mark))
                    self._marks[keeper] = (
                        max(by_revision, mark, key=_by_revision),
                        max(by_control, mark, key=_by_control_revision),
                    )
                self._answered.add(keeper)
                self._changed.notify_all()

    def wait_answers(self, keepers: int, *, seconds: float) -> None:
        """Wait until that many keepers have answered, at most *seconds*."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._answered) >= keepers, timeout=seconds)

    def find_newer(self, meta: Meta) -> NewerMark | None:
        """Return the newest mark if it is newer than the store."""
        with self._changed:
            known = [mark for marks in self._marks.values() for mark in marks]
            newest = max((mark for mark in known if _is_newer(mark, meta)), key=_by_revision, default=None)
            if newest is None:
                return None
            holders = sorted(
                keeper for keeper, marks in self._marks.items() if any(mark.order == newest.order for mark in marks)
            )
            generation = max(mark.generation for mark in known)
            set_number = max(mark.set_number for mark in known)
            return NewerMark(newest, tuple(holders), generation, set_number)


def _by_revision(mark: Mark) -> tuple[int, int]:
    return mark.order


def _by_control_revision(mark: Mark) -> tuple[int, int]:
    return mark.timeline, mark.control_revision


def _is_newer(mark: Mark, meta: Meta) -> bool:
    if mark.order > (meta.timeline, meta.revision):
        return True
    return mark.timeline == meta.timeline and mark.control_revision > meta.control_revision


class MarkMaker:
    """Signs marks of a store as it comes along, each position once. Thread-safe."""

    def __init__(self, genesis: Genesis, signer: Signer, clock: Clock) -> None:
        self._chain = (genesis.encode(),)
        self._cluster_id = genesis.cluster_id
        self._signer = signer
        self._clock = clock
        self._last: tuple[tuple[int, int], SignedMark] | None = None
        self._lock = threading.Lock()

    def make(self, meta: Meta, *, generation: int, set_number: int) -> SignedMark:
        """Return the mark of the store's position; the same object while it stands still."""
        position = meta.timeline, meta.revision
        with self._lock:
            if self._last is None or self._last[0] != position:
                made_at = to_micros(self._clock.now())
                mark = Mark(
                    self._cluster_id, *position, meta.control_revision, generation, set_number, made_at
                ).encode()
                self._last = position, SignedMark(mark, self._signer.sign(mark), self._chain)
            return self._last[1]
