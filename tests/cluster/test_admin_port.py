"""A port for people: whoever fills the port for workloads does not shut them out."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from common.server.descriptors import allow_descriptors
from pilot.dev.cluster import clean_environ, server_command
from pilot.dev.configuration import socket_path
from pilot.dev.directory import Plan
from pilot.dev.identities import SUPERUSER_PATH, parse_workload
from pilot.dev.ports import choose_ports
from pilot.dev.spawn import run_captured
from shardhold import WorkloadAPI
from shardhold.channel import PinnedChannel
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most
from tests.kit.person import Person
from tests.kit.ports import find_port_range
from tests.kit.refusal import Refusal
from tests.kit.spawn import choose_spawn
from tests.kit.waiting import wait_until

pytestmark = pytest.mark.cluster

CONNECTIONS = 2048  # that a port takes
UNINITIALISED = 1


class AdminCluster(Cluster):
    """A cluster whose nexus has a port for people."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, Plan(keepers=2, threshold=2))
        taken = {port for pair in self.dev.state.ports.values() for port in (pair.grpc, pair.http)}
        (port,) = choose_ports(1, taken=taken, within=find_port_range())
        self.admin_address = f"127.0.0.1:{port}"
        self._open = ExitStack()

    def command(self, name: str) -> list[str]:
        """Return the command line of a server."""
        option = f"SHARDHOLD_NEXUS__LISTEN__ADMIN_ADDRESS={self.admin_address}"
        return [*(["env", option] if name == "nexus" else []), *server_command(self.directory, name)]

    def connect(self, address: str, socket_path: Path) -> Person:
        """Return whoever has the identity of this socket, on a new connection to *address*."""
        identity = WorkloadAPI(f"unix:{socket_path}")
        self._open.callback(identity.close)
        channel = self._open.enter_context(PinnedChannel(address, identity, server_name="nexus.shardhold"))
        return Person(channel, identity)

    def find_socket(self, path: str) -> Path:
        """Return the socket of a person or a workload."""
        return self.dev.add_identity(parse_workload(path))

    def close(self) -> None:
        self._open.close()
        super().close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminCluster]:
    """A cluster without a root key."""
    cluster = AdminCluster(tmp_path_factory.mktemp("admin") / "dev")
    try:
        cluster.start_by(cluster.command)
        yield cluster
    finally:
        cluster.close()


class SilentPeers:
    """As many connections as a port takes, which say nothing; what the server closes is opened again."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_open, name="silent peers")

    def __enter__(self) -> "SilentPeers":
        allow_descriptors()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            self._close(key.fileobj)
        self._selector.close()

    def _keep_open(self) -> None:
        while not self._ended.is_set():
            while len(self._selector.get_map()) < CONNECTIONS + 64 and not self._ended.is_set():
                with contextlib.suppress(OSError):
                    self._selector.register(socket.create_connection(self._address, 5), selectors.EVENT_READ)
            for key, _ in self._selector.select(0.05):
                self._close(key.fileobj)

    def _close(self, peer: object) -> None:
        assert isinstance(peer, socket.socket)
        self._selector.unregister(peer)
        peer.close()


def is_shut(port: int) -> bool:
    """Return whether the server closes a new connection before it said anything."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as peer:
        peer.settimeout(0.2)
        return peer.recv(1) == b""
    return False


def test_people_come_in_while_the_port_for_workloads_is_full(cluster: AdminCluster) -> None:
    """With 2,048 silent connections at the port for workloads, people and health checks are served at their own."""
    full = cluster.dev.state.ports["nexus"].grpc
    superuser = cluster.find_socket(SUPERUSER_PATH)
    with SilentPeers(full):
        wait_until(lambda: is_shut(full), what="the port for workloads is full")
        assert not any(is_shut(int(cluster.admin_address.rpartition(":")[2])) for _ in range(3))
        assert cluster.connect(cluster.admin_address, superuser).get_status().state == UNINITIALISED
        health = run_captured(
            choose_spawn(),
            [*cluster.command("nexus"), "health", "--live"],
            environ=clean_environ(),
            timeout=at_most(10),
        )
        assert (health.returncode, health.stdout) == (0, "NOT_SERVING\n"), health.stderr
    wait_until(lambda: not is_shut(full), what="the port for workloads takes connections again")
    assert cluster.superuser.get_status().state == UNINITIALISED


@pytest.mark.parametrize("name", ["a workload", "a keeper"])
def test_the_port_for_people_is_closed_to_others(cluster: AdminCluster, name: str) -> None:
    """They are refused there whatever they call, and served at the other port."""
    where = socket_path(cluster.dev.state, "keeper-1") if name == "a keeper" else cluster.find_socket("/team/app")
    with Refusal(grpc.StatusCode.PERMISSION_DENIED, "DENIED", says="this port is for people"):
        cluster.connect(cluster.admin_address, where).get_status()
    assert cluster.connect(cluster.dev.address, where).get_status().state == UNINITIALISED
