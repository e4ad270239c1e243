"""The rollback marks of this cluster: those that keepers remember, and those that this nexus gives them.

- A keeper is asked once for each of its boots. A mark that does not verify blocks nothing and names its keeper.
- A mark that is newer than the store says that the store was put back: it blocks the way to ready, or ends it. Newer is
  a higher (timeline, revision); or, in the same timeline, a higher control revision or epoch: who writes the database
  can raise the revision of an older copy, but the manifest authenticates the control revision.
- Newer, too, is a mark of another generation, unless it is of an earlier timeline, which somebody has given up: the
  chain of the mark goes on where that of the store ends, so the store was put back; or the two part, and somebody has
  used a root key that is not current any more.
- A mark whose chain ends before that of the store is older. It has to be of a time before the change that superseded
  its generation; otherwise it was signed with a dead key: that is named, and blocks nothing.
- While ready, the nexus marks how far its store has come; the mark goes to every keeper with the next poll. The book
  has the nexus's own marks as well: a running nexus needs no keeper to know that its store is older than it was.
- Marks are read first and the store afterwards. In the other order, a mark of a change in between would look newer.
"""

import enum
import itertools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from common.clock import Clock, to_micros
from common.forms.chain import Chain
from common.forms.genesis import Genesis
from common.forms.mark import AuditEnd, Mark, SignedMark, open_mark, verify_mark_chain
from nexus.keys.signer import Signer
from nexus.store.protocol import Meta, Position

OWN = ""  # in place of a keeper's name: what this nexus marked itself

_MAX_CHAINS = 8  # of one keeper; who has a dead key can make any number
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
    parts_from: int | None = None  # the last generation that its chain and that of the store both know, if they differ
    is_ahead: bool = False  # the chain of the store is the beginning of its own

    @property
    def holders(self) -> tuple[str, ...]:
        """Who has not forgotten it, in words."""
        return (*self.keepers, "this nexus") if self.is_own else self.keepers

    def describe(self, meta: Meta) -> str:
        """Say in words what blocks the store with *meta*."""
        mark, who = self.mark, ", ".join(self.holders)
        if self.is_ahead:
            return (
                f"the store is older than a rollback mark: it is at timeline {meta.timeline}, revision {meta.revision} "
                f"of generation {self.parts_from}, and {who} remember generation {mark.generation}"
            )
        if self.parts_from is not None:
            return (
                f"the root key of the store is not the one of a rollback mark: after generation {self.parts_from} the "
                f"store goes another way than {who} remember, who know generation {mark.generation}"
            )
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
class SeenMark:
    """A mark that verified, and the chain that leads to its signer."""

    mark: Mark
    chain: Chain


class Standpoint(enum.Enum):
    """How a mark stands to a store."""

    OLDER = enum.auto()  # or as old
    NEWER = enum.auto()
    DEAD_KEY = enum.auto()  # its signer was superseded before


def compare(seen: SeenMark, meta: Meta, chain: Chain) -> Standpoint:
    """Say how a mark stands to a store with *meta* and *chain*."""
    mark = seen.mark
    if chain.extends(seen.chain):
        return Standpoint.DEAD_KEY if is_of_dead_key(seen, chain) else Standpoint.OLDER
    if seen.chain.digest == chain.digest:
        is_newer = _is_newer(mark, meta)
    else:
        is_newer = mark.timeline >= meta.timeline
    return Standpoint.NEWER if is_newer else Standpoint.OLDER


def is_of_dead_key(seen: SeenMark, chain: Chain) -> bool:
    """Whether a mark was signed after the change in *chain* that superseded its signer."""
    if not chain.extends(seen.chain):
        return False
    mark, superseded_by = seen.mark, chain.links[seen.chain.seq]
    return mark.position >= superseded_by.position or (
        mark.timeline == superseded_by.timeline and mark.control_revision >= superseded_by.control_revision
    )


@dataclass(frozen=True, slots=True)
class KnownMarks:
    """What a book held at one moment."""

    marks: Mapping[str, tuple[SeenMark, ...]]  # by keeper

    def find_newer(self, meta: Meta, chain: Chain) -> NewerMark | None:
        """Return the newest mark if it is newer than a store that was looked at afterwards."""
        known = [seen for marks in self.marks.values() for seen in marks]
        counted = [(seen, compare(seen, meta, chain)) for seen in known]
        newest = max(
            (seen for seen, where in counted if where is Standpoint.NEWER),
            key=lambda seen: seen.mark.position,
            default=None,
        )
        if newest is None:
            return None
        alive = [seen.mark for seen, where in counted if where is not Standpoint.DEAD_KEY]
        holders = sorted(keeper for keeper, marks in self.marks.items() if _has(marks, newest))
        return NewerMark(
            newest.mark,
            keepers=tuple(keeper for keeper in holders if keeper != OWN),
            is_own=OWN in holders,
            last_generation=max(max(mark.generation, mark.last_generation) for mark in alive),
            last_set_number=max(max(mark.set_number, mark.last_set_number) for mark in alive),
            last_kek_id=max(mark.last_kek_id for mark in alive),
            parts_from=_find_parting(newest.chain, chain),
            is_ahead=newest.chain.extends(chain),
        )

    def list_dead(self, chain: Chain) -> list[tuple[str, Mark]]:
        """Return the marks that were told last and were signed with a dead key, by keeper."""
        last = [(keeper, marks[-1]) for keeper, marks in sorted(self.marks.items())]
        return [(keeper, seen.mark) for keeper, seen in last if is_of_dead_key(seen, chain)]

    def find_audit_end(self, nexus: str, *, since: tuple[int, int]) -> AuditEnd | None:
        """Return how far keepers remember the audit of *nexus*, None when they do not.

        Marks up to timeline and control revision *since* do not count.
        """
        ends = [
            seen.mark.audit
            for keeper, marks in self.marks.items()
            for seen in marks
            if keeper != OWN
            and seen.mark.audit.nexus == nexus
            and (seen.mark.timeline, seen.mark.control_revision) > since
        ]
        return max(ends, key=lambda end: (end.timeline, end.seq), default=None)


