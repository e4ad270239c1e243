"""One change to the SQLite store, inside a savepoint that its caller opens and closes."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from common.errors import ConflictError, StoreUnavailableError
from nexus.store.protocol import (
    MAX_ENTRY,
    AuditHead,
    ControlRow,
    Meta,
    OutboxRow,
    Phase,
    Position,
    RequestRow,
    VersionRow,
)
from nexus.store.rewrapping import Reseal, Rewrap, VersionKey, WrappedRow
from nexus.store.sqlite.connection import SQLITE_ERRORS, translate
from nexus.store.sqlite.reader import LOWEST, OUTDATED_REQUESTS, SqliteReader

_SAVE_META: Final = """
    UPDATE meta SET phase = ?, cluster_id = ?, sealed = ?, timeline = ?, control_revision = ?,
        last_generation = ?, last_set_number = ?, last_kek_id = ?, last_init_attempt = ?, epoch = ?,
        generation = ?, kek_id = ?"""
_SAVE_CONTROL: Final = """
    INSERT INTO control (kind, name, body, digest) VALUES (?, ?, ?, ?)
    ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body, digest = excluded.digest"""
_INSERT_SECRET: Final = """
    INSERT INTO secrets (path, incarnation, current_version, live_versions, updated_at) VALUES (?, ?, 1, ?, ?)"""
_NEXT_VERSION: Final = """
    UPDATE secrets SET current_version = current_version + 1, live_versions = live_versions + ?, updated_at = ?
    WHERE path = ? AND incarnation = ? AND current_version = ? - 1"""
_INSERT_VERSION: Final = """
    INSERT INTO versions (path, incarnation, version, kek_id, dek_id, wrapped_dek, value, created_at, deleted,
        revision, caller) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_INSERT_DELETION: Final = "INSERT INTO deletions (path, version, revision, caller) VALUES (?, ?, ?, ?)"
