"""A small disk of a nexus's own, which a test fills and empties. It lasts as long as the block that made it."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = 'mount -t tmpfs -o "size=$1" tmpfs "$0" && echo mounted && exec sleep infinity'


@dataclass(frozen=True)
class SmallDisk:
    """Mounted where one process lives, and those that join it."""

    pid: int
    folder: Path

    def wrap(self, command: list[str]) -> list[str]:
        """Return the command that runs *command* where the disk is."""
        return ["nsenter", f"--target={self.pid}", "--user", "--mount", "--preserve-credentials", "--", *command]

    @property
    def seen(self) -> Path:
        """The folder as this process reaches it."""
        return Path(f"/proc/{self.pid}/root{self.folder}")

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.seen / "filler").open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        assert not shutil.disk_usage(self.seen).free

    def make_room(self) -> None:
        (self.seen / "filler").unlink()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """Put a disk of *size*, as mount(8) reads it, over a folder."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _SCRIPT, str(folder), size]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"mounted\n"
            yield SmallDisk(holder.pid, folder)
        finally:
            holder.kill()