class MarkBook:
    """What keepers answered since this nexus started. Thread-safe."""

    def __init__(self, genesis: Genesis) -> None:
        self._cluster_id = genesis.cluster_id
        self._fingerprint = genesis.fingerprint
        self._marks: dict[str, dict[bytes, tuple[SeenMark, ...]]] = {}  # by keeper and digest of the chain
        self._verified: Chain | None = None  # the chain of the last mark
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
        seen: SeenMark | None = None
        try:
            if signed is not None:
                seen = self._verify(signed)
            return None if seen is None else seen.mark
        finally:
            with self._changed:
                if seen is not None:
                    self._remember(keeper, seen)
                self._answered.add(keeper)
                self._changed.notify_all()

    def wait_answers(self, keepers: int, *, seconds: float) -> None:
        """Wait until that many keepers have answered, at most *seconds*."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._answered) >= keepers, timeout=seconds)

    def take_own(self, mark: Mark, chain: Chain) -> None:
        """Take a mark that this nexus made of its store; *chain* leads to its signer."""
        with self._changed:
            self._remember(OWN, SeenMark(mark, chain))

    def find_own(self) -> Mark | None:
        """Return the newest mark that this nexus made, None: it made none yet."""
        own = self.list_known().marks.get(OWN, ())
        return max((seen.mark for seen in own), key=lambda mark: mark.order, default=None)

    def list_known(self) -> KnownMarks:
        """Return what the book holds now; the marks of the chain that a keeper told last are its last ones."""
        with self._changed:
            return KnownMarks(
                {keeper: tuple(itertools.chain.from_iterable(by.values())) for keeper, by in self._marks.items()}
            )

    def find_newer(self, meta: Meta, chain: Chain) -> NewerMark | None:
        """Return the newest mark if it is newer than a store that nobody changes."""
        return self.list_known().find_newer(meta, chain)

    def _verify(self, signed: SignedMark) -> SeenMark:
        chain = verify_mark_chain(signed, self._fingerprint, verified=self._verified)
        seen = SeenMark(open_mark(signed, chain), chain)
        self._verified = chain
        return seen

    def _remember(self, keeper: str, seen: SeenMark) -> None:
        """Remember the newest in each of _ORDERS, for each of the chains that were told last."""
        by_chain = self._marks.setdefault(keeper, {})
        known = (*by_chain.pop(seen.chain.digest, ()), seen)
        by_chain[seen.chain.digest] = tuple(max(known, key=order) for order in _ORDERS)
        if len(by_chain) > _MAX_CHAINS:
            del by_chain[next(iter(by_chain))]


def _by_revision(seen: SeenMark) -> tuple[int, int, int, int]:
    return seen.mark.order


def _by_control_revision(seen: SeenMark) -> tuple[int, int]:
    return seen.mark.timeline, seen.mark.control_revision


def _by_epoch(seen: SeenMark) -> tuple[int, int]:
    return seen.mark.timeline, seen.mark.epoch


_ORDERS = (_by_control_revision, _by_epoch, _by_revision)


def _is_newer(mark: Mark, meta: Meta) -> bool:
    if mark.position > (meta.timeline, meta.revision):
        return True
    return mark.timeline == meta.timeline and (mark.control_revision > meta.control_revision or mark.epoch > meta.epoch)


def _has(marks: Iterable[SeenMark], newest: SeenMark) -> bool:
    return any(
        seen.mark.position == newest.mark.position and seen.chain.digest == newest.chain.digest for seen in marks
    )


def _find_parting(theirs: Chain, ours: Chain) -> int | None:
    """Return the last generation that both chains know, None when they are one chain."""
    if theirs.digest == ours.digest:
        return None
    return ours.cut(ours.count_common(theirs) - 1).generation


class MarkMaker:
    """Signs marks of a store as it comes along. Thread-safe.

    A mark is made anew when the store has moved, or a second after the last one when the audit has.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: tuple[Position, float, Mark, SignedMark] | None = None
        self._lock = threading.Lock()

    def make(
        self, meta: Meta, audit: AuditEnd, *, chain: Chain, signer: Signer, set_number: int
    ) -> tuple[Mark, SignedMark]:
        """Return the mark of the store's position; the same objects while it stands still.

        *chain* leads to the key of *signer*.
        """
        now = self._clock.monotonic()
        with self._lock:
            if self._last is not None:
                position, made_at, mark, signed = self._last
                is_due = mark.audit != audit and now - made_at >= _REMAKE_S
                if position == meta.position and not is_due:
                    return mark, signed
            mark = Mark(
                chain.genesis.cluster_id,
                timeline=meta.timeline,
                revision=meta.revision,
                control_revision=meta.control_revision,
                epoch=meta.epoch,
                generation=chain.generation,
                set_number=set_number,
                last_generation=meta.last_generation,
                last_set_number=meta.last_set_number,
                last_kek_id=meta.last_kek_id,
                chain_seq=chain.seq,
                audit=audit,
                made_at=to_micros(self._clock.now()),
            )
            encoded = mark.encode()
            signed = SignedMark(encoded, signer.sign(encoded), chain.records)
            self._last = meta.position, now, mark, signed
            return mark, signed
