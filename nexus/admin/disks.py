"""How much room the folders of a nexus take, and have left.

They are looked at from time to time, in a thread of its own: a disk that hangs keeps nobody waiting who asks.
"""

import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.clock import Clock

LOOK_S: Final = 10.0  # between two looks


@dataclass(frozen=True, slots=True)
class FolderView:
    """One folder, as it was looked at last. All sizes are in bytes."""

    used: int  # by the files in it
    free: int  # on its disk, for us
    size: int  # of its disk


class Disks:
    """Thread-safe."""

    def __init__(self, folders: Mapping[str, Path], clock: Clock) -> None:
        """Look at *folders*, by what they are called in metrics."""
        self._folders = folders
        self._clock = clock
        self._views: Mapping[str, FolderView] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="disks", daemon=True)

    @property
    def views(self) -> Mapping[str, FolderView]:
        """The folders by name; those that could not be looked at are missing."""
        return self._views

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. Does not wait for a look that hangs."""
        self._stopping.set()

    def look(self) -> None:
        """Look at every folder once."""
        found = {name: _look_at(folder) for name, folder in self._folders.items()}
        self._views = {name: view for name, view in found.items() if view is not None}

    def _run(self) -> None:
        self.look()
        while not self._clock.wait(self._stopping, LOOK_S):
            self.look()


def _look_at(folder: Path) -> FolderView | None:
    try:
        disk = shutil.disk_usage(folder)
        used = sum(entry.stat().st_size for entry in folder.iterdir() if entry.is_file())
    except OSError:
        return None  # not there, or a file went while it was looked at: the next look tells
    return FolderView(used, disk.free, disk.total)
