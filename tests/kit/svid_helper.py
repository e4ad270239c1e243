"""What stands beside a process that takes its SVID from files, and keeps them fresh, as spiffe-helper does."""

from collections.abc import Sequence
from pathlib import Path

from shardhold import WorkloadAPI
from tests.kit.credentials import ALL_FILES, write_svid


class SvidHelper:
    """Writes each SVID of a Workload API into *folder*: into the files that are there, one after another.

    *names* are those that it writes: a test that leaves some out has a set that does not belong together.
    """

    def __init__(self, socket: Path, folder: Path) -> None:
        self.folder = folder
        self.names: Sequence[str] = ALL_FILES
        self.renewals = 0
        folder.mkdir(mode=0o700)
        self._identity = WorkloadAPI(f"unix:{socket}")
        self.write()
        self._identity.subscribe(self._renew)

    def write(self) -> None:
        """Write the newest SVID now."""
        if self.names:  # none: write_svid would write all
            write_svid(self.folder, self._identity.current(), *self.names)

    def close(self) -> None:
        """Leave the files as they are."""
        self._identity.close()

    def _renew(self) -> None:
        self.write()
        self.renewals += 1
