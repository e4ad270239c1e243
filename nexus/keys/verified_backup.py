"""The newest backup that a nexus has opened and read through, remembered in the control row `backup/last`.

It is what preflight and the keyring job go by. Its age counts from when it was made: verifying an old backup once more
does not make it younger.
"""

from typing import Final

import msgspec

from nexus.keys import records
from nexus.keys.operation.evidence import Backup
from nexus.keys.operation.facts import Facts
from nexus.keys.records import Number

LAST_BACKUP: Final = ("backup", "last")


class BackupRecord(msgspec.Struct, frozen=True):
    """A backup that was verified. Times are microseconds since 1970."""

    name: str  # of its file
    digest: bytes  # of its stream, 32 bytes
    timeline: Number
    generation: Number
    revision: Number
    made_at: Number
    verified_at: Number

    @property
    def age_key(self) -> tuple[int, int, int]:
        """What is higher the newer the backup is."""
        return self.timeline, self.revision, self.made_at


def find_record(facts: Facts) -> BackupRecord | None:
    """Return the newest backup that was verified; None: none, or its row does not verify."""
    body = facts.bodies.get(LAST_BACKUP)
    return None if body is None else records.decode(BackupRecord, body)


def find_backup(facts: Facts) -> Backup | None:
    """Return the newest backup that was verified, as evidence; None: none was.

    Its time is when it was made, or verified if a clock said that this was earlier.
    """
    record = find_record(facts)
    if record is None:
        return None
    return Backup(record.generation, min(record.made_at, record.verified_at))
