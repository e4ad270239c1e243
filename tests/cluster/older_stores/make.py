"""Make a store as an earlier program leaves it, for the tests of upgrades.

The folders beside this file were made so, each by the program of the commit that it names:

    schema-1    46b974a, the last one before migration 2
    schema-2    50bb6a2, the last one before migration 3
    schema-3    0f2022d, the last one before migration 4

To make one again, extract the commit into a folder and run this file there, with the tests' environment:

    git archive 50bb6a2 | tar --extract --directory OLD
    cd OLD && PYTHONPATH=OLD:OLD/client python …/older_stores/make.py …/older_stores/schema-2

It holds the store, the audit files and the recovery shares of a cluster of three keepers, which is gone. They protect
nothing.
"""

import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from pilot.dev.directory import Plan
from tests.kit.cluster import running

APP = "/ns/team/sa/app"
FIELDS = {"user": b"app", "password": b"v1"}


def make(folder: Path) -> None:
    """Let a cluster write secrets, end it, and copy its files into *folder*."""
    with tempfile.TemporaryDirectory() as root, running(Path(root) / "dev", Plan(keepers=3, threshold=2)) as cluster:
        cluster.allow(APP, ["team/**"], ["read", "write", "delete", "list"])
        app = cluster.workload(APP)
        app.put("team/db", FIELDS)
        app.put("team/db", FIELDS | {"password": b"v2"})
        for path in ("team/gone", "team/anew"):
            app.put(path, {"value": b"old"})
            app.delete(path)
        app.put("team/anew", {"value": b"new"})
        app.put("team/large", {"value": bytes(range(256)) * 64})
        cluster.stop("nexus")
        directory = cluster.directory
        folder.mkdir(parents=True)
        shutil.copy(directory.data / "nexus.db", folder)
        shutil.copytree(directory.audit, folder / "audit", ignore=shutil.ignore_patterns("*.lock"))
        shutil.copytree(directory.recovery_shares, folder / "recovery-shares")
    with closing(sqlite3.connect(folder / "nexus.db")) as database:
        print(f"schema {database.execute('PRAGMA user_version').fetchone()[0]} in {folder}")


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
