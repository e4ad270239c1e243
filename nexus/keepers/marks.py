"""The rollback marks of this cluster: those that keepers remember, and those that this nexus gives them.

- A keeper is asked once for each of its boots. A mark that does not verify blocks nothing and names its keeper.
- A mark that is newer than the store says that the store was put back: it blocks the way to ready, or ends it. Newer is
  a higher (timeline, revision); or, in the same timeline, a higher control revision or epoch: who writes the database
  can raise the revision of an older copy, but the manifest authenticates the control revision.
- While ready, the nexus marks how far its store has come; the mark goes to every keeper with the next poll. The book
  has the nexus's own marks as well: a running nexus needs no keeper to know that its store is older than it was.
- Marks are read first and the store afterwards. In the other order, a mark of a change in between would look newer.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from common.clock import Clock, to_micros
from common.forms.genesis import Genesis
from common.forms.mark import AuditEnd, Mark, SignedMark, verify_mark
from nexus.keys.signer import Signer
from nexus.store.protocol import Meta, Position

OWN = ""  # in place of a keeper's name: what this nexus marked itself

_REMAKE_S = 1.0  # before a mark is made anew because only the audit went on

log = structlog.get_logger("marks")


@dataclass(frozen=True, slots=True)
class NewerMark:
    """The newest mark, of a store that had come further than this one."""

    mark: Mark
    keepers: tuple[str, ...]
    is_own: bool  # this nexus made it, and has not forgotten
    last_generation: int  # highest that any verified mark knows, as the two below
    last_set_number: int
    last_kek_id: int

    @property
    def holders(self) -> tuple[str, ...]:
        """Who has not forgotten it, in words."""
        return (*self.keepers, "this nexus") if self.is_own else self.keepers

    def describe(self, meta: Meta) -> str:
        """Say in words what blocks the store with *meta*."""
        mark, who = self.mark, ", ".join(self.holders)
        if mark.position > (meta.timeline, meta.revision):
            return (
                f"the store is older than a rollback mark: it is at timeline {meta.timeline}, revision "
                f"{meta.revision}, and {who} remember timeline {mark.timeline}, revision {mark.revision}"
            )
        if mark.control_revision > meta.control_revision:
            return (
                f"policies or settings of the store are older than a rollback mark: control revision "
                f"{meta.control_revision}, and {who} remember {mark.control_revision}"
            )
        return (
            f"a seal or an unseal was undone in the store, which is older than a rollback mark: epoch {meta.epoch}, "
            f"and {who} remember {mark.epoch}"
        )


@dataclass(frozen=True, slots=True)
class KnownMarks:
    """What a book held at one moment."""

    marks: Mapping[str, tuple[Mark, ...]]  # by keeper

    def find_newer(self, meta: Meta) -> NewerMark | None:
        """Return the newest mark if it is newer than a store that was looked at afterwards."""
        known = [mark for marks in self.marks.values() for mark in marks]
        newest = max((mark for mark in known if _is_newer(mark, meta)), key=_by_revision, default=None)
        if newest is None:
            return None
        holders = sorted(
            keeper for keeper, marks in self.marks.items() if any(mark.position == newest.position for mark in marks)
        )
        return NewerMark(
            newest,
            keepers=tuple(keeper for keeper in holders if keeper != OWN),
            is_own=OWN in holders,
            last_generation=max(max(mark.generation, mark.last_generation) for mark in known),
            last_set_number=max(max(mark.set_number, mark.last_set_number) for mark in known),
            last_kek_id=max(mark.last_kek_id for mark in known),
        )

    def find_audit_end(self, nexus: str, *, since: tuple[int, int]) -> AuditEnd | None:
        """Return how far keepers remember the audit of *nexus*, None when they do not.

        Marks up to timeline and control revision *since* do not count.
        """
        ends = [
            mark.audit
            for keeper, marks in self.marks.items()
            for mark in marks
            if keeper != OWN and mark.audit.nexus == nexus and (mark.timeline, mark.control_revision) > since
        ]
        return max(ends, key=lambda end: (end.timeline, end.seq), default=None)


class MarkBook:
    """What keepers answered since this nexus started. Thread-safe."""

    def __init__(self, genesis: Genesis) -> None:
        self._cluster_id = genesis.cluster_id
        self._fingerprint = genesis.fingerprint
        self._marks: dict[str, tuple[Mark, ...]] = {}  # by keeper: the newest in each of _ORDERS
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
                    self._remember(keeper, mark)
                self._answered.add(keeper)
                self._changed.notify_all()

    def wait_answers(self, keepers: int, *, seconds: float) -> None:
        """Wait until that many keepers have answered, at most *seconds*."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._answered) >= keepers, timeout=seconds)

    def take_own(self, mark: Mark) -> None:
        """Take a mark that this nexus made of its store."""
        with self._changed:
            self._remember(OWN, mark)

    def list_known(self) -> KnownMarks:
        """Return what the book holds now."""
        with self._changed:
            return KnownMarks(dict(self._marks))

    def find_newer(self, meta: Meta) -> NewerMark | None:
        """Return the newest mark if it is newer than a store that nobody changes."""
        return self.list_known().find_newer(meta)

    def _remember(self, keeper: str, mark: Mark) -> None:
        known = (*self._marks.get(keeper, ()), mark)
        self._marks[keeper] = tuple(max(known, key=order) for order in _ORDERS)


def _by_revision(mark: Mark) -> tuple[int, int, int, int]:
    return mark.order


def _by_control_revision(mark: Mark) -> tuple[int, int]:
    return mark.timeline, mark.control_revision


def _by_epoch(mark: Mark) -> tuple[int, int]:
    return mark.timeline, mark.epoch


_ORDERS = (_by_revision, _by_control_revision, _by_epoch)


def _is_newer(mark: Mark, meta: Meta) -> bool:
    if mark.position > (meta.timeline, meta.revision):
        return True
    return mark.timeline == meta.timeline and (mark.control_revision > meta.control_revision or mark.epoch > meta.epoch)


class MarkMaker:
    """Signs marks of a store as it comes along. Thread-safe.

    A mark is made anew when the store has moved, or a second after the last one when the audit has.
    """

    def __init__(self, genesis: Genesis, signer: Signer, clock: Clock) -> None:
        self._chain = (genesis.encode(),)
        self._cluster_id = genesis.cluster_id
        self._signer = signer
        self._clock = clock
        self._last: tuple[Position, float, Mark, SignedMark] | None = None
        self._lock = threading.Lock()

    def make(self, meta: Meta, audit: AuditEnd, *, generation: int, set_number: int) -> tuple[Mark, SignedMark]:
        """Return the mark of the store's position; the same objects while it stands still."""
        now = self._clock.monotonic()
        with self._lock:
            if self._last is not None:
                position, made_at, mark, signed = self._last
                is_due = mark.audit != audit and now - made_at >= _REMAKE_S
                if position == meta.position and not is_due:
                    return mark, signed
            mark = Mark(
                self._cluster_id,
                timeline=meta.timeline,
                revision=meta.revision,
                control_revision=meta.control_revision,
                epoch=meta.epoch,
                generation=generation,
                set_number=set_number,
                last_generation=meta.last_generation,
                last_set_number=meta.last_set_number,
                last_kek_id=meta.last_kek_id,
                audit=audit,
                made_at=to_micros(self._clock.now()),
            )
            encoded = mark.encode()
            signed = SignedMark(encoded, self._signer.sign(encoded), self._chain)
            self._last = meta.position, now, mark, signed
            return mark, signed
