"""Writes a store as an older program leaves it; run in the tree of that program: generate.py FOLDER NAME.

NAME.sql is what `sqlite3` dumps, NAME.json the keys and shares that open it; they protect nothing. `schema-1` was made
with commit 8d90768^, `schema-2` with 50bb6a2, the last program without generations.
"""

import json
import os
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from common.keys.protected import Level, ProtectedMemory
from nexus.vault.expected import Expected
from tests.nexus.cluster import SUPERUSERS, found, open_store
from tests.nexus.core import SUPERUSER, NexusCore, make_ready
from tests.nexus.custodians import make_recovery_key

PRAGMAS = ("user_version", "application_id")  # which no dump has


def main(target: Path, name: str) -> None:
    """Found a cluster of three keepers, put one secret, and dump the store."""
    key = make_recovery_key(2, 3)
    memory = ProtectedMemory(highest=Level.LOCKED)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = open_store(folder)
        cluster = found(
            store,
            memory,
            keepers=3,
            threshold=2,
            policies=[SUPERUSERS],
            recovery=key.record,
            seal_escrow=key.seal_escrow,
        )
        core = NexusCore(folder, store, memory, cluster.keepers())
        make_ready(core, cluster)
        core.vault.put(SUPERUSER, "team/db", {"password": b"hunter2"}, Expected(0), os.urandom(16))
        core.close()
        store.close()
        with closing(sqlite3.connect(folder / "nexus.db")) as database:
            pragmas = {name: database.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}
            dump = [*database.iterdump(), *(f"PRAGMA {name} = {value};" for name, value in pragmas.items())]
    (target / f"{name}.sql").write_text("\n".join(dump) + "\n")
    keys = {
        "cluster_id": cluster.cluster_id.hex(),
        "root_key": cluster.root_key.hex(),
        "shards": {keeper: shard.hex() for keeper, shard in cluster.shards.items()},
        "recovery_shares": [share.hex() for share in key.shares],
    }
    (target / f"{name}.json").write_text(json.dumps(keys, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
