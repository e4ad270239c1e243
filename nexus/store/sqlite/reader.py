"""Queries of the SQLite store over one connection."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from common.errors import CorruptRowError
from nexus.store.protocol import BEYOND_PATHS, ControlRow, MadeByRequest, Meta, Phase, SecretRow, VersionRow
from nexus.store.sqlite.connection import SQLITE_ERRORS, translate

_META: Final = """
    SELECT phase, cluster_id, sealed, timeline, revision, control_revision,
           last_generation, last_set_number, last_kek_id, last_init_attempt FROM meta"""
_VERSION: Final = """
    SELECT path, incarnation, version, kek_id, dek_id, wrapped_dek, value, created_at, deleted,
           (SELECT current_version FROM secrets WHERE path = ?1)
    FROM versions WHERE path = ?1"""
_VERSION_EXACT: Final = _VERSION + " AND version = ?2"
_VERSION_NEWEST: Final = _VERSION + " ORDER BY version DESC LIMIT 1"
_SECRET: Final = "SELECT path, incarnation, current_version, updated_at FROM secrets"
_REQUEST: Final = """
    SELECT path, incarnation, version, revision, 0 FROM versions WHERE request_id = ?1 AND caller = ?2
    UNION ALL
    SELECT d.path, s.incarnation, d.version, d.revision, 1 FROM deletions AS d JOIN secrets AS s ON s.path = d.path
    WHERE d.request_id = ?1 AND d.caller = ?2"""

# Far above what a store can count to, and far enough below what SQLite can hold for everything that is added.
_NUMBERS_END: Final = 1 << 62
_AUDIT: Final = """
    SELECT revision, entry FROM audit_outbox WHERE revision > ?1 AND revision <= (
        SELECT max(revision) FROM (SELECT revision FROM audit_outbox WHERE revision > ?1 ORDER BY revision LIMIT ?2))
    ORDER BY revision, position"""


class SqliteReader:
    """Reads over one connection, which one thread uses at a time."""

    __slots__ = ("_cursor", "_execute", "connection")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._cursor = connection.cursor()
        self._execute = self._cursor.execute

    def begin(self) -> None:
        """Fix one committed state, from the first query on."""
        try:
            self._execute("BEGIN")
        except SQLITE_ERRORS as exc:
            raise translate(exc, "begin a read") from exc

    def end(self) -> None:
        """Let go of the state.

        Raises:
            sqlite3.Error: The connection is of no more use.
        """
        self._execute("COMMIT")

    def load_meta(self) -> Meta:
        row = self._find(_META)
        if row is None:
            raise CorruptRowError("store has no meta row")
        phase, cluster_id, sealed, *numbers = row
        _check_numbers(*numbers)
        try:
            return Meta(Phase(phase), cluster_id, bool(sealed), *numbers)
        except ValueError as exc:
            raise CorruptRowError("store's meta row has no known phase") from exc

    def is_empty(self) -> bool:
        query = "SELECT 1 FROM control UNION ALL SELECT 1 FROM secrets UNION ALL SELECT 1 FROM versions LIMIT 1"
        return self._find(query) is None

    def load_control(self, kind: str, name: str) -> ControlRow | None:
        row = self._find("SELECT kind, name, body, digest FROM control WHERE kind = ? AND name = ?", kind, name)
        return None if row is None else ControlRow(*row)

    def load_controls(self) -> list[ControlRow]:
        rows = self._load("SELECT kind, name, body, digest FROM control ORDER BY kind, name")
        return [ControlRow(*row) for row in rows]

    def load_secret(self, path: str) -> SecretRow | None:
        row = self._find(_SECRET + " WHERE path = ?", path)
        return None if row is None else _to_secret(row)

    def load_version(self, path: str, version: int) -> VersionRow | None:
        row = self._find(_VERSION_EXACT, path, version) if version else self._find(_VERSION_NEWEST, path)
        if row is None:
            self._explain_missing(path, version)
            return None
        found, incarnation, number, kek_id, dek_id, wrapped_dek, value, created_at, deleted, newest = row
        if found != path or (version and number != version):
            raise CorruptRowError("store's index of versions leads to another row")
        _check_numbers(number)
        # Else a damaged index would pass an older version off as the newest.
        if newest is None or number > newest or (not version and number < newest):
            raise CorruptRowError("store has lost a version of a secret, or the secret of a version")
        if deleted:
            self._check_deleted(path, number)
        return VersionRow(found, incarnation, number, kek_id, dek_id, wrapped_dek, value, created_at, bool(deleted))

    def load_live_versions(self, path: str) -> list[int]:
        rows = self._load("SELECT version FROM versions WHERE path = ? AND deleted = 0 ORDER BY version", path)
        versions = [version for (version,) in rows]
        _check_numbers(*versions)
        return versions

    def list_secrets(self, prefix: str, *, after: str, limit: int, before: str = BEYOND_PATHS) -> list[SecretRow]:
        if not prefix:
            return self._list("path > ? AND path < ?", after, before, limit=limit)
        at = self._list("path = ? AND path > ? AND path < ?", prefix, after, before, limit=limit)
        # "0" is the byte behind "/": all that begins with "prefix/" is between the two.
        low, high = max(f"{prefix}/", after, key=str.encode), min(f"{prefix}0", before, key=str.encode)
        return at + self._list("path > ? AND path < ?", low, high, limit=limit - len(at))

    def find_request(self, caller: str, request_id: bytes) -> MadeByRequest | None:
        rows = self._load(_REQUEST, request_id, caller) if request_id else []
        if not rows:
            return None
        path, incarnation, _, revision, deleted = min(rows, key=lambda row: int(row[3]))
        versions = tuple(sorted(row[2] for row in rows if row[3] == revision))
        _check_numbers(revision, *versions)
        return MadeByRequest(path, incarnation, versions, revision, bool(deleted))

    def load_audit(self, *, limit: int, after: int) -> list[tuple[int, bytes]]:
        return self._load(_AUDIT, after, limit)

    def _list(self, where: str, *parameters: str, limit: int) -> list[SecretRow]:
        sql = f"{_SECRET} WHERE {where} AND live_versions > 0 ORDER BY path LIMIT ?"
        return [_to_secret(row) for row in self._load(sql, *parameters, max(limit, 0))]

    def _explain_missing(self, path: str, version: int) -> None:
        """Tell a version that never was from one whose row is lost: every version ever written has a row."""
        secret = self.load_secret(path)
        if secret is not None and version <= secret.current_version:
            raise CorruptRowError("store has lost a version of a secret")

    def _check_deleted(self, path: str, version: int) -> None:
        """Tell a version that somebody deleted from one whose mark was damaged."""
        if self._find("SELECT 1 FROM deletions WHERE path = ? AND version = ?", path, version) is None:
            raise CorruptRowError("store marks a version as deleted that nobody deleted")

    def _find(self, sql: str, *parameters: object) -> Any:
        """Return the only row of a query, or None."""
        try:
            self._execute(sql, parameters)
            return self._cursor.fetchone()
        except SQLITE_ERRORS as exc:
            raise translate(exc, "read") from exc

    def _load(self, sql: str, *parameters: object) -> list[Any]:
        try:
            return self._execute(sql, parameters).fetchall()
        except SQLITE_ERRORS as exc:
            raise translate(exc, "read") from exc


def _to_secret(row: Sequence[Any]) -> SecretRow:
    secret = SecretRow(*row)
    _check_numbers(secret.current_version)
    return secret


def _check_numbers(*numbers: int) -> None:
    """Refuse versions, revisions and the like that nobody has counted up to."""
    for number in numbers:
        if not 0 <= number < _NUMBERS_END:
            raise CorruptRowError("store has a number in a row that nothing comes to by counting")
