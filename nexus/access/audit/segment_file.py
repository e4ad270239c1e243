"""One segment file: written at a known offset, synced, with room set aside for what must not fail.

- Lines go to the end that this process knows, so that what a failed write left is written over.
- Blocks are set aside after the end (`fallocate` with KEEP_SIZE), the last `RESERVE` bytes of them for reserve writes
  only: when the disk is full, those still go through. Where the file system cannot do that, there is no reserve.
- After a failed sync the kernel may have dropped what was not synced, so that is kept here, and written again.
"""

import contextlib
import ctypes
import errno
import os
from pathlib import Path
from typing import Final

RESERVE: Final = 1 << 20  # bytes
AHEAD: Final = 4 << 20  # bytes set aside at a time

_KEEP_SIZE: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)


class SegmentFile:
    """Not thread-safe. Every method raises OSError as it comes; after one, the next call is a new try."""

    def __init__(self, path: Path, size: int) -> None:
        """Open *path*, or make it, to write after its first *size* bytes."""
        self.path = path
        self.size = size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._room_end = size  # blocks are set aside up to here
        self._has_reserve = True
        self._unsynced: list[bytes] = []
        self._must_rewrite = False

    def set_aside(self) -> None:
        """Set blocks aside, at least for the reserve."""
        self._make_room(0)

    def write(self, line: bytes, *, from_reserve: bool) -> None:
        """Write a line whole, with one call, or leave the file as it was as far as later calls see."""
        if self.size + len(line) + RESERVE > self._room_end:
            try:
                self._make_room(len(line))
            except OSError:
                if not from_reserve:
                    raise
        written = os.pwrite(self._fd, line, self.size)
        if written != len(line):
            os.ftruncate(self._fd, self.size)
            self._room_end = self.size
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += written
        self._unsynced.append(line)

    def take_unsynced(self) -> list[bytes]:
        """Take what the next `sync` is for; given back with `give_back` if that fails."""
        lines, self._unsynced = self._unsynced, []
        return lines

    def give_back(self, lines: list[bytes]) -> None:
        self._unsynced = lines + self._unsynced

    def rewrite(self) -> None:
        """Write again what failed syncs may have lost: all that was not given to one that succeeded."""
        if self._must_rewrite:
            data = b"".join(self._unsynced)
            if os.pwrite(self._fd, data, self.size - len(data)) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._must_rewrite = False

    def sync(self) -> None:
        """Make all that is written durable. May run while another thread writes."""
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._must_rewrite = True
            raise

    def is_in_place(self) -> bool:
        """Say whether the file that is written is still the one that others find under its name."""
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give the blocks set aside back to the file system, if it takes them, and close."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.size)
        os.close(self._fd)

    def _make_room(self, size: int) -> None:
        """Set blocks aside for *size* bytes and the reserve, and for what comes then if they are there."""
        try:
            self._extend(self.size + size + RESERVE + AHEAD)
        except OSError:
            self._extend(self.size + size + RESERVE)

    def _extend(self, end: int) -> None:
        if not self._has_reserve or end <= self._room_end:
            return
        arguments = (ctypes.c_int(_KEEP_SIZE), ctypes.c_int64(self.size), ctypes.c_int64(end - self.size))
        if _libc.fallocate(ctypes.c_int(self._fd), *arguments) == 0:
            self._room_end = end
            return
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            self._has_reserve = False
            return
        raise OSError(code, os.strerror(code))
