"""What the keyring job sees of the store in one short read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from common.errors import ConflictError
from nexus.keys.opened import Root, Serving
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.job import Counts, KekRows
from nexus.keys.records import KekState
from nexus.keys.ruled_change import load_facts
from nexus.store.protocol import Position, Reader
from nexus.store.rewrapping import VersionKey, WrappedRow

_HIGHEST: Final = (1 << 63) - 1  # row id
_LOWEST: Final = -(1 << 63)  # version

# Everything of a position but the revision, which any put raises.
Mark = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Look:
    """One committed state, and the keys that it was read with."""

    serving: Serving
    position: Position
    facts: Facts
    rows: Sequence[WrappedRow] = ()  # the next ones under an older KEK
    counts: Counts = field(default_factory=Counts)  # of the older KEKs, where *rows* is empty: 1 means one or more

    @property
    def older_keks(self) -> list[int]:
        """The KEKs that are not current, ascending."""
        return sorted(int(name) for name in self.facts.keyring.keks if int(name) != self.facts.kek_id)

    @property
    def forgotten_keks(self) -> list[int]:
        """The KEKs in memory that went. Those above the current one may be about to come."""
        kept = self.facts.keyring.keks
        return [kek for kek in self.serving.keyring.list_keks() if kek < self.facts.kek_id and str(kek) not in kept]

    def is_tainted(self, kek_id: int) -> bool:
        """Whether rows under this KEK get new DEKs."""
        kek = self.facts.keyring.keks.get(str(kek_id))
        return kek is not None and kek.state is KekState.TAINTED


class FactsCache:
    """The facts of the last look, until a control row or a key changes. Used by one thread."""

    def __init__(self) -> None:
        self._known: tuple[Root, Mark, Facts] | None = None

    def load(self, reader: Reader, serving: Serving, position: Position) -> Facts:
        """Return the facts at *position*, which *reader* is at.

        Raises:
            ConflictError: The keys are being replaced: the store has them already, or only the memory has.
            CorruptRowError: The manifest does not verify.
        """
        root, mark = serving.root, find_mark(position)
        # 0: an older program left the store, which is about to be renewed.
        if position.generation not in (0, root.root_key.generation) or position.kek_id not in (
            0,
            serving.keyring.current_id,
        ):
            raise ConflictError("the root key is replaced at this moment")
        if self._known is not None and self._known[0] is root and self._known[1] == mark:
            return self._known[2]
        facts = load_facts(reader, root.root_key)
        self._known = root, mark, facts
        return facts

    def forget(self) -> None:
        """Load them anew next time."""
        self._known = None


def find_mark(position: Position) -> Mark:
    """Return what differs between two positions when a control row or a key has changed."""
    return position[0], *position[2:]


def count_rows(reader: Reader, kek_id: int) -> KekRows:
    """Count what is under a KEK, by the index: 1 stands for one or more, but what was given up is counted exactly.

    Whatever is in quarantine and not given up may be under it: the number that its row names may be what is damaged.
    """
    page = reader.list_outdated(kek_id + 1, after=(kek_id - 1, _HIGHEST), limit=1)
    has_others = reader.has_undecided() or (not page and reader.has_rows_under(kek_id))
    return KekRows(len(page), int(has_others), reader.count_abandoned(kek_id))


def is_in_quarantine(reader: Reader, row: WrappedRow) -> bool:
    """Whether a version is in quarantine."""
    before = VersionKey(row.path, row.incarnation, max(row.version - 1, _LOWEST))
    return any(one.key == row.key for one in reader.list_quarantine(after=before, limit=1))
