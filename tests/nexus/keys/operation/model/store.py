"""The store of the model: control rows, secrets, and a meta row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.job import Counts, KekRows
from nexus.keys.operation.record import Depth
from nexus.store.protocol import Meta
from tests.nexus.keys.operation.made import make_meta


@dataclass(frozen=True)
class Row:
    """One version of a secret."""

    kek_id: int
    kek: bytes  # token of the KEK that wrapped its DEK
    dek: int
    is_rotten: bool = False  # it does not open any more
    is_quarantined: bool = False
    is_abandoned: bool = False


@dataclass(frozen=True)
class State:
    """All that is committed."""

    meta: Meta
    bodies: Mapping[records.Key, bytes]
    rows: Mapping[int, Row] = field(default_factory=dict)
    damaged: frozenset[records.Key] = frozenset()
    backup: int = 0  # generation of the newest verified one
    tainted: frozenset[int] = frozenset()  # DEKs that were there at the flip of an emergency


class ModelStore:
    """Commits one change after the other."""

    def __init__(self, bodies: Mapping[records.Key, bytes]) -> None:
        self.state = State(make_meta(), bodies)
        self.commits = 0
        self._facts: tuple[State, Facts] | None = None

    @property
    def facts(self) -> Facts:
        """The facts of now."""
        if self._facts is None or self._facts[0] is not self.state:
            self._facts = self.state, read_facts(self.state.meta, self.state.bodies, self.state.damaged)
        return self._facts[1]

    def put_back(self, state: State) -> None:
        """Replace everything by an older state."""
        self.state = state
        self.commits += 1

    def commit(self, change: Change, *, rows: Mapping[int, Row] | None = None, **meta: object) -> None:
        """Commit a change of control rows; *meta* are further edits of the meta row."""
        before = self.state
        edited = replace(change.edit(before.meta), **meta)  # type: ignore[arg-type]
        if edited.epoch < before.meta.epoch:
            raise AssertionError("the epoch went down")
        edited = replace(edited, revision=edited.revision + 1, control_revision=edited.control_revision + 1)
        rows = before.rows if rows is None else rows
        damaged = before.damaged - change.delete - change.put.keys()
        self.state = replace(before, meta=edited, bodies=change.apply(before.bodies), rows=rows, damaged=damaged)
        self.commits += 1

    def note_flip(self, depth: Depth) -> None:
        """Remember the DEKs that somebody else may have, after the flip of an emergency."""
        if depth is Depth.EMERGENCY:
            deks = {row.dek for row in self.state.rows.values() if not row.is_abandoned}
            self.state = replace(self.state, tainted=self.state.tainted | deks)

    def damage(self, key: records.Key) -> None:
        """Let a control row be one that does not verify."""
        bodies = {row: body for row, body in self.state.bodies.items() if row != key}
        self.state = replace(self.state, bodies=bodies, damaged=self.state.damaged | {key})

    def write_rows(self, rows: Mapping[int, Row], *, counts: bool) -> None:
        """Commit a change of no control row."""
        meta = self.state.meta
        meta = replace(meta, revision=meta.revision + 1) if counts else meta
        self.state = replace(self.state, meta=meta, rows=rows)
        self.commits += 1

    def count_rows(self) -> Counts:
        """Count rows by KEK."""
        counts: dict[int, list[int]] = {}
        for row in self.state.rows.values():
            numbers = counts.setdefault(row.kek_id, [0, 0, 0])
            numbers[2 if row.is_abandoned else 1 if row.is_quarantined else 0] += 1
        return Counts({kek_id: KekRows(*numbers) for kek_id, numbers in counts.items()})
