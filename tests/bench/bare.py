"""The baseline of puts: SQLite alone, committing the rows of a put, one commit for each, from one thread."""

import os
import sqlite3
from itertools import count, cycle
from pathlib import Path
from time import perf_counter

from common.forms.audit.entry import Entry
from common.forms.codec import fields
from common.keys.derive import DIGEST_SIZE
from nexus.keys.wrap import WRAP_SIZE
from nexus.store.sqlite.migrations import MIGRATIONS
from tests.bench.load import FIELDS
from tests.bench.machine import SERVER_CORE, on_core

_PATHS = 32
_INSERT_SECRET = (
    "INSERT INTO secrets (path, incarnation, current_version, live_versions, updated_at) VALUES (?, ?, 0, 0, 0)"
)
_VALUE_SIZE = 2 + len(fields(*(part for name, value in FIELDS.items() for part in (name.encode(), value)))) + 16


class BareStore:
    """A file with the schema of a nexus and `synchronous=FULL`; the rows have the sizes of real ones."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        for statements in MIGRATIONS:
            for statement in statements:
                execute(statement)
        self._incarnation = os.urandom(16)
        self._paths = [f"bench/written/{number}" for number in range(_PATHS)]
        for place in self._paths:
            execute(_INSERT_SECRET, (place, self._incarnation))
        self._rows = zip(count(_PATHS), cycle(self._paths), strict=False)

    def close(self) -> None:
        self._connection.close()

    def commit_for(self, seconds: float) -> float:
        """Commit for a given time, on the core that a server under load has; return the commits per second."""
        with on_core(SERVER_CORE):
            done, started = 0, perf_counter()
            while (passed := perf_counter() - started) < seconds:
                self._commit()
                done += 1
            return done / passed

    def _commit(self) -> None:
        execute = self._connection.execute
        revision, path = next(self._rows)
        caller = "spiffe://dev.shardhold/bench/app"
        request_id = os.urandom(16)
        entry = Entry(
            at=revision,
            actor=caller,
            action="secret.put",
            address="ipv4:127.0.0.1:40000",
            path=path,
            version=revision,
            policy="bench-app",
            request_id=request_id.hex(),
        )
        row = (path, self._incarnation, revision // _PATHS, 1, os.urandom(16), os.urandom(WRAP_SIZE))
        execute("BEGIN IMMEDIATE")
        execute("UPDATE secrets SET current_version = ?, live_versions = ? WHERE path = ?", (row[2], row[2], path))
        execute(
            "INSERT INTO versions (path, incarnation, version, kek_id, dek_id, wrapped_dek, value, created_at, deleted,"
            " revision, caller) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
            (*row, os.urandom(_VALUE_SIZE), revision, revision, caller),
        )
        asked = (request_id, caller, "PutSecret", path, 1, os.urandom(DIGEST_SIZE))
        execute(
            "INSERT INTO requests (request_id, caller, rpc, path, generation, mac, incarnation, versions, revision,"
            " made_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*asked, self._incarnation, str(row[2]), revision, revision),
        )
        execute("INSERT INTO audit_outbox VALUES (?, 0, ?)", (revision, entry.encode()))
        execute("UPDATE meta SET revision = ?", (revision,))
        execute("COMMIT")
