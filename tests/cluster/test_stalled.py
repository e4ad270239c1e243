"""Peers and readers that take nothing: a seal, a SIGTERM and other callers do not wait for them."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pilot.dev.cluster import server_command
from pilot.dev.directory import Plan
from pilot.dev.identities import TRUST_DOMAIN
from shardhold.v1 import secrets_pb2
from tests.cluster.held_cluster import HeldCluster
from tests.kit.cluster import started
from tests.kit.credentials import certify
from tests.kit.patience import at_most
from tests.kit.raw_http2 import HEADERS, SETTINGS, raw_connection

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

WATCH = "/grpc.health.v1.Health/Watch"
NAMES = {"nexus": "nexus.shardhold", "keeper-1": "keeper-1.keeper.shardhold"}
GET = "/shardhold.v1.SecretService/GetSecret"
APP, PATH, FIELDS = "/stalled/app", "stalled/secret", {"value": b"on time"}
HOARDER, LARGE = "/stalled/hoarder", "stalled/large"
MIB = 1024 * 1024
PIPE_SIZE = 4096  # bytes, the least that Linux gives


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldCluster]:
    """Two keepers, threshold two, and a secret."""
    with started(HeldCluster(tmp_path_factory.mktemp("stalled") / "dev", Plan(keepers=2, threshold=2))) as cluster:
        cluster.allow(APP, ["stalled/**"], ["read", "write"])
        cluster.allow(HOARDER, [LARGE], ["read"])
        cluster.workload(APP).put(PATH, FIELDS)
        cluster.workload(APP).put(LARGE, {"value": bytes(MIB - 1024)})
        yield cluster


@pytest.fixture
def cluster(shared: HeldCluster) -> HeldCluster:
    """A ready and filled cluster, however the last test left it."""
    shared.processes.make_true()
    shared.bring_back()
    return shared


@contextmanager
def stalled_watches(cluster: HeldCluster, server: str) -> Iterator[None]:
    """Two workloads with five watches each, of which neither takes a byte."""
    with ExitStack() as stack:
        for number in range(2):
            credentials = certify(cluster.ca, uris=[f"spiffe://{TRUST_DOMAIN}/stalled/{number}"])
            connection = raw_connection(cluster.port(server), credentials, server_name=NAMES[server], window=0)
            raw = stack.enter_context(connection)
            streams = [raw.call(WATCH) for _ in range(5)]
            raw.receive_until(HEADERS, streams[0])  # the first of them has begun
        yield


@contextmanager
def full_pipe(path: Path) -> Iterator[None]:
    """A named pipe that takes no further byte, and that nobody reads."""
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        with contextlib.suppress(BlockingIOError):
            while os.write(fd, b"x"):
                pass
        yield
    finally:
        os.close(fd)


def check_sealed(cluster: HeldCluster) -> None:
    """Seal, and see that the keepers are empty when it is answered."""
    assert cluster.superuser.seal(timeout=at_most(10)).keepers_emptied == 2
    assert [cluster.count_sets(name) for name in cluster.keepers] == [0, 0]
    assert cluster.status()["state"] == "sealed"


def test_watches_that_take_nothing_hold_up_no_call_and_no_seal(cluster: HeldCluster) -> None:
    """Beside ten watches with a window of 0 secrets are served, and a seal wipes the nexus and empties the keepers."""
    with stalled_watches(cluster, "nexus"), stalled_watches(cluster, "keeper-1"):
        assert cluster.workload(APP).get(PATH, timeout=at_most(5)).fields == FIELDS
        check_sealed(cluster)


@pytest.mark.parametrize("server", ["nexus", "keeper-1"])
def test_watches_that_take_nothing_hold_up_no_end(cluster: HeldCluster, server: str) -> None:
    """A server with ten such watches ends at SIGTERM within the time that it gives calls in flight."""
    with stalled_watches(cluster, server):
        cluster.stop(server)


def test_a_log_that_nobody_reads_holds_up_no_call_and_no_seal(cluster: HeldCluster, tmp_path: Path) -> None:
    """A nexus whose stderr is a full pipe starts, recovers, serves, seals, wipes and ends like any other."""
    log = tmp_path / "log"
    with full_pipe(log):
        command = ["sh", "-c", 'exec "$@" 2>"$0"', str(log), *server_command(cluster.directory, "nexus")]
        cluster.processes.replace("nexus", command)
        cluster.wait_ready()
        assert cluster.workload(APP).get(PATH, timeout=at_most(5)).fields == FIELDS
        check_sealed(cluster)
        cluster.stop("nexus")


def test_answers_that_nobody_reads_cost_little(cluster: HeldCluster) -> None:
    """Five hundred unread answers of 1 MiB take a bounded part of the nexus's memory, which comes back; others read."""
    before, answered = read_memory(cluster, "VmRSS"), count_answers(cluster)
    with unread_answers(cluster):
        cluster.wait("all are answered or refused", lambda: count_answers(cluster) >= answered + 500)
        assert cluster.workload(APP).get(PATH, timeout=at_most(5)).fields == FIELDS
        assert cluster.workload(APP).get(LARGE, timeout=at_most(5)).version == 1
        assert read_memory(cluster, "VmHWM") < before + 200 * MIB
        cluster.wait("memory comes back", lambda: read_memory(cluster, "VmRSS") < before + 40 * MIB)
    assert cluster.workload(HOARDER).get(LARGE, timeout=at_most(5)).version == 1


@contextmanager
def unread_answers(cluster: HeldCluster) -> Iterator[None]:
    """Two connections of one workload with 250 reads of a large secret each, of whose answers it takes no byte."""
    credentials = certify(cluster.ca, uris=[f"spiffe://{TRUST_DOMAIN}{HOARDER}"])
    request = secrets_pb2.GetSecretRequest(path=LARGE).SerializeToString()
    with ExitStack() as stack:
        for _ in range(2):
            connection = raw_connection(cluster.port("nexus"), credentials, server_name=NAMES["nexus"], window=0)
            raw = stack.enter_context(connection)
            assert raw.receive_until(SETTINGS, 0) is not None
            for _ in range(250):
                raw.call(GET, request)
        yield


def read_memory(cluster: HeldCluster, line: str) -> int:
    """Return the bytes that the kernel names so for the nexus."""
    status = Path(f"/proc/{cluster.dev.state.processes['nexus'].pid}/status").read_text()
    found = re.search(rf"^{line}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def count_answers(cluster: HeldCluster) -> float:
    """Return how many reads the nexus has answered, refusals included."""
    lines = (cluster.fetch("nexus", "/metrics") or "").splitlines()
    found = (line for line in lines if line.startswith("shardhold_calls_total{") and '"GetSecret"' in line)
    return sum(float(line.rpartition(" ")[2]) for line in found)
