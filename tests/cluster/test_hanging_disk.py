"""A disk that hangs under a nexus, so that a sync of its store does not come back: strace holds it."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import shardhold
from tests.kit.cluster import Cluster
from tests.kit.patience import join, patience
from tests.kit.refusal import read_reason
from tests.kit.waiting import WAIT_S

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.destructive,
    pytest.mark.needs("strace"),
    pytest.mark.needs("memory"),  # who may not read the memory of a nexus may not trace it either
]

APP, PATH = "/hanging/app", "hanging/secret"
HANG_S = 600  # far longer than anybody waits


@contextlib.contextmanager
def hanging_syncs(cluster: Cluster) -> Iterator[None]:
    """Let every sync of the store's files hang, and of the audit's, from the next one on."""
    files = [cluster.directory.data / "nexus.db-wal", *cluster.directory.audit.glob("*.jsonl")]
    paths = [part for file in files for part in ("-P", str(file))]
    inject = f"inject=fdatasync,fsync:delay_enter={HANG_S}s"
    pid = cluster.dev.state.processes["nexus"].pid
    command = ["strace", "-f", "-o", "/dev/null", *paths, "-e", "trace=fdatasync,fsync", "-e", inject, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        try:
            assert strace.stderr is not None
            assert "attached" in strace.stderr.readline()
            yield
        finally:
            strace.kill()


def read_state(pid: int) -> str:
    """Read the state of the main thread of a process: Z when it ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_seal_wipes_and_empties_the_keepers_although_its_commit_hangs(fresh_cluster: Cluster) -> None:
    """The caller is told so, the process ends by itself with exit code 1, and only custodians bring it back."""
    cluster = fresh_cluster
    cluster.wait_filled()
    cluster.allow(APP, [f"{PATH}/**"], ["read", "write"])
    client = cluster.workload(APP)
    client.put(PATH, {"value": b"v"})
    superuser = cluster.superuser
    superuser.get_status()  # connected before it has to be quick

    def put_in_vain() -> None:
        with contextlib.suppress(shardhold.Error):
            client.put(f"{PATH}/other", {"value": b"w"})

    putting = threading.Thread(target=put_in_vain, daemon=True)
    with hanging_syncs(cluster):
        putting.start()  # holds a worker of the nexus, whoever of the two comes first
        started, limit = time.monotonic(), patience(WAIT_S)
        with pytest.raises(grpc.RpcError) as refused:
            superuser.seal("drill", timeout=limit)
        assert time.monotonic() - started < limit, "it was answered, and did not run into the caller's deadline"
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert read_reason(refused.value) == "OUTCOME_UNKNOWN"
        assert "keys are wiped, 5 of 5 keepers hold no shard any more, and the nexus ends" in (
            refused.value.details() or ""
        )
        pid = cluster.dev.state.processes["nexus"].pid
        # A thread that strace holds can no more be reaped than one that a disk holds; the others are gone.
        cluster.wait("the nexus ended", lambda: read_state(pid) == "Z", timeout=2 * WAIT_S)
    assert '"exit_code": 1' in cluster.dev.log_tail("nexus", 3)
    cluster.wait("the nexus is gone", lambda: not cluster.dev.is_alive("nexus"))
    cluster.run("nexus")
    assert cluster.wait_settled() in {"recovering", "sealed"}
    cluster.bring_back()
    join(putting, WAIT_S)
    assert not putting.is_alive()
    assert client.get(PATH).fields == {"value": b"v"}
