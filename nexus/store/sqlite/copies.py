"""The copy that a store leaves of itself before a migration, for going back to the program before.

It is `<path>.schema-N`, of schema N, whole without a WAL, with mode 0600. An earlier copy is never overwritten: a store
that was put back and is migrated once more leaves `<path>.schema-N.2`, and so on; one that has not changed since its
last copy, as after a migration that failed, leaves none.
"""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

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
    meta = _load_meta(connection)
    if meta is None or meta["phase"] == "empty":
        return None
    number = 1
    while (copy := _name(path, schema, number)).exists():
        if _holds(copy, meta):
            log.warning("store was copied before its schema changes", copy=str(copy), schema=schema)
            return copy
        number += 1
    try:
        _write(connection, copy)
    except (OSError, *SQLITE_ERRORS) as exc:
        why = exc.strerror if isinstance(exc, OSError) else translate(exc, "copy")
        raise StoreUnavailableError(f"store cannot be copied to {copy} before its schema changes: {why}") from exc
    log.warning("store copied before its schema changes", copy=str(copy), schema=schema)
    return copy


def _name(path: Path, schema: int, number: int) -> Path:
    return path.with_name(f"{path.name}.schema-{schema}" + (f".{number}" if number > 1 else ""))


def _load_meta(connection: sqlite3.Connection) -> dict[str, Any] | None:
    cursor = connection.execute("SELECT * FROM meta")
    row = cursor.fetchone()
    return None if row is None else {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _holds(copy: Path, meta: dict[str, Any]) -> bool:
    """Whether *copy* is of the store as it is now."""
    try:
        with contextlib.closing(sqlite3.connect(f"{copy.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            return _load_meta(connection) == meta
    except SQLITE_ERRORS:
        return False


def _write(connection: sqlite3.Connection, copy: Path) -> None:
    """Write page by page, damaged ones as they are; nothing has the name of the copy before it is whole and synced."""
    new = copy.with_name(f"{copy.name}.new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(f"{new.as_uri()}?mode=rw", uri=True, isolation_level=None)) as target:
            connection.backup(target)
        _sync(new)
        new.rename(copy)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _sync(copy.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
