"""The copy that a store leaves of itself before a migration, for going back to the program before.

It is `<path>.schema-N`, of schema N, whole without a WAL, with mode 0600. An earlier copy is never overwritten: a store
that was put back and is migrated once more leaves `<path>.schema-N.2`, and so on. A copy that is byte for byte an
earlier one, as after a migration that failed, is not kept.
"""

import contextlib
import filecmp
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import structlog

from common.errors import StoreUnavailableError
from nexus.store.sqlite.connection import SQLITE_ERRORS, translate

log = structlog.get_logger("store")


def keep_copy(connection: sqlite3.Connection, path: Path, schema: int) -> Path | None:
    """Copy the store at *path*, which has *schema*, and return where to; None: it holds nothing yet.

    Raises:
        StoreUnavailableError: The copy cannot be made.
        sqlite3.Error: The store cannot be read.
    """
    if schema == 0:
        return None
    phase = connection.execute("SELECT phase FROM meta").fetchone()
    if phase in (None, ("empty",)):
        return None
    number = 1
    while (copy := _name(path, schema, number)).exists():
        number += 1
    try:
        copy = _write(connection, copy, [_name(path, schema, earlier) for earlier in range(1, number)])
    except (OSError, *SQLITE_ERRORS) as exc:
        why = exc.strerror if isinstance(exc, OSError) else translate(exc, "copy")
        raise StoreUnavailableError(f"store cannot be copied to {copy} before its schema changes: {why}") from exc
    log.warning("store copied before its schema changes", copy=str(copy), schema=schema)
    return copy


def _name(path: Path, schema: int, number: int) -> Path:
    return path.with_name(f"{path.name}.schema-{schema}" + (f".{number}" if number > 1 else ""))


def _write(connection: sqlite3.Connection, copy: Path, earlier: Sequence[Path]) -> Path:
    """Write page by page, damaged ones as they are; return which file is the copy: *copy* or an equal *earlier* one.

    Nothing has the name of the copy before it is whole and synced.
    """
    new = copy.with_name(f"{copy.name}.new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(f"{new.as_uri()}?mode=rw", uri=True, isolation_level=None)) as target:
            connection.backup(target)
        if (same := next((one for one in earlier if filecmp.cmp(new, one, shallow=False)), None)) is not None:
            new.unlink()
            return same
        _sync(new)
        new.rename(copy)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _sync(copy.parent)
    return copy


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
