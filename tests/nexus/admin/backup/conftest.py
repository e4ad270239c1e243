"""The world that the tests of backups share."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.keys.protected import ProtectedMemory
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.admin.backup.world import World
from tests.nexus.cluster import FoundCluster
from tests.nexus.store.contract import make_row, put


@pytest.fixture
def world(tmp_path: Path, store: SqliteStore, memory: ProtectedMemory, found: FoundCluster) -> Iterator[World]:
    """One with a secret in its store."""
    world = World(tmp_path, store, memory, found(keepers=3, threshold=2))
    put(store, replace(make_row("app/db"), kek_id=world.facts.kek_id))
    yield world
    world.core.close()
