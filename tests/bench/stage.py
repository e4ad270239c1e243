"""What the rows measure on: clusters and the empty server, each started when first asked for."""

import contextlib
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pilot.dev.cluster import server_command
from pilot.dev.identities import TRUST_DOMAIN, Identity, parse_workload
from pilot.dev.ports import choose_ports
from pilot.dev.spawn import exec_program
from tests.bench.driver import ROOT, Driver, Load, Server
from tests.bench.load import FIELDS, Kind
from tests.kit.cluster import Cluster

APP = "/bench/app"
EMPTY = Identity(path="/bench/empty", dns="empty.bench")
PATH = "bench/database"  # always holds a secret


@dataclass(frozen=True)
class Pace:
    """How long everything takes."""

    rounds: int = 5
    seconds: float = 1.5  # of one side of one round under load
    calls: int = 20_000  # over which resident memory is watched
    rows: int = 20_000  # that the keyring job brings in one pass


class Stage:
    """All processes of a run, in *folder*; they end with `close`."""

    def __init__(self, folder: Path, pace: Pace) -> None:
        self.folder = folder
        self.pace = pace
        self.clusters: list[Cluster] = []
        self._open = contextlib.ExitStack()

    def close(self) -> None:
        """End everything."""
        self._open.close()

    @functools.cached_property
    def driver(self) -> Driver:
        """The load generator."""
        driver = Driver()
        self._open.callback(driver.close)
        return driver

    @functools.cached_property
    def cluster(self) -> Cluster:
        """The cluster that most rows share: five keepers, threshold three, a secret at `PATH` that `APP` may use."""
        return self._start_cluster("cluster")

    @functools.cached_property
    def crowded(self) -> Cluster:
        """A second cluster like it, for a row that changes what every call meets."""
        return self._start_cluster("crowded")

    @property
    def nexus(self) -> Server:
        """The nexus of `cluster`, as it runs now."""
        return self.nexus_of(self.cluster)

    @functools.cached_property
    def empty(self) -> Server:
        """An empty server on the identities of `cluster`."""
        server = self.spawn_empty()
        self.driver.wait_served(server, PATH)
        return server

    def nexus_of(self, cluster: Cluster) -> Server:
        """Return the nexus of *cluster*, as it runs now."""
        state = cluster.dev.state
        return Server(
            state.processes["nexus"].pid, state.ports["nexus"].grpc, "nexus.shardhold", self._endpoint(cluster)
        )

    def spawn_nexus(self) -> None:
        """Start the nexus of `cluster`, which was killed, without waiting."""
        self.cluster.processes.start_instead("nexus", server_command(self.cluster.directory, "nexus"))

    def spawn_empty(self) -> Server:
        """Start another empty server without waiting; it ends with the stage."""
        endpoint = self.cluster.dev.add_identity(EMPTY)
        ports = [port for taken in self.cluster.dev.state.ports.values() for port in (taken.grpc, taken.http)]
        (port,) = choose_ports(1, taken=ports)
        command = [sys.executable, "-P", "-m", "tests.bench.empty", f"unix:{endpoint}", TRUST_DOMAIN, str(port)]
        with (self.folder / "empty.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        self._open.callback(process.wait)
        self._open.callback(process.kill)
        return Server(process.pid, port, EMPTY.dns, self._endpoint(self.cluster))

    def drive(self, server: Server, kind: Kind, paths: list[str], *, threads: int = 8) -> Load:
        """Put *server* under load for the seconds of one side of a round."""
        return self.driver.drive(server, kind, paths, seconds=self.pace.seconds, threads=threads)

    def _endpoint(self, cluster: Cluster) -> str:
        return f"unix:{cluster.dev.add_identity(parse_workload(APP))}"

    def _start_cluster(self, name: str) -> Cluster:
        cluster = Cluster(self.folder / name, spawn=exec_program)
        self.clusters.append(cluster)
        self._open.callback(cluster.close)
        cluster.start()
        cluster.wait_filled()
        cluster.allow(APP, ["bench/**"], ["read", "write"])
        cluster.workload(APP).put(PATH, FIELDS)
        return cluster


@contextlib.contextmanager
def staged(folder: Path, pace: Pace) -> Iterator[Stage]:
    """Yield a stage that ends with the block; what went wrong on it is shown together with the logs."""
    stage = Stage(folder, pace)
    try:
        yield stage
    except Exception as exc:
        for cluster in stage.clusters:
            exc.add_note(cluster.logs())
        raise
    finally:
        stage.close()
