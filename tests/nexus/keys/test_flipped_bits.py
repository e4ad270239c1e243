"""One flipped bit in each page of a store's file: damage is named, and no value is ever another."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from common.errors import IntegrityError, NotFoundError, ShardholdError, StoreUnavailableError
from common.keys.protected import Level, ProtectedMemory
from nexus.lifecycle.states import State
from shardhold.v1 import secrets_pb2
from tests.kit.seed import make_random
from tests.nexus.cluster import FoundedCluster, found, open_store
from tests.nexus.core import NexusCore, make_ready
from tests.nexus.keys.damaged import ask, bring_back, started_on

PAGE_SIZE = 4096  # bytes
FLIPS = 3  # in each page
PATHS = [f"team/{number:02}" for number in range(12)]
VERSIONS = (1, 2)


def make_value(path: str, version: int) -> bytes:
    """Make a value that tells which one it is, long enough for the rows to need several pages."""
    return f"{path} {version} ".encode() * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the whole store is."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> FoundedCluster:
    """A small cluster with two versions of each secret, whose store nobody has open."""
    store = open_store(folder)
    cluster = found(store, ProtectedMemory(highest=Level.LOCKED), keepers=3, threshold=2)
    core = NexusCore(folder, store, cluster.memory, cluster.keepers())
    make_ready(core, cluster)
    for version in VERSIONS:
        for path in PATHS:
            fields = {"value": make_value(path, version)}
            ask(core, "PutSecret", secrets_pb2.PutSecretRequest(path=path, fields=fields, request_id=os.urandom(16)))
    core.exporter.export()
    core.close()
    store.close()
    return cluster


@pytest.fixture(scope="module")
def file(cluster: FoundedCluster, folder: Path) -> bytes:
    """The file of its store, which does not know that it is copied: a copy would be read through at its start."""
    copy = folder / "copied.db"
    copy.write_bytes((folder / "nexus.db").read_bytes())
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET file = ''")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return copy.read_bytes()


def read_all(core: NexusCore) -> int:
    """Read every version; return how many reads ended with damage that was named."""
    damaged = 0
    for path in PATHS:
        for version in (0, *VERSIONS):
            try:
                got = ask(core, "GetSecret", secrets_pb2.GetSecretRequest(path=path, version=version))
            except NotFoundError as exc:
                raise AssertionError(f"{path} version {version} is there, and was said not to be") from exc
            except ShardholdError:
                damaged += 1
            else:
                assert got.version == (version or VERSIONS[-1]), "an older version is not the newest"
                assert got.fields == {"value": make_value(path, got.version)}
    return damaged


def start(folder: Path, cluster: FoundedCluster, content: bytes) -> tuple[str, str]:
    """Start a nexus on a damaged file, recover and read; return what became of it, and the error if there was one."""
    folder.mkdir()
    (folder / "nexus.db").write_bytes(content)
    try:
        with started_on(folder, cluster) as core:
            assert core.lifecycle.state is State.RECOVERING, "never as if there were nothing"
            try:
                bring_back(core, cluster)
            except ShardholdError as exc:
                return "does not recover", str(exc)
            return ("names what is damaged" if read_all(core) else "is whole"), "-"
    except (IntegrityError, StoreUnavailableError) as exc:
        return "does not start", str(exc)


def flip(content: bytes, position: int, bit: int) -> bytes:
    flipped = bytearray(content)
    flipped[position] ^= 1 << bit
    return bytes(flipped)


def test_a_flipped_bit_in_each_page(cluster: FoundedCluster, file: bytes, tmp_path: Path) -> None:
    """The nexus refuses to start, or to recover, by name; or it serves what is right and refuses the rest."""
    pages = len(file) // PAGE_SIZE
    assert pages > 15
    chance = make_random("bits")
    ends = set()
    for page in range(pages):
        for _ in range(FLIPS):
            position, bit = page * PAGE_SIZE + chance.randrange(PAGE_SIZE), chance.randrange(8)
            end, said = start(tmp_path / f"byte-{position}-bit-{bit}", cluster, flip(file, position, bit))
            assert said
            ends.add(end)
    assert len(ends) == 4, ends


def test_a_flipped_bit_in_each_place_of_a_path(cluster: FoundedCluster, file: bytes, tmp_path: Path) -> None:
    """A key of an index that is damaged hides a version: the one before it is not answered in its place."""
    path = PATHS[5].encode()
    places = [position for position in range(len(file)) if file.startswith(path, position)]
    assert len(places) > 2 * len(VERSIONS)
    ends = [start(tmp_path / f"byte-{place}", cluster, flip(file, place + len(path) - 1, 6))[0] for place in places]
    assert "names what is damaged" in ends
