"""The schema of the SQLite store: numbered migrations, applied at open under the store's lock, forward only.

Migration n makes schema n out of schema n - 1, in one transaction; a released one is never edited. `PRAGMA
user_version` holds the schema's number. Control rows are migrated elsewhere, at ready, since that needs the key.
"""

import sqlite3
from pathlib import Path
from typing import Final

from common.errors import CorruptRowError, StoreUnavailableError
from nexus.store.sqlite.copies import keep_copy

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """
        CREATE TABLE meta (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            phase TEXT NOT NULL,
            cluster_id BLOB NOT NULL,
            sealed INTEGER NOT NULL,
            timeline INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            control_revision INTEGER NOT NULL,
            last_generation INTEGER NOT NULL,
            last_set_number INTEGER NOT NULL,
            last_kek_id INTEGER NOT NULL,
            last_init_attempt INTEGER NOT NULL
        ) STRICT
        """,
        "INSERT INTO meta VALUES (1, 'empty', x'', 0, 0, 0, 0, 0, 0, 0, 0)",
        """
        CREATE TABLE control (
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            body BLOB NOT NULL,
            digest BLOB NOT NULL CHECK (length(digest) = 32),
            PRIMARY KEY (kind, name)
        ) STRICT
        """,
        """
        CREATE TABLE secrets (
            path TEXT NOT NULL PRIMARY KEY,
            incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
            current_version INTEGER NOT NULL,
            live_versions INTEGER NOT NULL CHECK (live_versions >= 0),
            updated_at INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE TABLE versions (
            id INTEGER PRIMARY KEY,
            path TEXT NOT NULL REFERENCES secrets (path),
            version INTEGER NOT NULL,
            incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
            kek_id INTEGER NOT NULL,
            dek_id BLOB NOT NULL CHECK (length(dek_id) = 16),
            wrapped_dek BLOB NOT NULL,
            created_at INTEGER NOT NULL,
            deleted INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            caller TEXT NOT NULL,
            request_id BLOB CHECK (length(request_id) = 16),
            value BLOB NOT NULL,
            UNIQUE (path, version)
        ) STRICT
        """,
        """
        CREATE UNIQUE INDEX versions_by_request ON versions (request_id, caller) WHERE request_id IS NOT NULL
        """,
        """
        CREATE TABLE deletions (
            path TEXT NOT NULL REFERENCES secrets (path),
            version INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            caller TEXT NOT NULL,
            request_id BLOB CHECK (length(request_id) = 16),
            PRIMARY KEY (path, version)
        ) STRICT, WITHOUT ROWID
        """,
        """
        CREATE UNIQUE INDEX deletions_by_request ON deletions (request_id, caller, version) WHERE request_id IS NOT NULL
        """,
        """
        CREATE TABLE audit_outbox (
            revision INTEGER NOT NULL,
            position INTEGER NOT NULL,
            entry BLOB NOT NULL,
            PRIMARY KEY (revision, position)
        ) STRICT
        """,
    ),
    (
        "ALTER TABLE meta ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0",
        """
        CREATE TABLE requests (
            id INTEGER PRIMARY KEY,
            request_id BLOB NOT NULL CHECK (length(request_id) = 16),
            caller TEXT NOT NULL,
            rpc TEXT NOT NULL,
            path TEXT NOT NULL,
            generation INTEGER NOT NULL,
            mac BLOB CHECK (length(mac) = 32),
            incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
            versions TEXT NOT NULL,
            revision INTEGER NOT NULL,
            made_at INTEGER NOT NULL,
            UNIQUE (request_id, caller)
        ) STRICT
        """,
        # In the order in which they were made. Schema 1 has no time of a deletion: it counts as made now. The columns
        # request_id of both tables stay, empty from now on: taking them out would write every value anew.
        """
        INSERT OR IGNORE INTO requests
            (request_id, caller, rpc, path, generation, incarnation, versions, revision, made_at)
        SELECT request_id, caller, 'PutSecret', path, 0, incarnation, CAST(version AS TEXT), revision, created_at
        FROM versions WHERE request_id IS NOT NULL
        UNION ALL
        SELECT d.request_id, d.caller, 'DeleteSecret', d.path, 0, v.incarnation, group_concat(d.version, ' '),
            d.revision, CAST(strftime('%s', 'now') AS INTEGER) * 1000000
        FROM deletions AS d JOIN versions AS v ON v.path = d.path AND v.version = d.version
        WHERE d.request_id IS NOT NULL
        GROUP BY d.request_id, d.caller, d.path, v.incarnation, d.revision
        ORDER BY revision
        """,
        "DROP INDEX versions_by_request",
        "DROP INDEX deletions_by_request",
        "ALTER TABLE audit_outbox ADD COLUMN nexus TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE audit_outbox ADD COLUMN mac BLOB",
        """
        CREATE TABLE audit_head (
            nexus TEXT NOT NULL PRIMARY KEY,
            timeline INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            hash BLOB NOT NULL CHECK (length(hash) = 32),
            revision INTEGER NOT NULL,
            mac BLOB NOT NULL CHECK (length(mac) = 32)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        "ALTER TABLE meta ADD COLUMN generation INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE meta ADD COLUMN kek_id INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX versions_by_kek ON versions (kek_id)",
        # It refers to no other table: a version whose secret is lost goes into quarantine as well.
        """
        CREATE TABLE quarantine (
            path TEXT NOT NULL,
            incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
            version INTEGER NOT NULL,
            kek_id INTEGER NOT NULL,
            reason TEXT NOT NULL,
            found_at INTEGER NOT NULL,
            abandoned_by TEXT,
            PRIMARY KEY (path, incarnation, version)
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        "ALTER TABLE meta ADD COLUMN restored INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE meta ADD COLUMN file TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE secrets ADD COLUMN first_version INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE secrets ADD COLUMN max_versions INTEGER NOT NULL DEFAULT 0",
        """
        CREATE TABLE destroyed (
            path TEXT NOT NULL REFERENCES secrets (path),
            incarnation BLOB NOT NULL CHECK (length(incarnation) = 16),
            version INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            destroyed_at INTEGER NOT NULL,
            caller TEXT NOT NULL,
            PRIMARY KEY (path, version)
        ) STRICT, WITHOUT ROWID
        """,
    ),
)
NEWEST: Final = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema to the newest number, and check that it is exactly the one that the migrations make.

    The connection, to the store at *path*, is in autocommit mode, and the caller holds the store's lock. Before a
    migration the store is copied (`nexus.store.sqlite.copies`).

    Raises:
        StoreUnavailableError: A newer program wrote this store, or it cannot be copied; nothing was changed.
        CorruptRowError: The schema is not what the migrations make.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > NEWEST:
        raise StoreUnavailableError(f"store has schema {found}, want at most {NEWEST}: a newer program wrote it")
    if found < NEWEST:
        keep_copy(connection, path, found)
        _apply(connection, found)
    wanted = _wanted_schema()
    stored = _schema(connection)
    if stored != wanted:
        names = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
        raise CorruptRowError(f"store's schema {NEWEST} differs from the program's in {', '.join(names)}")


def _apply(connection: sqlite3.Connection, found: int) -> None:
    for number, statements in enumerate(MIGRATIONS[found:], start=found + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _schema(connection: sqlite3.Connection) -> dict[str, tuple[str, str, str | None]]:
    rows = connection.execute("SELECT name, type, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%'")
    return {name: (kind, table, sql) for name, kind, table, sql in rows}


def _wanted_schema() -> dict[str, tuple[str, str, str | None]]:
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        _apply(memory, 0)
        return _schema(memory)
    finally:
        memory.close()
