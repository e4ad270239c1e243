"""The keyring job over a store of many rows: whether its speed and its memory stay as they are at the beginning."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from itertools import islice

from nexus.admin.operations.pace import BATCH
from nexus.keys.envelope import bind_place
from nexus.keys.keyring import bind_kek
from tests.bench.machine import SERVER_CORE, on_core, resident_mb
from tests.bench.rewrap import opened, wrap_dek
from tests.bench.rounds import Spread
from tests.bench.row import Row, Target, at_least, megabytes, per_second
from tests.bench.sizes import FLAT
from tests.bench.stage import Stage
from tests.nexus.admin.operations.rekeyed import INCARNATION, NEW, OLD, Rekeyed

_TENTHS = 10
_FILLED_AT_ONCE = 10_000  # rows
_VALUE_SIZE = 80  # bytes
_INSERT_SECRET = (
    "INSERT INTO secrets (path, incarnation, current_version, live_versions, updated_at) VALUES (?, ?, 1, 1, 1)"
)
_INSERT_VERSION = """
    INSERT INTO versions (path, incarnation, version, kek_id, dek_id, wrapped_dek, value, created_at, deleted, revision,
        caller) VALUES (?, ?, 1, ?, ?, ?, ?, 1, 0, 1, 'bench')"""


def many_rows(stage: Stage) -> Iterator[Row]:
    """Measure the first and the last tenth of a pass over many rows, and resident memory at the end of the job."""
    count = stage.pace.rows
    with opened(0) as rekeyed, on_core(SERVER_CORE):
        _fill(rekeyed, count)
        tenths = [_bring(rekeyed, count // _TENTHS)]
        early = resident_mb(os.getpid())
        tenths += [_bring(rekeyed, count // _TENTHS) for _ in range(_TENTHS - 1)]
        rekeyed.work_to_rest()  # every row is read once more, and the older KEK goes
        late = resident_mb(os.getpid())
        assert list(rekeyed.keks) == [str(NEW)]
    first, last = tenths[0], tenths[-1]
    work = f"rows a second of CPU, last tenth of {count:,}; first tenth"
    yield Row(work, per_second(last), at_least(0.9, last / first), per_second(first), Spread.of([last / first]))
    is_flat = Target(f"flat (≤ {FLAT:.0%})", late / early <= FLAT)
    work = "resident memory with the job, once the older KEK is gone; after the first tenth"
    yield Row(work, megabytes(late), is_flat, megabytes(early), Spread.of([late / early]))


def _bring(rekeyed: Rekeyed, rows: int) -> float:
    """Let the job bring some rows; return how many it brings in a second of CPU."""
    began = time.thread_time()
    for _ in range(rows // BATCH):
        rekeyed.job.step()
    return rows / (time.thread_time() - began)


def _fill(rekeyed: Rekeyed, count: int) -> None:
    """Put rows under the older KEK, past everything that a put does; their values are noise, which the job never sees.

    Commits them together: the store is as large as after as many puts, and this takes a thousandth of the time.
    """
    numbers = iter(range(count))
    kek, cluster_id = bytes(rekeyed.keyring.find_kek(OLD)), rekeyed.cluster.cluster_id
    path = rekeyed.core.folder / "nexus.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        while some := list(islice(numbers, _FILLED_AT_ONCE)):
            paths = [f"team/app/{number:08}" for number in some]
            connection.executemany(_INSERT_SECRET, ((path, INCARNATION) for path in paths))
            connection.executemany(_INSERT_VERSION, (_make_row(kek, cluster_id, path) for path in paths))
            connection.commit()


def _make_row(kek: bytes, cluster_id: bytes, path: str) -> tuple[object, ...]:
    dek_id = os.urandom(16)
    aad = bind_kek(bind_place(cluster_id, path, INCARNATION, 1, dek_id), OLD)
    return path, INCARNATION, OLD, dek_id, wrap_dek(os.urandom(32), kek, aad), os.urandom(_VALUE_SIZE)
