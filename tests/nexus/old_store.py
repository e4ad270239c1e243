"""Stores of older programs, from the files that `tests/nexus/old_stores/generate.py` wrote."""

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from common.keys.protected import ProtectedMemory
from nexus.keys import manifest, records
from nexus.store.protocol import Store
from tests.nexus.cluster import FoundedCluster, open_store

NAMES = ("schema-1", "schema-2")
PATH, FIELD, VALUE = "team/db", "password", b"hunter2"  # the secret that each holds

_FOLDER = Path(__file__).parent / "old_stores"


@dataclass(frozen=True)
class OldStore:
    """A store of an older program, opened by this one; its rows are as that program left them."""

    store: Store
    cluster: FoundedCluster
    recovery_shares: tuple[bytes, ...]  # in wire form, in the order of the custodians' numbers; 2 are needed


def open_old_store(name: str, folder: Path, memory: ProtectedMemory, *, spoil: str = "") -> OldStore:
    """Write the store *name* into a new *folder*, run *spoil* on it, and open it."""
    folder.mkdir()
    with closing(sqlite3.connect(folder / "nexus.db")) as database:
        database.executescript((_FOLDER / f"{name}.sql").read_text())
        database.executescript(spoil)
    keys = json.loads((_FOLDER / f"{name}.json").read_text())
    store = open_store(folder)
    with store.read() as reader:
        genesis, rows = records.load_genesis(reader), reader.load_controls()
    cluster_id = bytes.fromhex(keys["cluster_id"])
    record = manifest.find_current_set(cluster_id, rows)
    shards = {keeper: bytes.fromhex(shard) for keeper, shard in keys["shards"].items()}
    cluster = FoundedCluster(store, memory, cluster_id, bytes.fromhex(keys["root_key"]), record, genesis, shards)
    return OldStore(store, cluster, tuple(map(bytes.fromhex, keys["recovery_shares"])))
