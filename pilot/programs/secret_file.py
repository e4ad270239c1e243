"""A file with secrets in it: for its owner alone, in memory rather than on a disk, and never half written."""

import contextlib
import os
import secrets
from pathlib import Path

from pilot.errors import PilotError, UsageError

MOUNTS = Path("/proc/self/mountinfo")

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


class SecretFile:
    """The file *target*, in a folder that exists. It is written by `write` and removed by `close`.

    The folder is opened once, so what was checked is what is written to, whatever becomes of its name.

    Raises:
        UsageError: There is no such folder, or it is not in memory and *may_be_on_disk* does not say that this is fine.
    """

    def __init__(self, target: Path, *, may_be_on_disk: bool = False) -> None:
        self._target = target
        self._is_written = False
        try:
            self._folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as exc:
            raise UsageError(f"{target.parent}: {exc.strerror}, want the folder of {target.name}") from exc
        try:
            if not target.name:
                raise UsageError(f"{target}: got a folder, want the name of a file")
            if not may_be_on_disk:
                self._check_memory()
        except BaseException:
            os.close(self._folder)
            raise

    def write(self, content: bytes) -> None:
        """Replace the file by one with this content, mode 0600. Readers see the one or the other.

        Raises:
            PilotError: The system refuses; the file is as it was.
        """
        unfinished = f".{self._target.name}.{secrets.token_hex(8)}"
        try:
            try:
                self._write_new(unfinished, content)
                os.replace(unfinished, self._target.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            finally:
                self._remove(unfinished)
        except OSError as exc:
            raise PilotError(f"{self._target}: {exc.strerror}") from exc
        self._is_written = True

    def close(self) -> None:
        """Remove the file, if it was written. Call it once."""
        try:
            if self._is_written:
                self._remove(self._target.name)
        except OSError as exc:
            raise PilotError(f"{self._target} cannot be removed: {exc.strerror}", "it holds secrets") from exc
        finally:
            os.close(self._folder)

    def _check_memory(self) -> None:
        kind = find_file_system(os.fstat(self._folder).st_dev, MOUNTS.read_text() if MOUNTS.exists() else "")
        if kind not in _IN_MEMORY:
            raise UsageError(
                f"{self._target}: the folder is on {kind or 'an unknown file system'}, want tmpfs",
                "secrets on a disk outlive the program: name a file in a tmpfs such as /dev/shm, or give --allow-disk",
            )

    def _write_new(self, name: str, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=self._folder), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)


def find_file_system(device: int, mounts: str) -> str:
    """Return the kind of file system that *device* is, by the lines of /proc/self/mountinfo; empty: not known."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [number] and after:
            return after.split()[0]
    return ""
