"""Queries of the SQLite store over one connection."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from common.errors import CorruptRowError
from nexus.store.protocol import (
    BEYOND_PATHS,
    BEYOND_VERSIONS,
    MAX_ENTRY,
    AuditHead,
    ControlRow,
    HistoryRow,
    ListedSecret,
    MadeByRequest,
    Meta,
    OutboxRow,
    Phase,
    Position,
    RequestRow,
    SecretRow,
    VersionRow,
    VersionStamp,
    VersionState,
)
from nexus.store.rewrapping import QuarantineRow, VersionKey, WrappedRow
from nexus.store.sqlite.connection import SQLITE_ERRORS, translate

_META: Final = """
    SELECT phase, cluster_id, sealed, timeline, revision, control_revision,
           last_generation, last_set_number, last_kek_id, last_init_attempt, epoch, generation, kek_id FROM meta"""
POSITION: Final = "SELECT timeline, revision, control_revision, epoch, generation, kek_id FROM meta"
# One row in any case, with nothing but the position when there is no such version: the position costs 1 or 2 µs here,
# and 3 in a query of its own.
_VERSION: Final = """
    SELECT v.path, v.incarnation, v.version, v.kek_id, v.dek_id, v.wrapped_dek, v.value, v.created_at, v.deleted,
           s.current_version, s.first_version,
           m.timeline, m.revision, m.control_revision, m.epoch, m.generation, m.kek_id
    FROM meta AS m LEFT JOIN secrets AS s ON s.path = ?1 LEFT JOIN versions AS v ON v.path = ?1{} WHERE m.id = 1"""
_VERSION_EXACT: Final = _VERSION.format(" AND v.version = ?2")
_VERSION_NEWEST: Final = _VERSION.format("") + " ORDER BY v.version DESC LIMIT 1"
_SECRET: Final = """
    SELECT path, incarnation, current_version, updated_at, first_version, max_versions FROM secrets WHERE path = ?"""
_LISTED: Final = """
    SELECT s.path, s.incarnation, s.current_version, s.updated_at, s.live_versions,
           CASE s.live_versions WHEN 0 THEN 0 ELSE
               (SELECT v.version FROM versions AS v WHERE v.path = s.path AND v.deleted = 0
                ORDER BY v.version DESC LIMIT 1) END
    FROM secrets AS s WHERE {} AND {} ORDER BY s.path LIMIT ?"""
_BETWEEN: Final = "s.path > ? AND s.path < ?"
_IS_LIVE: Final = "s.live_versions > 0"
_IS_KEPT: Final = "EXISTS (SELECT 1 FROM versions AS v WHERE v.path = s.path)"
_HISTORY: Final = """
    SELECT version, deleted <> 0 AND NOT EXISTS (
               SELECT 1 FROM deletions AS d WHERE d.path = v.path AND d.version = v.version), deleted, created_at, 0
    FROM versions AS v WHERE path = ?1 AND incarnation = ?2 AND version < ?3
    UNION ALL
    SELECT version, 0, NULL, created_at, destroyed_at FROM destroyed
    WHERE path = ?1 AND incarnation = ?2 AND version < ?3
    ORDER BY version DESC LIMIT ?4"""
_DESTROYED: Final = "SELECT 1 FROM destroyed WHERE path = ? AND incarnation = ? AND version = ?"
_NOBODY_DELETED: Final = "store marks a version as deleted that nobody deleted"
_STAMPS: Final = """
    SELECT path, version, revision, created_at, deleted FROM versions
    WHERE (path, version) > (?, ?) ORDER BY path, version LIMIT ?"""
_REQUEST: Final = """
    SELECT request_id, caller, rpc, path, generation, mac, incarnation, versions, revision, made_at
    FROM requests WHERE request_id = ? AND caller = ?"""
# The oldest alone are looked at: that needs no index, since they were numbered as they were made.
OUTDATED_REQUESTS: Final = """
    FROM requests WHERE id IN (SELECT id FROM requests ORDER BY id LIMIT ?) AND NOT made_at BETWEEN ? AND ?"""

# Far above what a store can count to, and far enough below what SQLite can hold for everything that is added.
_NUMBERS_END: Final = 1 << 62
_AUDIT: Final = f"""
    SELECT nexus, revision, position, substr(entry, 1, {MAX_ENTRY + 1}), mac FROM audit_outbox
    WHERE (revision, position) > (?, ?) AND (revision, position) <= (?, ?) AND nexus IN (?, '')
    ORDER BY revision, position LIMIT ?"""
_HEADS: Final = "SELECT nexus, timeline, seq, hash, revision, mac FROM audit_head"
LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1  # integers of SQLite

# Text comes as bytes: one that does not decode must not hide the other rows.
_WRAPPED: Final = """
    SELECT v.id, CAST(v.path AS BLOB), v.incarnation, v.version, v.kek_id, v.dek_id, v.wrapped_dek FROM versions AS v"""
_IN_QUARANTINE: Final = """EXISTS (
    SELECT 1 FROM quarantine AS q
    WHERE q.path = v.path AND q.incarnation = v.incarnation AND q.version = v.version{})"""
# In two halves: SQLite begins `(kek_id, id) > (?, ?)` at the first row of the KEK, and so reads all rows before the id
# again.
_OUTDATED_SAME_KEK: Final = f"""{_WRAPPED}
    WHERE v.kek_id = ? AND v.id > ? AND v.kek_id < ? AND NOT {_IN_QUARANTINE.format("")} ORDER BY v.id LIMIT ?"""
_OUTDATED_NEXT_KEKS: Final = f"""{_WRAPPED}
    WHERE v.kek_id > ? AND v.kek_id < ? AND NOT {_IN_QUARANTINE.format("")} ORDER BY v.kek_id, v.id LIMIT ?"""
_SCAN: Final = f"{_WRAPPED} NOT INDEXED WHERE v.id > ? ORDER BY v.id LIMIT ?"
_ABANDONED: Final = _IN_QUARANTINE.format(" AND q.abandoned_by IS NOT NULL")
_UNDER_KEK: Final = f"SELECT 1 FROM versions AS v WHERE v.kek_id = ? AND NOT {_ABANDONED} LIMIT 1"
_UNDECIDED: Final = """
    SELECT 1 FROM quarantine AS q WHERE q.abandoned_by IS NULL AND EXISTS (
    SELECT 1 FROM versions AS v
    WHERE v.path = q.path AND v.version = q.version AND v.incarnation = q.incarnation) LIMIT 1"""
_COUNT_ABANDONED: Final = f"SELECT count(*) FROM versions AS v WHERE v.kek_id = ? AND {_ABANDONED}"
_QUARANTINE: Final = """
    SELECT CAST(path AS BLOB), incarnation, version, kek_id, CAST(reason AS BLOB), found_at,
        CAST(coalesce(abandoned_by, '') AS BLOB) FROM quarantine
    WHERE (path, incarnation, version) > (CAST(? AS TEXT), ?, ?) ORDER BY path, incarnation, version LIMIT ?"""
_BEFORE_ALL: Final = VersionKey("", b"", LOWEST)


class SqliteReader:
    """Reads over one connection, which one thread uses at a time."""

    __slots__ = ("_cursor", "_execute", "_is_known", "_position", "connection")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._cursor = connection.cursor()
        self._execute = self._cursor.execute
        self._position = Position(0, 0, 0, 0)  # of the state that is read, where it is known; kept from read to read
        self._is_known = False

    def begin(self) -> None:
        """Fix one committed state, from the first query on."""
        self._is_known = False
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

    def load_position(self) -> Position:
        if not self._is_known:
            row = self._find(POSITION)
            if row is None:
                raise CorruptRowError("store has no meta row")
            self._know(row)
        return self._position

    def _know(self, position: tuple[int, ...]) -> None:
        if position != self._position:  # to make one costs more than the whole query of it
            self._position = Position(*position)
        self._is_known = True

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
        row = self._find(_SECRET, path)
        return None if row is None else _to_secret(row)

    def load_version(self, path: str, version: int) -> VersionRow | None:
        row = self._find(_VERSION_EXACT, path, version) if version else self._find(_VERSION_NEWEST, path)
        if row is None:
            raise CorruptRowError("store has no meta row")
        found, incarnation, number, kek_id, dek_id, wrapped_dek, value, created_at, deleted, newest, first = row[:11]
        self._know(row[11:])
        if found is None:
            self._explain_missing(path, version)
            return None
        if found != path or (version and number != version):
            raise CorruptRowError("store's index of versions leads to another row")
        _check_numbers(number)
        if newest is None or not first <= number <= newest:
            raise CorruptRowError("store has lost a version of a secret, or the secret of a version")
        if not version and number < newest:  # a damaged index must not pass an older version off as the newest
            self._explain_missing(path, newest)
            return None
        if deleted:
            self._check_deleted(path, number)
        return VersionRow(found, incarnation, number, kek_id, dek_id, wrapped_dek, value, created_at, bool(deleted))

    def load_live_versions(self, path: str) -> list[int]:
        rows = self._load("SELECT version FROM versions WHERE path = ? AND deleted = 0 ORDER BY version", path)
        versions = [version for (version,) in rows]
        _check_numbers(*versions)
        return versions

    def load_kept_versions(self, path: str) -> list[int]:
        rows = self._load("SELECT version FROM versions WHERE path = ? ORDER BY version", path)
        versions = [version for (version,) in rows]
        _check_numbers(*versions)
        return versions

    def load_history(self, path: str, *, before: int = BEYOND_VERSIONS, limit: int) -> list[HistoryRow]:
        secret = self.load_secret(path)
        if secret is None:
            return []
        rows = self._load(_HISTORY, path, secret.incarnation, before, limit + 1)
        versions = range(min(before - 1, secret.current_version), secret.first_version - 1, -1)
        if [row[0] for row in rows] != list(versions[: limit + 1]):
            raise CorruptRowError("store has lost a version of a secret, or counts another one")
        return [_to_history(*row) for row in rows[:limit]]

    def list_stamps(self, *, after: tuple[str, int], limit: int) -> list[VersionStamp]:
        rows = self._load(_STAMPS, *after, limit)
        return [VersionStamp(path, number, revision, at, bool(deleted)) for path, number, revision, at, deleted in rows]

    def list_secrets(
        self, prefix: str, *, after: str, limit: int, before: str = BEYOND_PATHS, include_deleted: bool = False
    ) -> list[ListedSecret]:
        wanted = _IS_KEPT if include_deleted else _IS_LIVE
        if not prefix:
            return self._list(_BETWEEN, wanted, after, before, limit=limit)
        at = self._list(f"s.path = ? AND {_BETWEEN}", wanted, prefix, after, before, limit=limit)
        # "0" is the byte behind "/": all that begins with "prefix/" is between the two.
        low, high = max(f"{prefix}/", after, key=str.encode), min(f"{prefix}0", before, key=str.encode)
        return at + self._list(_BETWEEN, wanted, low, high, limit=limit - len(at))

    def find_request(self, caller: str, request_id: bytes) -> RequestRow | None:
        row = self._find(_REQUEST, request_id, caller)
        if row is None:
            return None
        *asked, incarnation, versions, revision, made_at = row
        found_id, found_caller, rpc, path, generation, mac = asked
        if (found_id, found_caller) != (request_id, caller):
            raise CorruptRowError("store's index of requests leads to another row")
        _check_numbers(generation, revision)
        made = MadeByRequest(incarnation, _parse_versions(versions), revision)
        return RequestRow(found_id, found_caller, rpc, path, generation, mac or b"", made, made_at)

    def has_outdated_requests(self, made_from: int, made_until: int, limit: int) -> bool:
        """Whether `SqliteStore.discard_requests` would remove any."""
        return self._find(f"SELECT 1 {OUTDATED_REQUESTS} LIMIT 1", limit, made_from, made_until) is not None

    def load_audit(
        self, nexus: str, *, after: tuple[int, int] | None = None, through: tuple[int, int] | None = None, limit: int
    ) -> list[OutboxRow]:
        low, high = after or (LOWEST, LOWEST), through or (_HIGHEST, _HIGHEST)
        return [OutboxRow(*row) for row in self._load(_AUDIT, *low, *high, nexus, limit)]

    def load_audit_head(self, nexus: str) -> AuditHead | None:
        row = self._find(f"{_HEADS} WHERE nexus = ?", nexus)
        return None if row is None else AuditHead(*row)

    def load_audit_heads(self) -> list[AuditHead]:
        return [AuditHead(*row) for row in self._load(f"{_HEADS} ORDER BY nexus")]

    def list_outdated(self, kek_id: int, *, after: tuple[int, int] | None = None, limit: int) -> list[WrappedRow]:
        kek_before, row_id = after or (LOWEST, LOWEST)
        rows = self._load(_OUTDATED_SAME_KEK, kek_before, row_id, kek_id, limit)
        if len(rows) < limit:
            rows += self._load(_OUTDATED_NEXT_KEKS, kek_before, kek_id, limit - len(rows))
        return [_to_wrapped(row) for row in rows]

    def scan_versions(self, *, after: int | None = None, limit: int) -> list[WrappedRow]:
        low = LOWEST if after is None else after
        return [_to_wrapped(row) for row in self._load(_SCAN, low, limit)]

    def load_value(self, row: WrappedRow) -> bytes | None:
        sql = "SELECT value FROM versions WHERE id = ? AND kek_id = ? AND wrapped_dek = ?"
        found = self._find(sql, row.row_id, row.kek_id, row.wrapped_dek)
        return None if found is None else bytes(found[0])

    def count_by_kek(self) -> dict[int, int]:
        return dict(self._load("SELECT kek_id, count(*) FROM versions GROUP BY kek_id ORDER BY kek_id"))

    def has_rows_under(self, kek_id: int) -> bool:
        return self._find(_UNDER_KEK, kek_id) is not None

    def list_quarantine(self, *, after: VersionKey | None = None, limit: int) -> list[QuarantineRow]:
        path, incarnation, version = after or _BEFORE_ALL
        rows = self._load(_QUARANTINE, path.encode(errors="surrogateescape"), incarnation, version, limit)
        return [_to_quarantined(*row) for row in rows]

    def has_undecided(self) -> bool:
        return self._find(_UNDECIDED) is not None

    def count_abandoned(self, kek_id: int) -> int:
        return int(self._find(_COUNT_ABANDONED, kek_id)[0])

    def _list(self, place: str, wanted: str, *parameters: str, limit: int) -> list[ListedSecret]:
        return [_to_listed(*row) for row in self._load(_LISTED.format(place, wanted), *parameters, max(limit, 0))]

    def _explain_missing(self, path: str, version: int) -> None:
        """Tell a version that never was, or is destroyed, from one whose row is lost; 0: the newest."""
        secret = self.load_secret(path)
        if secret is None:
            return
        number = version or secret.current_version
        was_destroyed = self._find(_DESTROYED, path, secret.incarnation, number) is not None
        if was_destroyed != (secret.first_version <= number <= secret.current_version):
            raise CorruptRowError("store has lost a version of a secret, or counts another one")

    def _check_deleted(self, path: str, version: int) -> None:
        """Tell a version that somebody deleted from one whose mark was damaged."""
        if self._find("SELECT 1 FROM deletions WHERE path = ? AND version = ?", path, version) is None:
            raise CorruptRowError(_NOBODY_DELETED)

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


def _to_wrapped(row: Sequence[Any]) -> WrappedRow:
    row_id, path, *rest = row
    return WrappedRow(row_id, path.decode(errors="surrogateescape"), *rest)


def _to_quarantined(
    path: bytes, incarnation: bytes, version: int, kek_id: int, reason: bytes, found_at: int, abandoned_by: bytes
) -> QuarantineRow:
    key = VersionKey(path.decode(errors="surrogateescape"), incarnation, version)
    return QuarantineRow(key, kek_id, reason.decode(errors="replace"), found_at, abandoned_by.decode(errors="replace"))


def _to_secret(row: Sequence[Any]) -> SecretRow:
    secret = SecretRow(*row)
    _check_numbers(secret.current_version, secret.first_version, secret.max_versions)
    return secret


def _to_listed(path: str, incarnation: bytes, current: int, updated_at: int, live: int, newest: Any) -> ListedSecret:
    if newest is None or newest > current:
        raise CorruptRowError(f"store has lost {live} versions of a secret, or the secret of a version")
    _check_numbers(current, newest)
    return ListedSecret(path, incarnation, current, updated_at, newest)


def _to_history(version: int, is_damaged: int, deleted: int | None, created_at: int, destroyed_at: int) -> HistoryRow:
    if is_damaged:
        raise CorruptRowError(_NOBODY_DELETED)
    if deleted is None:
        return HistoryRow(version, VersionState.DESTROYED, created_at, destroyed_at)
    return HistoryRow(version, VersionState.DELETED if deleted else VersionState.LIVE, created_at, 0)


def _parse_versions(text: str) -> tuple[int, ...]:
    """Read the versions that a request made: decimal numbers with a space between them, in any order."""
    words = text.split(" ")
    if not all(word.isascii() and word.isdecimal() and len(word) < 20 for word in words):
        raise CorruptRowError("store has a request whose versions are no numbers")
    versions = tuple(sorted(map(int, words)))
    _check_numbers(*versions)
    return versions


def _check_numbers(*numbers: int) -> None:
    """Refuse versions, revisions and the like that nobody has counted up to."""
    for number in numbers:
        if not 0 <= number < _NUMBERS_END:
            raise CorruptRowError("store has a number in a row that nothing comes to by counting")
