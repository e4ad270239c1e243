"""Files of the store that somebody takes away while a real nexus has them open."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pilot.dev.directory import Plan
from tests.cluster.ledger import Ledger
from tests.kit.cluster import Cluster, running

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

DATABASE, WAL = "nexus.db", "nexus.db-wal"


class Taken:
    """A cluster, and second names of the files that its nexus has open, by which they are put back."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ledger = Ledger(cluster.superuser)

    @property
    def folder(self) -> Path:
        return self.cluster.directory.data

    @property
    def names(self) -> Path:
        return self.cluster.directory.root / "names"

    def keep_names(self) -> None:
        """Give each file of the running nexus a second name elsewhere."""
        self.names.mkdir()
        for file in (DATABASE, WAL):
            os.link(self.folder / file, self.names / file)

    def put_back(self) -> None:
        """End the nexus, and put the files that it had in their place again."""
        if self.cluster.dev.is_alive("nexus"):
            self.cluster.kill("nexus")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.names.rename(self.folder)

    def list_logged(self) -> list[str]:
        """Return what the nexus logged of lost stores."""
        lines = self.cluster.directory.log("nexus").read_text().splitlines()
        return [line["why"] for line in map(json.loads, lines) if line["event"] == "store is lost"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taken]:
    """Two keepers, and a nexus."""
    with running(tmp_path_factory.mktemp("taken") / "dev", Plan(keepers=2, threshold=2)) as cluster:
        cluster.wait_filled()
        yield Taken(cluster)


@pytest.fixture
def taken(shared: Taken) -> Iterator[Taken]:
    """The same cluster, whole, with something in its store and second names for its files."""
    assert not shared.ledger.put()
    shared.keep_names()
    yield shared
    shared.put_back()
    shared.cluster.start_nexus()
    shared.ledger.check()


def delete(folder: Path) -> None:
    (folder / DATABASE).unlink()


def replace(folder: Path) -> None:
    """Put a copy of the database in its place, without its WAL."""
    shutil.copy(folder / DATABASE, folder / "copy")
    (folder / "copy").rename(folder / DATABASE)


def delete_wal(folder: Path) -> None:
    (folder / WAL).unlink()


def swap_folder(folder: Path) -> None:
    """Move the folder away, and make an empty one in its place."""
    folder.rename(folder.with_name("moved"))
    folder.mkdir(mode=0o700)


@pytest.mark.parametrize(
    ("take_away", "says"),
    [
        pytest.param(delete, f"{DATABASE} is gone", id="database deleted"),
        pytest.param(replace, f"{DATABASE} was replaced by another file", id="database replaced"),
        pytest.param(delete_wal, f"{WAL} is gone", id="WAL deleted"),
        pytest.param(swap_folder, f"{DATABASE} is gone", id="folder moved away"),
    ],
)
def test_no_write_is_acknowledged_into_a_file_that_was_taken_away(
    taken: Taken, take_away: Callable[[Path], None], says: str
) -> None:
    """Ready ends, the nexus names the file everywhere, stays, and serves all that it acknowledged once it is back."""
    cluster = taken.cluster
    take_away(taken.folder)
    assert taken.ledger.put() in ("OUTCOME_UNKNOWN", "NEXUS_RECOVERING")
    status = cluster.wait_status("ready has ended", lambda status: status["state"] == "recovering")
    assert any(says in line for line in status["blocked_by"])
    assert says in cluster.fetch("nexus", "/readyz")
    assert any(says in line for line in taken.list_logged())
    assert taken.ledger.put() == taken.ledger.read() == "NEXUS_RECOVERING"
    assert [keeper["fault"] for keeper in status["keepers"]] == [None, None]
    assert all(cluster.count_sets(name) == 1 for name in cluster.keepers)
    assert cluster.dev.is_alive("nexus")


def test_an_idle_nexus_notices_it(taken: Taken) -> None:
    """Ready ends without a call, and an end by SIGTERM leaves what is in the place of the store as it is."""
    cluster = taken.cluster
    taken.folder.rename(taken.folder.with_name("idle"))
    cluster.wait("ready ends", lambda: not cluster.dev.is_ready())
    taken.folder.mkdir(mode=0o700)
    (taken.folder / WAL).write_bytes(b"of another store")
    cluster.stop("nexus")
    assert (taken.folder / WAL).read_bytes() == b"of another store"
