"""Versions that were destroyed or pruned, in a SQLite store that somebody damaged, or whose process is killed."""

import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import CorruptRowError
from nexus.store.protocol import VersionState
from nexus.store.sqlite.store import SqliteStore
from tests.kit.patience import at_most
from tests.kit.seed import make_random
from tests.nexus.store.contract import CALLER, make_row, put


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param("DELETE FROM destroyed", "lost a version of a secret", id="what was destroyed forgotten"),
        pytest.param("UPDATE destroyed SET version = 7", "lost a version of a secret", id="another one destroyed"),
        pytest.param(
            "UPDATE destroyed SET incarnation = zeroblob(16)", "lost a version of a secret", id="of another incarnation"
        ),
        pytest.param("UPDATE secrets SET first_version = 1", "lost a version of a secret", id="pruned ones missed"),
        pytest.param("UPDATE secrets SET first_version = 4", "lost a version of a secret", id="kept ones pruned"),
        pytest.param("UPDATE secrets SET current_version = 3", "lost a version of a secret", id="newest forgotten"),
        pytest.param("UPDATE secrets SET first_version = -1", "nothing comes to by counting", id="below zero"),
        pytest.param("DELETE FROM versions", "lost a version of a secret", id="all that is kept lost"),
    ],
)
def test_only_what_was_destroyed_passes_as_destroyed(tmp_path: Path, damage: str, says: str) -> None:
    """Of versions 1 to 4, where 1 is pruned and 4, the newest, destroyed; by each way to look."""
    file = tmp_path / "nexus.db"
    with closing(SqliteStore.open(file)) as store:
        for version in range(1, 5):
            put(store, make_row("a", version))
        store.write(lambda writer: writer.prune("a", below=2))
        store.write(lambda writer: writer.destroy("a", [4], caller=CALLER, destroyed_at=9))
        with store.read() as reader:
            assert [row is None for row in map(reader.load_version, "a" * 5, range(5))] == [
                True,
                True,
                False,
                False,
                True,
            ]
    with closing(sqlite3.connect(file)) as database, database:
        assert database.execute(damage).rowcount
    with closing(SqliteStore.open(file)) as store, store.read() as reader:
        with pytest.raises(CorruptRowError, match=says):
            list(map(reader.load_version, "a" * 5, range(5)))
        with pytest.raises(CorruptRowError, match=says):
            reader.load_history("a", limit=9)


ROOT = Path(__file__).parents[4]


@pytest.mark.final
def test_a_kill_brings_nothing_back_and_leaves_nothing(tmp_path: Path) -> None:
    """After `kill -9` at any moment: what was acknowledged stays destroyed, no version is lost, and a scrub ends it."""
    file, moments = tmp_path / "nexus.db", make_random("destroys")
    command = [sys.executable, "-m", "tests.nexus.store.sqlite.writing", "destroys", str(file)]
    for _ in range(5):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writing:
            assert writing.stdout is not None
            lines = [writing.stdout.readline() for _ in range(moments.randrange(3, 12))]
            killer = threading.Timer(moments.uniform(0, 0.02), writing.send_signal, [signal.SIGKILL])
            killer.start()
            lines += writing.stdout.readlines()
            killer.join()
        assert writing.returncode == -signal.SIGKILL
        acknowledged = max(int(line) for line in lines if line.endswith("\n"))
        with closing(SqliteStore.open(file)) as store:
            with store.read() as reader:
                kept = reader.load_kept_versions("a")
                rows = reader.load_history("a", limit=99)
            assert set(kept) <= {acknowledged, acknowledged + 1}
            assert [row.version for row in rows if row.state is not VersionState.DESTROYED] == kept[::-1]
            assert store.scrub(seconds=at_most(10))
            content = b"".join(path.read_bytes() for path in (file, file.with_name("nexus.db-wal")))
        gone = [version for version in range(1, acknowledged + 2) if version not in kept]
        assert [version for version in gone if b"<value %d>" % version in content] == []
        assert all(b"<value %d>" % version in content for version in kept)
