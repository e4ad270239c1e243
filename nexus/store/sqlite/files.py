"""Whether the files of an open SQLite store are still at their places.

A file that was deleted, renamed or replaced stays open, and SQLite goes on with it as if nothing had happened: what is
committed there is in no file that the next start finds. So the store remembers which files it has opened, by device
and inode, and asks what is at their paths now. It asks by path alone: opening and closing the database file by hand
would drop SQLite's locks.
"""

import os
from pathlib import Path
from typing import Final

from common.errors import StoreFileLostError

_KEPT: Final = ("", ".lock")  # database and lock: one file each for as long as the store is open
_RENEWED: Final = ("-wal", "-shm")  # SQLite makes them anew when the store is opened again after a failed commit


class StoreFiles:
    """The files of the store at *path*, which is open. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Remember them.

        Raises:
            StoreFileLostError: One is not there.
        """
        self._path = path
        self._opened: dict[str, tuple[int, int] | None] = {}
        self._remember(_KEPT + _RENEWED)

    def find_fault(self) -> str:
        """Say which file is not at its place any more; empty: all are."""
        for path, opened in self._opened.items():
            if (found := _identify(path)) != opened:
                what = "is gone" if found is None else "was replaced by another file"
                return (
                    f"store file {path} {what} while the nexus had it open: put the file that it had back in its "
                    "place, then start the nexus anew"
                )
        return ""

    def check(self) -> None:
        """Check that every file is at its place.

        Raises:
            StoreFileLostError: One is not.
        """
        if fault := self.find_fault():
            raise StoreFileLostError(fault)

    def renew(self) -> None:
        """Remember the files that SQLite made when the same database was opened again.

        Raises:
            StoreFileLostError: It is not the same, or one of them is not there.
        """
        for suffix in _RENEWED:
            self._opened.pop(self._place(suffix), None)
        self.check()
        self._remember(_RENEWED)

    def _remember(self, suffixes: tuple[str, ...]) -> None:
        for suffix in suffixes:
            path = self._place(suffix)
            if (found := _identify(path)) is None:
                raise StoreFileLostError(f"store file {path} is gone right after it was opened")
            self._opened[path] = found

    def _place(self, suffix: str) -> str:
        return f"{self._path}{suffix}"


def _identify(path: str) -> tuple[int, int] | None:
    """Return device and inode of what is at this path, None when nothing is."""
    try:
        found = os.lstat(path)  # half the time of Path.lstat, and each commit waits for it
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
