"""The keyring job beside a bare loop that does the same HMACs, AEAD and SQL for each row, and nothing else."""

import contextlib
import functools
import hmac
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from common.keys.protected import Level, ProtectedMemory
from nexus.keys.envelope import Place
from nexus.keys.keyring import bind_kek
from nexus.keys.wrap import FORMAT, NONCE, SALT_SIZE, USE_AS_COMMITMENT, USE_AS_KEY, describe_use
from tests.bench.machine import SERVER_CORE, on_core
from tests.bench.rounds import compare, interleave
from tests.bench.row import Row, at_least, make_row, per_second
from tests.bench.stage import Stage
from tests.nexus import cluster
from tests.nexus.admin.operations.rekeyed import NEW, OLD, Rekeyed, make_rekeyed
from tests.nexus.failing_store import FailingStore

ROWS = 4_000
BATCH = 100  # as the job's
_LIST = "SELECT id, wrapped_dek FROM versions WHERE kek_id = ? AND id > ? ORDER BY id LIMIT ?"
_REPLACE = "UPDATE versions SET kek_id = ?, wrapped_dek = ? WHERE id = ? AND kek_id = ? AND wrapped_dek = ?"


def rewrap(stage: Stage) -> Iterator[Row]:
    """Measure how many rows the keyring job wraps anew in a second of CPU."""
    pairs = interleave(
        functools.partial(_measure, _run_job), functools.partial(_measure, _run_bare), rounds=stage.pace.rounds
    )
    found = compare(pairs, lambda rows_per_second: rows_per_second)
    work = f"rows wrapped anew in a second of CPU, of {ROWS:,}; by a bare loop"
    yield make_row(work, found, per_second, at_least(0.8, found.ratio.median))


def _measure(run: Callable[[Rekeyed], float]) -> float:
    """Make a rotated store, bring all its rows by *run*, and return rows per CPU second."""
    memory = ProtectedMemory(highest=Level.LOCKED)
    with tempfile.TemporaryDirectory(prefix="shardhold-rewrap-") as name, contextlib.ExitStack() as ending:
        store = cluster.open_store(Path(name))
        ending.callback(store.close)
        found = functools.partial(cluster.found, store, memory)
        rekeyed = make_rekeyed(found, Path(name), FailingStore(store), memory, rows=ROWS)
        ending.callback(rekeyed.core.close)
        with on_core(SERVER_CORE):
            seconds = run(rekeyed)
        return ROWS / seconds


def _run_job(rekeyed: Rekeyed) -> float:
    began = time.process_time()
    for _ in range(ROWS // BATCH):
        rekeyed.job.step()
    taken = time.process_time() - began
    assert rekeyed.keks_of_rows == {NEW: ROWS}
    return taken


def _run_bare(rekeyed: Rekeyed) -> float:
    old, new = bytes(rekeyed.keyring.find_kek(OLD)), bytes(rekeyed.keyring.find_kek(NEW))
    aads = {}
    for row in rekeyed.rows.values():
        place = Place(rekeyed.cluster.cluster_id, row.path, row.incarnation, row.version).bind(row.dek_id)
        aads[row.row_id] = bind_kek(place, OLD), bind_kek(place, NEW)
    with contextlib.closing(sqlite3.connect(rekeyed.core.folder / "nexus.db", isolation_level=None)) as connection:
        execute = connection.execute
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA secure_delete = ON")
        began, last = time.process_time(), 0
        while rows := execute(_LIST, (OLD, last, BATCH)).fetchall():
            made = [(NEW, _rewrap(wrap, old, new, *aads[row_id]), row_id, OLD, wrap) for row_id, wrap in rows]
            execute("BEGIN IMMEDIATE")
            connection.executemany(_REPLACE, made)
            execute("COMMIT")
            last = rows[-1][0]
        taken = time.process_time() - began
    assert rekeyed.keks_of_rows == {NEW: ROWS}
    return taken


def _rewrap(wrap: bytes, old: bytes, new: bytes, old_aad: bytes, new_aad: bytes) -> bytes:
    dek = _open(wrap, old, old_aad)
    salt = os.urandom(SALT_SIZE)
    ciphertext = ChaCha20Poly1305(_expand(new, salt, USE_AS_KEY)).encrypt(NONCE, dek, new_aad)
    made = FORMAT + salt + _expand(new, salt, USE_AS_COMMITMENT) + ciphertext
    assert _open(made, new, new_aad) == dek
    return made


def _open(wrap: bytes, under: bytes, aad: bytes) -> bytes:
    salt = wrap[2:18]
    assert hmac.compare_digest(wrap[18:50], _expand(under, salt, USE_AS_COMMITMENT))
    return ChaCha20Poly1305(_expand(under, salt, USE_AS_KEY)).decrypt(NONCE, wrap[50:], aad)


def _expand(key: bytes, salt: bytes, use: bytes) -> bytes:
    return hmac.digest(key, describe_use(salt, use) + b"\x01", "sha256")
