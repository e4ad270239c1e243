"""The keyring job beside a bare loop that does the same HMACs, AEAD and SQL.

The loop checks nothing else, has no row objects and protects no key, and its associated data is encoded beforehand. Its
statements and the settings of its connections are those of the job.
"""

import contextlib
import functools
import hmac
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from common.keys.protected import Level, ProtectedMemory
from nexus.admin.operations.pace import BATCH
from nexus.keys.envelope import Place
from nexus.keys.keyring import bind_kek
from nexus.keys.wrap import FORMAT, NONCE, SALT_SIZE, USE_AS_COMMITMENT, USE_AS_KEY, describe_use
from nexus.store.sqlite.connection import connect_reader, connect_writer
from nexus.store.sqlite.reader import POSITION
from tests.bench.machine import SERVER_CORE, on_core
from tests.bench.rounds import compare
from tests.bench.row import Row, at_least, make_row, per_second
from tests.bench.stage import Stage
from tests.nexus import cluster
from tests.nexus.admin.operations.rekeyed import NEW, OLD, Rekeyed, make_rekeyed
from tests.nexus.failing_store import FailingStore

ROWS = 4_000  # of one round
CHUNK = 4  # batches of one side before it is the other's turn: so short that other work meets both alike
_LIST = """
    SELECT v.id, v.path, v.incarnation, v.version, v.kek_id, v.dek_id, v.wrapped_dek FROM versions AS v
    WHERE v.kek_id = ? AND v.id > ? AND NOT EXISTS (
        SELECT 1 FROM quarantine AS q WHERE q.path = v.path AND q.incarnation = v.incarnation AND q.version = v.version)
    ORDER BY v.id LIMIT ?"""
_REPLACE = "UPDATE versions SET kek_id = ?, wrapped_dek = ? WHERE id = ? AND kek_id = ? AND wrapped_dek = ?"


def rewrap(stage: Stage) -> Iterator[Row]:
    """Measure how many rows the keyring job wraps anew in a second of CPU."""
    found = compare([_measure() for _ in range(stage.pace.rounds)], lambda rows_per_second: rows_per_second)
    work = f"rows wrapped anew in a second of CPU, of {ROWS:,}; by a bare loop"
    yield make_row(work, found, per_second, at_least(0.8, found.ratio.median))


def _measure() -> tuple[float, float]:
    """Bring two stores by turns, one by the job and one by the loop; return rows per CPU second of each."""
    job_s = bare_s = 0.0
    with opened(ROWS) as ours, opened(ROWS) as other, contextlib.closing(BareLoop(other)) as bare, on_core(SERVER_CORE):
        for _ in range(ROWS // BATCH // CHUNK):
            job_s += _time(ours.job.step)
            bare_s += _time(bare.step)
        for rekeyed in (ours, other):
            assert rekeyed.keks_of_rows == {NEW: ROWS}
    return ROWS / job_s, ROWS / bare_s


def _time(step: Callable[[], object]) -> float:
    """Return the seconds of CPU that some batches took in this thread, which does all the work."""
    began = time.thread_time()
    for _ in range(CHUNK):
        step()
    return time.thread_time() - began


@contextlib.contextmanager
def opened(rows: int) -> Iterator[Rekeyed]:
    """Serve a store of which all *rows* are under an older KEK."""
    memory = ProtectedMemory(highest=Level.LOCKED)
    with tempfile.TemporaryDirectory(prefix="shardhold-rewrap-") as name, contextlib.ExitStack() as ending:
        store = cluster.open_store(Path(name))
        ending.callback(store.close)
        found = functools.partial(cluster.found, store, memory)
        rekeyed = make_rekeyed(found, Path(name), FailingStore(store), memory, rows=rows)
        ending.callback(rekeyed.core.close)
        yield rekeyed


class BareLoop:
    """Brings a store to the new KEK over a connection of its own."""

    def __init__(self, rekeyed: Rekeyed) -> None:
        self._old, self._new = bytes(rekeyed.keyring.find_kek(OLD)), bytes(rekeyed.keyring.find_kek(NEW))
        self._aads = {}
        for row in rekeyed.rows.values():
            place = Place(rekeyed.cluster.cluster_id, row.path, row.incarnation, row.version).bind(row.dek_id)
            self._aads[row.row_id] = bind_kek(place, OLD), bind_kek(place, NEW)
        path = rekeyed.core.folder / "nexus.db"
        self._reader, self._writer = connect_reader(path), connect_writer(path)
        self._last = 0

    def step(self) -> None:
        """Bring one batch."""
        old, new, aads, read, write = self._old, self._new, self._aads, self._reader.execute, self._writer.execute
        read("BEGIN")
        read(POSITION).fetchone()
        rows = read(_LIST, (OLD, self._last, BATCH)).fetchall()
        read("COMMIT")
        made = [(NEW, _rewrap(row[6], old, new, *aads[row[0]]), row[0], OLD, row[6]) for row in rows]
        write("BEGIN IMMEDIATE")
        write(POSITION).fetchone()
        self._writer.executemany(_REPLACE, made)
        write("COMMIT")
        self._last = rows[-1][0]

    def close(self) -> None:
        """Close its connections."""
        self._reader.close()
        self._writer.close()


def _rewrap(wrap: bytes, old: bytes, new: bytes, old_aad: bytes, new_aad: bytes) -> bytes:
    dek = _open(wrap, old, old_aad)
    made = wrap_dek(dek, new, new_aad)
    assert _open(made, new, new_aad) == dek
    return made


def wrap_dek(dek: bytes, under: bytes, aad: bytes) -> bytes:
    """Wrap a DEK as `nexus.keys.wrap` does, with keys that nothing protects."""
    salt = os.urandom(SALT_SIZE)
    ciphertext = ChaCha20Poly1305(_expand(under, salt, USE_AS_KEY)).encrypt(NONCE, dek, aad)
    return FORMAT + salt + _expand(under, salt, USE_AS_COMMITMENT) + ciphertext


def _open(wrap: bytes, under: bytes, aad: bytes) -> bytes:
    salt = wrap[2:18]
    assert hmac.compare_digest(wrap[18:50], _expand(under, salt, USE_AS_COMMITMENT))
    return ChaCha20Poly1305(_expand(under, salt, USE_AS_KEY)).decrypt(NONCE, wrap[50:], aad)


def _expand(key: bytes, salt: bytes, use: bytes) -> bytes:
    return hmac.digest(key, describe_use(salt, use) + b"\x01", "sha256")
