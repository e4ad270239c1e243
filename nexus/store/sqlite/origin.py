"""Whether a store is in the file that it was in, or in a copy of it.

Of a copy that was made while a nexus wrote, some pages may be in neither file: they went from the WAL into the database
between the two. SQLite notices only when it comes by such a page. So the store remembers its file, by file system,
inode and time of birth, and whatever was copied, moved to another disk or put back is read through once before it is
used. The inode alone would not do: ext4 gives that of a removed file to the next one. What is copied into the file that
is there is not noticed.
"""

import ctypes
import os
import sqlite3
import struct
from pathlib import Path
from typing import Final

import structlog

from common.errors import CorruptRowError
from nexus.store.sqlite.connection import SQLITE_ERRORS, translate

# Of statx(2), which Python has no call for before 3.15.
_AT_FDCWD: Final = -100
_STATX_BTIME: Final = 0x800
_STATX_SIZE: Final = 256  # bytes
_MASK: Final = struct.Struct("=I")
_BIRTH: Final = struct.Struct("=qI")  # seconds and nanoseconds
_BIRTH_AT: Final = 80

log = structlog.get_logger("store")


def check_origin(connection: sqlite3.Connection, path: Path) -> None:
    """Read a copy through, and remember its file from then on. The connection is in autocommit mode.

    Raises:
        CorruptRowError: It is not whole.
        StoreUnavailableError: It cannot be read.
    """
    file = _identify(path)
    try:
        row = connection.execute("SELECT file FROM meta").fetchone()
        if row is None or row[0] == file:
            return
        if row[0]:
            log.info("store is in another file than before, and read through", path=str(path))
            _check_whole(connection, path)
    except SQLITE_ERRORS as exc:
        raise translate(exc, f"read {path} through") from exc
    try:
        connection.execute("UPDATE meta SET file = ?", (file,))
    except SQLITE_ERRORS as exc:  # a full disk; it is read through again at the next start
        log.warning("file of the store is not remembered", why=str(translate(exc, "write")))


def _check_whole(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
        raise CorruptRowError(
            f"store {path} is a copy that is not whole: its files were copied while a nexus had them open; "
            "take a backup, a snapshot, or a copy of a stopped nexus"
        )


def _identify(path: Path) -> str:
    return f"{os.statvfs(path).f_fsid:x}:{path.stat().st_ino}:{_find_birth(path)}"


def _find_birth(path: Path) -> int:
    """Return when the file was made, in nanoseconds since 1970; 0: the system does not tell."""
    statx = getattr(ctypes.CDLL(None), "statx", None)
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), 0, ctypes.c_uint(_STATX_BTIME), found):
        return 0
    (mask,) = _MASK.unpack_from(found)
    seconds, nanoseconds = _BIRTH.unpack_from(found, _BIRTH_AT)
    return int(seconds * 1_000_000_000 + nanoseconds) if mask & _STATX_BTIME else 0
