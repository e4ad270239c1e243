"""What a holder of a root key and of a copy of the store could read, and which of it is current yet.

1. The root key of a generation opens every KEK of its time. So whoever has it, and a copy of the store, reads what was
   written until a later generation, which has a new KEK, became current.
2. This holds for a generation that was never current as well: the KEK of its time was wrapped under it, and stayed in
   use until the next flip.
3. Earlier and later go by revisions, which only go up, not by times of a clock. What is not surely later counts as
   earlier: a version whose revision the store has not come to, and every version when the row of the generation that
   followed does not verify.
4. Only what the store still has is told: no destroyed versions, and none of a secret that was deleted whole and
   written anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from common.errors import CallerGoneError, InvalidArgumentError, NotFoundError
from nexus.access import calls
from nexus.access.gate import Caller, Gate
from nexus.keys.floor import Floor
from nexus.keys.keyed_read import read_with_key
from nexus.keys.operation.facts import Facts
from nexus.keys.records import GenerationRecord, GenerationState
from nexus.keys.ruled_change import load_facts
from nexus.store.protocol import Store, VersionStamp

ROWS_AT_ONCE: Final = 5000  # in one read, some 15 ms; as many paths of full length fit into a message
_LAST_VERSION: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ExposedSecret:
    """A secret with versions that could be read."""

    path: str
    versions: int  # how many
    newest_version: int  # of those
    written_at: int  # the newest one, in microseconds since 1970
    is_current: bool  # the newest version that is not deleted is among them


@dataclass(frozen=True, slots=True)
class ImpactPage:
    """The secrets of one page."""

    state: GenerationState | None  # None: the row of the generation is missing, or does not verify
    until: int  # when a later generation became current, in microseconds since 1970; 0: none has
    until_revision: int  # of that change; 0: none has
    secrets: list[ExposedSecret]
    next: str  # path that the next page begins after; empty: there is none


class _Tally:
    """What is known of one secret, while its versions are read in ascending order."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.versions = 0
        self._newest_version = 0
        self._written_at = 0
        self._is_current = False

    def take(self, stamp: VersionStamp, *, is_exposed: bool) -> None:
        if is_exposed:
            self.versions += 1
            self._newest_version, self._written_at = stamp.version, stamp.created_at
        if not stamp.deleted:
            self._is_current = is_exposed

    def tell(self) -> ExposedSecret:
        return ExposedSecret(self.path, self.versions, self._newest_version, self._written_at, self._is_current)


class Impact:
    """Thread-safe."""

    def __init__(self, store: Store, gate: Gate, *, rows_at_once: int = ROWS_AT_ONCE) -> None:
        self._store = store
        self._gate = gate
        self._rows_at_once = rows_at_once

    def list_page(
        self, caller: Caller, generation: int, *, after: str = "", is_wanted: Callable[[], bool] = lambda: True
    ) -> ImpactPage:
        """List secrets after a path, by path, of which a holder of the root key of *generation* could read versions.

        Raises:
            InvalidArgumentError: The generation is 0.
            NotFoundError: No generation of this number was ever made.
            CallerGoneError: *is_wanted* says that nobody waits for the answer.
        """
        if generation < 1:
            raise InvalidArgumentError(f"generation: got {generation}, want 1 or more")
        with self._gate.keyed_call(calls.LIST_IMPACT, caller) as (record, serving):
            record.detail = f"generation {generation}"
            facts = read_with_key(self._store, serving, load_facts)
            if generation > facts.meta.last_generation:
                raise NotFoundError(f"no generation {generation}: the last one made is {facts.meta.last_generation}")
            end = find_end(facts, generation)
            tallies, following = self._read_page(serving.floor, after, end.flip_revision if end else 0, is_wanted)
        own = facts.generations.get(generation)
        return ImpactPage(
            state=own.state if own else None,
            until=end.activated_at if end else 0,
            until_revision=end.flip_revision if end else 0,
            secrets=[tally.tell() for tally in tallies if tally.versions],
            next=following,
        )

    def _read_page(
        self, floor: Floor, after: str, until: int, is_wanted: Callable[[], bool]
    ) -> tuple[list[_Tally], str]:
        """Read whole secrets in short reads; return them, and the path that the next page begins after."""
        tallies: list[_Tally] = []
        place = (after, _LAST_VERSION)
        while True:
            if not is_wanted():
                raise CallerGoneError("the caller has left, or its deadline has passed")
            stamps = self._read(floor, place, until, tallies)
            if len(stamps) < self._rows_at_once:
                return tallies, ""
            if len(tallies) > 1:  # of the last one there may be more versions
                tallies.pop()
                return tallies, tallies[-1].path
            place = stamps[-1].path, stamps[-1].version

    def _read(self, floor: Floor, place: tuple[str, int], until: int, tallies: list[_Tally]) -> list[VersionStamp]:
        left = floor.position
        with self._store.read() as reader:
            position = reader.load_position()
            floor.check_read(left, position)
            stamps = reader.list_stamps(after=place, limit=self._rows_at_once)
        for stamp in stamps:
            if not tallies or tallies[-1].path != stamp.path:
                tallies.append(_Tally(stamp.path))
            is_later = 0 < until <= stamp.revision <= position.revision  # rule 3
            tallies[-1].take(stamp, is_exposed=not is_later)
        return stamps


def find_end(facts: Facts, generation: int) -> GenerationRecord | None:
    """Return the generation whose flip ended what a holder of the root key of *generation* could read; None: none."""
    later = [number for number, one in facts.generations.items() if number > generation and one.flip_revision]
    return facts.generations[min(later)] if later else None
