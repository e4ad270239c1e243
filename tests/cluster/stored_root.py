"""What the store's file says of root keys, sets and KEKs: read from outside, beside a nexus that may run."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from nexus.keys import records
from nexus.keys.backup_key import BACKUP_KEY, BackupKeyRecord
from nexus.keys.records import GenerationState, SetState

_FRAGMENT = 40  # characters of what is looked for: a longer text may be spread over pages
_ENDED = (GenerationState.RETIRED, GenerationState.COMPROMISED, GenerationState.ABORTED)

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class RootRows:
    """One committed state."""

    control: dict[records.Key, bytes]
    current: tuple[int, int]  # generation and KEK, as the meta row names them
    keks: dict[int, int]  # how many versions are under each KEK
    quarantine: list[str]  # paths

    def load(self, kind: type[T], row_kind: str) -> dict[int, T]:
        """Decode the rows of one kind, by number."""
        found = {int(name): body for (one, name), body in self.control.items() if one == row_kind}
        return {number: records.decode(kind, body) for number, body in sorted(found.items())}

    def list_names(self, row_kind: str) -> set[str]:
        """Return the names of the rows of one kind."""
        return {name for one, name in self.control if one == row_kind}

    def list_sealed(self) -> set[bytes]:
        """Return every wrap but those of secrets, and every sealed copy of a root key, as they stand in their rows."""
        found = set[str]()
        for (kind, _), body in self.control.items():
            match kind:
                case records.KEYRING:
                    found |= {kek["wrap"] for kek in msgspec.json.decode(body)["keks"].values()}
                case records.ESCROW:
                    found |= {copy["sealed"] for copy in msgspec.json.decode(body)["copies"]}
                case records.CANARY:
                    found.add(msgspec.json.decode(body)["wrapped_dek"])
                case kind if kind == BACKUP_KEY[0]:
                    found.add(msgspec.json.decode(body)["wrap"])
        return {text.encode() for text in found}

    def find_unrest(self) -> str:
        """Say what is left of an operation, or of root keys and KEKs that are not current; empty: nothing is."""
        generation, kek_id = self.current
        keyrings = self.load(records.KeyringRecord, records.KEYRING)
        if [*keyrings] != [generation] or [*keyrings[generation].keks] != [str(kek_id)]:
            found = {number: [*keyring.keks] for number, keyring in keyrings.items()}
            return f"KEKs by generation are {found}, want {kek_id} alone, of generation {generation}"
        wanted = {records.ESCROW: {str(generation)}, records.CANARY: {str(kek_id)}, records.OPERATION[0]: set[str]()}
        for kind, names in wanted.items():
            if (found_names := self.list_names(kind)) != names:
                return f"rows of {kind} are {sorted(found_names)}, want {sorted(names)}"
        if (body := self.control.get(BACKUP_KEY)) and (under := records.decode(BackupKeyRecord, body).kek_id) != kek_id:
            return f"the identity for backups is under KEK {under}, want {kek_id}"
        if self.keks.keys() - {kek_id} or self.quarantine:
            return f"versions by KEK are {self.keks}, in quarantine {self.quarantine}, want all under {kek_id}"
        return self._find_unrest_of_history(generation)

    def _find_unrest_of_history(self, generation: int) -> str:
        """Each root key that was ever current has a link to the one before it; all but one have ended."""
        history = self.load(records.GenerationRecord, records.GENERATION)
        states = {number: str(one.state) for number, one in history.items()}
        lived = {number: one for number, one in history.items() if one.state is not GenerationState.ABORTED}
        if history[generation].state is not GenerationState.ACTIVE or max(lived) != generation:
            return f"generations are {states}, want the last one active, {generation}"
        for number, one in lived.items():
            if number != generation and not (one.state in _ENDED and one.retired_at):
                return f"generation {number} is {one.state}, retired at {one.retired_at}"
        if (links := self.list_names(records.LINK)) != {str(seq) for seq in range(1, len(lived))}:
            return f"links are {sorted(links, key=int)}, and generations {states}"
        return ""


class StoredRoot:
    """Reads the database in *folder*."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._remembered: set[bytes] = set()

    def load(self) -> RootRows:
        """Read one committed state."""
        with closing(sqlite3.connect(f"file:{self._folder / 'nexus.db'}?mode=ro", uri=True)) as database:
            database.execute("BEGIN")
            control = database.execute("SELECT kind, name, body FROM control").fetchall()
            (current,) = database.execute("SELECT generation, kek_id FROM meta").fetchall()
            keks = database.execute("SELECT kek_id, count(*) FROM versions GROUP BY kek_id").fetchall()
            quarantine = [path for (path,) in database.execute("SELECT path FROM quarantine").fetchall()]
        return RootRows({(kind, name): body for kind, name, body in control}, current, dict(keks), quarantine)

    def load_sets(self) -> dict[int, records.ShardSetRecord]:
        """Read the rows of all sets, by set number."""
        return self.load().load(records.ShardSetRecord, records.SHARD_SET)

    def find_current(self) -> records.ShardSetRecord:
        """Return the one set that is current."""
        (current,) = (one for one in self.load_sets().values() if one.state is SetState.CURRENT)
        return current

    def remember(self) -> None:
        """Remember what is wrapped or sealed under keys of now, to look for it once those keys are gone."""
        self._remembered |= self.load().list_sealed()

    def find_unrest(self) -> str:
        """Say what is left of earlier keys, in rows or in any file of the store; empty: nothing is."""
        rows = self.load()
        return rows.find_unrest() or self._find_remnant(self._remembered - rows.list_sealed())

    def _find_remnant(self, gone: set[bytes]) -> str:
        """Look for bodies of rows that are gone; what is found nowhere is forgotten."""
        for file in self._folder.iterdir():
            content = file.read_bytes()
            if any(text[:_FRAGMENT] in content or text[-_FRAGMENT:] in content for text in gone):
                return f"{file.name} has a remnant of what an earlier key wrapped or sealed"
        self._remembered -= gone
        return ""
