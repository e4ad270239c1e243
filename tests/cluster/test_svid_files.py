"""SVIDs from files, for nexus, keepers and SDK: replaced in place under calls, half replaced, and not renewed.

The tests share a cluster and leave it as it was. SVIDs live 12 s and are replaced at half of it; the files are looked
at each second, so that this leaves some seconds to a busy machine.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardhold
from pilot.dev.cluster import server_command
from pilot.dev.configuration import socket_path, write_config
from pilot.dev.directory import Plan
from pilot.dev.identities import parse_workload
from shardhold import SvidFiles
from shardhold.identity import SVID_FILE
from tests.cluster.traffic import Traffic
from tests.kit.cluster import Cluster
from tests.kit.credentials import ALL_FILES
from tests.kit.svid_helper import SvidHelper

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LIFETIME_S = 16.0
APP = "/motion/app"
SERVERS = ("nexus", "keeper-1", "keeper-2")
UNPAIRED = "the private key is not the SVID's"


class FiledCluster(Cluster):
    """A cluster whose servers, and one workload, have SVID files that helpers keep fresh."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, Plan(keepers=2, threshold=2, lifetime_s=LIFETIME_S))
        self.helpers: dict[str, SvidHelper] = {}

    def start(self) -> None:
        self.start_by(self._command)
        self.dev.init()
        self.wait_ready()
        self.wait_filled()
        self.allow(APP, ["motion/**"], ["read", "write"])
        self.helpers["app"] = SvidHelper(self.dev.add_identity(parse_workload(APP)), self.directory.root / "app.svid")

    def close(self) -> None:
        for helper in self.helpers.values():
            helper.close()
        super().close()

    def _command(self, name: str) -> list[str]:
        """Make the files of a server, and its configuration once more, with them in the place of the Workload API."""
        folder = self.directory.root / f"{name}.svid"
        self.helpers[name] = SvidHelper(socket_path(self.dev.state, name), folder)
        write_config(self.directory, self.dev.state, name)
        text = self.directory.config(name).read_text()
        assert text.count('source = "workload-api"') == 1
        changed = self.directory.config(name).with_name(f"{name}.files.toml")
        changed.write_text(text.replace('source = "workload-api"', f'source = "files"\nsvid_dir = "{folder}"'))
        return [*server_command(self.directory, name)[:-1], str(changed)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FiledCluster]:
    cluster = FiledCluster(tmp_path_factory.mktemp("files") / "dev")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def identity(cluster: FiledCluster) -> Iterator[SvidFiles]:
    with contextlib.closing(SvidFiles(cluster.helpers["app"].folder)) as identity:
        yield identity


def read_log(cluster: Cluster, name: str) -> str:
    return cluster.directory.log(name).read_text()


def write_half_a_set(cluster: FiledCluster, *names: str) -> None:
    """From the next renewal on replace the certificates alone; return when all have one without its key.

    The names have to be renewed at about the same time, as servers are: what they hold lives on for half its life.
    """
    renewals = {name: cluster.helpers[name].renewals for name in names}
    for name in names:
        cluster.helpers[name].names = (SVID_FILE,)
    cluster.wait(
        "everybody has a certificate without its key",
        lambda: all(cluster.helpers[name].renewals > renewals[name] for name in names),
    )


def write_the_rest(cluster: FiledCluster, *names: str) -> None:
    for name in names:
        cluster.helpers[name].names = ALL_FILES
        cluster.helpers[name].write()


def test_files_replaced_in_place_drop_no_call(cluster: FiledCluster, identity: SvidFiles) -> None:
    """While all files are written anew, and anew, no try of any call fails."""
    seen = {identity.current().leaf().serial_number}
    identity.subscribe(lambda: seen.add(identity.current().leaf().serial_number))
    with Traffic(cluster.dev.address, identity, "motion").flowing() as traffic:
        cluster.wait("the workload's SVID was replaced twice", lambda: len(seen) > 2)
        cluster.wait(
            "those of the servers, too",
            lambda: all(read_log(cluster, name).count("svid rotated") >= 2 for name in SERVERS),
        )
        traffic.wait_answered(cluster, 10)
    assert traffic.failures == []
    assert min(traffic.answered.values()) > 100


def test_half_a_set_is_not_taken_by_servers(cluster: FiledCluster, identity: SvidFiles) -> None:
    """A certificate without its key is not taken: the earlier SVID serves until both files of the newer one exist."""
    told = {name: read_log(cluster, name).count(UNPAIRED) for name in SERVERS}
    rotated = {name: read_log(cluster, name).count("svid rotated") for name in SERVERS}
    with Traffic(cluster.dev.address, identity, "motion").flowing() as traffic:
        write_half_a_set(cluster, *SERVERS)
        cluster.wait(
            "the servers say so", lambda: all(read_log(cluster, name).count(UNPAIRED) > told[name] for name in SERVERS)
        )
        traffic.wait_answered(cluster, 10)
        write_the_rest(cluster, *SERVERS)
        cluster.wait(
            "the servers take the whole set",
            lambda: all(read_log(cluster, name).count("svid rotated") > rotated[name] for name in SERVERS),
        )
        traffic.wait_answered(cluster, 10)
    assert traffic.failures == []


def test_half_a_set_is_not_taken_by_a_workload(cluster: FiledCluster, identity: SvidFiles) -> None:
    """The SDK goes on with the SVID of before, and takes the newer one when all of it is there."""
    before = identity.current()
    with Traffic(cluster.dev.address, identity, "motion").flowing() as traffic:
        write_half_a_set(cluster, "app")
        traffic.wait_answered(cluster, 10)
        assert identity.current() == before
        write_the_rest(cluster, "app")
        cluster.wait("the workload takes the whole set", lambda: identity.current() != before)
        traffic.wait_answered(cluster, 10)
    assert traffic.failures == []


def test_a_nexus_whose_files_are_not_renewed_stops_to_serve(cluster: FiledCluster, identity: SvidFiles) -> None:
    """Only that nexus refuses calls, and says that its SVID is why; with new files it is back by itself."""
    client = shardhold.Client(cluster.dev.address, identity)
    client.put("motion/fixed", {"value": b"fixed"})
    cluster.helpers["nexus"].names = ()
    cluster.wait("its SVID expires", lambda: "expired" in cluster.fetch("nexus", "/readyz"))
    with pytest.raises(shardhold.UnavailableError) as caught:
        client.get("motion/fixed")
    assert caught.value.reason == "IDENTITY_UNAVAILABLE" or "expired" in caught.value.hint
    assert cluster.dev.is_ready("keeper-1")
    cluster.helpers["nexus"].names = ALL_FILES
    cluster.helpers["nexus"].write()
    cluster.wait("it is ready", cluster.dev.is_ready)
    assert client.get("motion/fixed").fields == {"value": b"fixed"}
    cluster.wait_filled()
    client.close()