_INSERT_REQUEST: Final = """
    INSERT INTO requests (request_id, caller, rpc, path, generation, mac, incarnation, versions, revision, made_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_COUNT_DELETED: Final = """
    UPDATE secrets SET live_versions = live_versions - ?, updated_at = coalesce(?, updated_at) WHERE path = ?"""
_COUNT_UNDELETED: Final = "UPDATE secrets SET live_versions = live_versions + ? WHERE path = ?"
_INSERT_DESTROYED: Final = """
    INSERT INTO destroyed (path, incarnation, version, created_at, destroyed_at, caller)
    SELECT path, incarnation, version, created_at, ?, ? FROM versions WHERE path = ? AND version = ?"""
_COUNT_DESTROYED: Final = """
    UPDATE secrets SET live_versions = live_versions -
        (SELECT count(*) FROM versions WHERE path = ?1 AND version {0} ?2 AND deleted = 0)
    WHERE path = ?1"""
_BEGIN_AT: Final = "UPDATE secrets SET first_version = ?2 WHERE path = ?1 AND current_version >= ?2"
_APPEND_AUDIT: Final = """
    INSERT INTO audit_outbox (nexus, revision, position, entry, mac) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (revision, position) DO UPDATE SET nexus = excluded.nexus, entry = excluded.entry, mac = excluded.mac"""
_DISCARD_AUDIT: Final = f"""
    DELETE FROM audit_outbox WHERE nexus = ? AND revision = ? AND position = ?
    AND substr(entry, 1, {MAX_ENTRY + 1}) = ? AND mac IS ?"""
_EVERY_ROW: Final = f"""
    SELECT nexus, revision, position, substr(entry, 1, {MAX_ENTRY + 1}), mac FROM audit_outbox
    WHERE (revision, position) > (?, ?) ORDER BY revision, position LIMIT ?"""
_SET_MAC: Final = "UPDATE audit_outbox SET mac = ? WHERE revision = ? AND position = ?"
_ADOPTED_AT_ONCE: Final = 500  # rows
_SAVE_HEAD: Final = (
    "INSERT OR REPLACE INTO audit_head (nexus, timeline, seq, hash, revision, mac) VALUES (?, ?, ?, ?, ?, ?)"
)
_REWRAP: Final = "UPDATE versions SET kek_id = ?, wrapped_dek = ? WHERE id = ? AND kek_id = ? AND wrapped_dek = ?"
_RESEAL: Final = """
    UPDATE versions SET kek_id = ?, dek_id = ?, wrapped_dek = ?, value = ?
    WHERE id = ? AND kek_id = ? AND wrapped_dek = ?"""
_QUARANTINE: Final = """
    INSERT OR IGNORE INTO quarantine (path, incarnation, version, kek_id, reason, found_at)
    SELECT path, incarnation, version, kek_id, ?, ? FROM versions WHERE id = ? AND kek_id = ? AND wrapped_dek = ?"""
_TABLES_OF_VERSION: Final = ("deletions", "quarantine", "versions")
_OF_KEY: Final = "path = ? AND incarnation = ? AND version = ?"
_ABANDON: Final = f"UPDATE quarantine SET abandoned_by = ? WHERE {_OF_KEY} AND abandoned_by IS NULL"


class SqliteWriter(SqliteReader):
    """Once a statement has failed, every further one does, and the change is lost."""

    __slots__ = ("_entries", "_failure", "_touched_control", "basis", "has_removed", "revision", "standing")

    def __init__(self, connection: sqlite3.Connection, basis: Position) -> None:
        """*basis* is where the store stood before the change."""
        super().__init__(connection)
        self.basis = self.standing = basis
        self.revision = basis.revision + 1
        self.has_removed = False  # versions, which are in the files until a scrub
        self._touched_control = False
        self._entries = 0
        self._failure: StoreUnavailableError | None = None

    def save_meta(self, meta: Meta) -> None:
        head = (str(meta.phase), meta.cluster_id, int(meta.sealed), meta.timeline, meta.control_revision)
        last = (meta.last_generation, meta.last_set_number, meta.last_kek_id, meta.last_init_attempt)
        self._change(_SAVE_META, *head, *last, meta.epoch, meta.generation, meta.kek_id)
        self._is_known = False
        self.standing = meta.position._replace(revision=self.basis.revision)

    def save_control(self, row: ControlRow) -> None:
        self._touched_control = True
        self._change(_SAVE_CONTROL, row.kind, row.name, row.body, row.digest)

    def delete_control(self, kind: str, name: str) -> bool:
        self._touched_control = True
        return self._change("DELETE FROM control WHERE kind = ? AND name = ?", kind, name) > 0

    def insert_version(self, row: VersionRow, *, caller: str) -> None:
        self._check_kek(row.kek_id)
        live = int(not row.deleted)
        if row.version == 1:
            head = (row.path, row.incarnation, live, row.created_at)
            self._change(_INSERT_SECRET, *head)
        elif not self._change(_NEXT_VERSION, live, row.created_at, row.path, row.incarnation, row.version):
            raise self._lost(f"version {row.version} is not the next one of this incarnation")
        keys = (row.path, row.incarnation, row.version, row.kek_id, row.dek_id)
        body = (row.wrapped_dek, row.value, row.created_at, int(row.deleted))
        self._change(_INSERT_VERSION, *keys, *body, self.revision, caller)

    def mark_deleted(self, path: str, versions: Sequence[int], *, caller: str, updated_at: int | None = None) -> None:
        for version in versions:
            sql = "UPDATE versions SET deleted = 1 WHERE path = ? AND version = ? AND deleted = 0"
            if not self._change(sql, path, version):
                raise self._lost(f"version {version} is not there, or already marked as deleted")
            self._change(_INSERT_DELETION, path, version, self.revision, caller)
        self._change(_COUNT_DELETED, len(versions), updated_at, path)

    def undelete(self, path: str, versions: Sequence[int]) -> None:
        for version in versions:
            sql = "UPDATE versions SET deleted = 0 WHERE path = ? AND version = ? AND deleted = 1"
            has_mark = self._change("DELETE FROM deletions WHERE path = ? AND version = ?", path, version)
            if not (self._change(sql, path, version) and has_mark):
                raise self._lost(f"version {version} is not marked as deleted")
        self._change(_COUNT_UNDELETED, len(versions), path)

    def destroy(self, path: str, versions: Sequence[int], *, caller: str, destroyed_at: int) -> None:
        for version in versions:
            self._change(_COUNT_DESTROYED.format("="), path, version)
            if not self._change(_INSERT_DESTROYED, destroyed_at, caller, path, version):
                raise self._lost(f"version {version} has no row")
            self._remove(_TABLES_OF_VERSION, "path = ? AND version = ?", path, version)

    def prune(self, path: str, *, below: int) -> None:
        self._change(_COUNT_DESTROYED.format("<"), path, below)
        self._remove((*_TABLES_OF_VERSION, "destroyed"), "path = ? AND version < ?", path, below)
        if not self._change(_BEGIN_AT, path, below):
            raise self._lost(f"version {below} is above the current one")

    def save_max_versions(self, path: str, max_versions: int) -> None:
        self._change("UPDATE secrets SET max_versions = ? WHERE path = ?", max_versions, path)

    def delete_secret(self, path: str) -> None:
        self._remove((*_TABLES_OF_VERSION, "destroyed", "secrets"), "path = ?", path)

    def save_request(self, row: RequestRow) -> None:
        asked = (row.request_id, row.caller, row.rpc, row.path, row.generation, row.mac or None)
        versions = " ".join(map(str, row.made.versions))
        self._change(_INSERT_REQUEST, *asked, row.made.incarnation, versions, row.made.revision, row.made_at)

    def append_audit(self, nexus: str, entry: bytes, authenticate: Callable[[int, int], bytes]) -> OutboxRow:
        position = self._entries
        row = OutboxRow(nexus, self.revision, position, entry, authenticate(self.revision, position))
        self._change(_APPEND_AUDIT, row.nexus, row.revision, row.position, row.entry, row.mac)
        self._entries += 1
        return row

    def adopt_audit(self, make_mac: Callable[[OutboxRow], bytes | None]) -> None:
        last = (LOWEST, LOWEST)
        while found := self._load(_EVERY_ROW, *last, _ADOPTED_AT_ONCE):
            for row in (OutboxRow(*one) for one in found):
                if (mac := make_mac(row)) is not None:
                    self._change(_SET_MAC, mac, row.revision, row.position)
                last = row.revision, row.position

    def save_audit_head(self, head: AuditHead) -> None:
        self._change(_SAVE_HEAD, head.nexus, head.timeline, head.seq, head.digest, head.revision, head.mac)

    def rewrap(self, rows: Sequence[Rewrap], *, epoch: int) -> int:
        self._check_job(epoch, rows)
        return self._change_many(_REWRAP, ((row.kek_id, row.wrapped_dek, *_find_by(row.before)) for row in rows))

    def reseal(self, rows: Sequence[Reseal], *, epoch: int) -> int:
        self._check_job(epoch, rows)
        sealed = ((row.kek_id, row.dek_id, row.wrapped_dek, row.value, *_find_by(row.before)) for row in rows)
        return self._change_many(_RESEAL, sealed)

    def quarantine(self, row: WrappedRow, *, reason: str, found_at: int) -> bool:
        return self._change(_QUARANTINE, reason, found_at, *_find_by(row)) > 0

    def retry_quarantined(self, key: VersionKey) -> bool:
        return self._change(f"DELETE FROM quarantine WHERE {_OF_KEY}", *key) > 0

    def abandon_quarantined(self, key: VersionKey, *, by: str) -> bool:
        return self._change(_ABANDON, by, *key) > 0

    def finish(self, *, counts: bool) -> None:
        """Take the revision if the change *counts*: the last thing in it.

        Raises:
            StoreUnavailableError: The change is lost.
        """
        if self._failure is not None:
            raise StoreUnavailableError("change went on after a statement of it failed") from self._failure
        before, now = self.basis, self.standing
        went_up = now.control_revision > before.control_revision
        if self._touched_control and not went_up and self.load_meta().phase is Phase.INITIALISED:
            raise self._lost(f"a control row changed, control revision {now.control_revision} did not")
        if now.epoch < before.epoch:
            raise self._lost(f"epoch went down from {before.epoch} to {now.epoch}")
        if counts:
            self._change("UPDATE meta SET revision = ?", self.revision)
            self.standing = now._replace(revision=self.revision)

    def discard_audit(self, rows: Sequence[OutboxRow], head: AuditHead | None, at: tuple[int, int] | None) -> bool:
        if at not in (None, (self.basis.timeline, self.basis.generation)):
            return False
        for row in rows:
            self._change(_DISCARD_AUDIT, row.nexus, row.revision, row.position, row.entry, row.mac)
        if head is not None:
            self.save_audit_head(head)
        return True

    def discard_requests(self, made_from: int, made_until: int, limit: int) -> int:
        return self._change(f"DELETE {OUTDATED_REQUESTS}", limit, made_from, made_until)

    def _remove(self, tables: Iterable[str], where: str, *parameters: object) -> None:
        for table in tables:
            count = self._change(f"DELETE FROM {table} WHERE {where}", *parameters)
            self.has_removed |= count > 0

    def _check_job(self, epoch: int, rows: Sequence[Rewrap | Reseal]) -> None:
        if self.basis.epoch != epoch:
            raise ConflictError(f"store is at epoch {self.basis.epoch}, want {epoch}")
        for kek_id in {row.kek_id for row in rows}:
            self._check_kek(kek_id)

    def _check_kek(self, kek_id: int) -> None:
        current = self.basis.kek_id
        if current and kek_id != current:
            raise self._lost(f"version is under KEK {kek_id}, want {current}")

    def _change(self, sql: str, *parameters: object) -> int:
        """Return the number of rows changed."""
        return self._run(self._cursor.execute, sql, parameters)

    def _change_many(self, sql: str, parameters: Iterable[tuple[object, ...]]) -> int:
        """Return the number of rows changed by all of them."""
        return self._run(self._cursor.executemany, sql, parameters)

    def _run(self, execute: Callable[[str, Any], sqlite3.Cursor], sql: str, parameters: Iterable[Any]) -> int:
        if self._failure is not None:
            raise StoreUnavailableError("change goes on after a statement of it failed") from self._failure
        try:
            return execute(sql, parameters).rowcount
        except SQLITE_ERRORS as exc:
            error = translate(exc, "write")
            self._failure = error if isinstance(error, StoreUnavailableError) else StoreUnavailableError(str(error))
            raise error from exc

    def _lost(self, why: str) -> StoreUnavailableError:
        self._failure = StoreUnavailableError(f"change is lost: {why}")
        return self._failure


def _find_by(row: WrappedRow) -> tuple[int, int, bytes]:
    """Return what finds a version as it was read: a wrap has a salt of its own."""
    return row.row_id, row.kek_id, row.wrapped_dek
