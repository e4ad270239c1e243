"""One change to the SQLite store, inside a savepoint that its caller opens and closes."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from common.errors import StoreUnavailableError
from nexus.store.protocol import ControlRow, Meta, Phase, Position, VersionRow
from nexus.store.sqlite.connection import SQLITE_ERRORS, translate
from nexus.store.sqlite.reader import SqliteReader

_SAVE_META: Final = """
    UPDATE meta SET phase = ?, cluster_id = ?, sealed = ?, timeline = ?, control_revision = ?,
        last_generation = ?, last_set_number = ?, last_kek_id = ?, last_init_attempt = ?, epoch = ?"""
_SAVE_CONTROL: Final = """
    INSERT INTO control (kind, name, body, digest) VALUES (?, ?, ?, ?)
    ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body, digest = excluded.digest"""
_NEXT_VERSION: Final = """
    UPDATE secrets SET current_version = current_version + 1, live_versions = live_versions + ?, updated_at = ?
    WHERE path = ? AND incarnation = ? AND current_version = ? - 1"""
_INSERT_VERSION: Final = """
    INSERT INTO versions (path, incarnation, version, kek_id, dek_id, wrapped_dek, value, created_at, deleted,
        revision, caller, request_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_INSERT_DELETION: Final = "INSERT INTO deletions (path, version, revision, caller, request_id) VALUES (?, ?, ?, ?, ?)"
_COUNT_DELETED: Final = """
    UPDATE secrets SET live_versions = live_versions - ?, updated_at = coalesce(?, updated_at) WHERE path = ?"""
_APPEND_AUDIT: Final = """
    INSERT INTO audit_outbox (revision, position, entry)
    SELECT ?1, coalesce(max(position) + 1, 0), ?2 FROM audit_outbox WHERE revision = ?1"""


class SqliteWriter(SqliteReader):
    """Once a statement has failed, every further one does, and the change is lost."""

    __slots__ = ("_failure", "_touched_control", "basis", "revision", "standing")

    def __init__(self, connection: sqlite3.Connection, basis: Position) -> None:
        """*basis* is where the store stood before the change."""
        super().__init__(connection)
        self.basis = self.standing = basis
        self.revision = basis.revision + 1
        self._touched_control = False
        self._failure: StoreUnavailableError | None = None

    def save_meta(self, meta: Meta) -> None:
        head = (str(meta.phase), meta.cluster_id, int(meta.sealed), meta.timeline, meta.control_revision)
        last = (meta.last_generation, meta.last_set_number, meta.last_kek_id, meta.last_init_attempt)
        self._change(_SAVE_META, *head, *last, meta.epoch)
        self._position = None
        self.standing = Position(meta.timeline, self.basis.revision, meta.control_revision, meta.epoch)

    def save_control(self, row: ControlRow) -> None:
        self._touched_control = True
        self._change(_SAVE_CONTROL, row.kind, row.name, row.body, row.digest)

    def delete_control(self, kind: str, name: str) -> bool:
        self._touched_control = True
        return self._change("DELETE FROM control WHERE kind = ? AND name = ?", kind, name) > 0

    def insert_version(self, row: VersionRow, *, caller: str, request_id: bytes) -> None:
        live = int(not row.deleted)
        if row.version == 1:
            head = (row.path, row.incarnation, live, row.created_at)
            self._change("INSERT INTO secrets VALUES (?1, ?2, 1, ?3, ?4)", *head)
        elif not self._change(_NEXT_VERSION, live, row.created_at, row.path, row.incarnation, row.version):
            raise self._lost(f"version {row.version} is not the next one of this incarnation")
        keys = (row.path, row.incarnation, row.version, row.kek_id, row.dek_id)
        body = (row.wrapped_dek, row.value, row.created_at, int(row.deleted))
        self._change(_INSERT_VERSION, *keys, *body, self.revision, caller, request_id or None)

    def mark_deleted(
        self, path: str, versions: Sequence[int], *, caller: str, request_id: bytes, updated_at: int | None = None
    ) -> None:
        for version in versions:
            sql = "UPDATE versions SET deleted = 1 WHERE path = ? AND version = ? AND deleted = 0"
            if not self._change(sql, path, version):
                raise self._lost(f"version {version} is not there, or already marked as deleted")
            row = (path, version, self.revision, caller, request_id or None)
            self._change(_INSERT_DELETION, *row)
        self._change(_COUNT_DELETED, len(versions), updated_at, path)

    def delete_secret(self, path: str) -> None:
        for table in ("deletions", "versions", "secrets"):
            self._change(f"DELETE FROM {table} WHERE path = ?", path)

    def append_audit(self, entry: bytes) -> None:
        self._change(_APPEND_AUDIT, self.revision, entry)

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

    def discard_audit(self, through: int) -> None:
        self._change("DELETE FROM audit_outbox WHERE revision <= ?", through)

    def _change(self, sql: str, *parameters: object) -> int:
        """Return the number of rows changed."""
        if self._failure is not None:
            raise StoreUnavailableError("change goes on after a statement of it failed") from self._failure
        try:
            return self._execute(sql, parameters).rowcount
        except SQLITE_ERRORS as exc:
            error = translate(exc, "write")
            self._failure = error if isinstance(error, StoreUnavailableError) else StoreUnavailableError(str(error))
            raise error from exc

    def _lost(self, why: str) -> StoreUnavailableError:
        self._failure = StoreUnavailableError(f"change is lost: {why}")
        return self._failure
