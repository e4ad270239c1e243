"""The control row of a nexus's audit: it says that the audit has begun, and which marks speak of the files of now.

With the row, the store has a head of the files (`nexus.keys.outbox`): whoever writes the database can delete the head,
and cannot delete the row unnoticed. When a new chain is accepted, the row is made anew, since earlier marks remember
lines of files that were given up.
"""

import msgspec

from common.errors import CorruptRowError
from nexus.keys import records
from nexus.keys.manifest import Controls, Key
from nexus.store.protocol import Position

KIND = "audit"  # one row for each nexus, under its name


class ChainRecord(msgspec.Struct, frozen=True):
    """Where the store stood when the chain began: marks up to there say nothing of its files."""

    timeline: records.Number
    control_revision: records.Number

    @property
    def place(self) -> tuple[int, int]:
        """Timeline and control revision, both of which the manifest authenticates."""
        return self.timeline, self.control_revision


def make_chain_record(left: Position) -> ChainRecord:
    """Make the record of a chain that begins with the change after *left*."""
    return ChainRecord(left.timeline, left.control_revision)


def encode_chain(nexus: str, record: ChainRecord) -> dict[Key, bytes]:
    """Return the row of *nexus*, for a change of control rows."""
    return {(KIND, nexus): records.encode(record)}


def read_chains(controls: Controls) -> dict[str, ChainRecord | None]:
    """Return the records by name of nexus; None: the row does not verify."""
    chains: dict[str, ChainRecord | None] = dict.fromkeys(controls.damaged_of_kind(KIND))
    for nexus, body in controls.of_kind(KIND).items():
        try:
            chains[nexus] = records.decode(ChainRecord, body)
        except CorruptRowError:
            chains[nexus] = None
    return chains
