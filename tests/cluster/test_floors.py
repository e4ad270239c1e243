"""Rows that somebody puts back behind a running nexus, and a nexus that slept while another one sealed the cluster.

Who does that can write the database, and has no key. Every test but the last leaves the cluster ready.
"""

import json
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

import shardhold
from pilot.dev.cluster import clean_environ, server_command
from pilot.dev.directory import Plan
from pilot.dev.identities import SUPERUSER_PATH, Identity
from shardhold import WorkloadAPI
from shardhold.channel import PinnedChannel
from shardhold.v1 import cluster_pb2, policies_pb2
from tests.cluster.operations import Operations
from tests.kit.cluster import Cluster, running
from tests.kit.patience import at_most, patience
from tests.kit.person import Person
from tests.kit.probes import Status
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP = "/floors/app"
POLICY, OTHER = "floors-app", "floors-other"
PATH = "floors/kept"
Copy = tuple[tuple[Any, ...], list[tuple[Any, ...]]]


class Tampering:
    """The cluster, and somebody who may write the database of its nexus while that runs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def copy(self) -> Copy:
        """Copy the control rows, and what of the meta row belongs to them."""
        with closing(sqlite3.connect(self._file)) as database:
            (control_revision,) = database.execute("SELECT control_revision FROM meta").fetchone()
            return control_revision, database.execute("SELECT kind, name, body, digest FROM control").fetchall()

    def put_back(self, copy: Copy) -> None:
        """Put that back, in one change; the revision stays as it is."""
        control_revision, rows = copy
        with closing(sqlite3.connect(self._file, timeout=at_most(10))) as database, database:
            database.execute("DELETE FROM control")
            database.executemany("INSERT INTO control VALUES (?, ?, ?, ?)", rows)
            database.execute("UPDATE meta SET control_revision = ?", (control_revision,))

    def change(self, sql: str) -> None:
        with closing(sqlite3.connect(self._file, timeout=at_most(10))) as database, database:
            assert database.execute(sql).rowcount == 1, sql

    def revoke(self, name: str = POLICY) -> None:
        request = policies_pb2.DeletePolicyRequest(name=name)
        self.cluster.superuser.policies.DeletePolicy(request, timeout=at_most(20))

    def put(self) -> None:
        self.cluster.workload(APP).put(PATH, {"value": b"kept"})

    def wait_blocked(self, *said: str) -> Status:
        """Wait until the nexus has ended ready, and is blocked by a mark that it made itself."""

        def is_blocked(status: Status) -> bool:
            text = "\n".join(status["blocked_by"])
            return status["state"] == "recovering" and "remember" in text and all(one in text for one in said)

        status = self.cluster.wait_status("it is blocked, and says why", is_blocked)
        assert not self.cluster.dev.is_ready()
        with pytest.raises(shardhold.RecoveringError):
            self.cluster.workload(APP).get(PATH, timeout=patience(1))
        return status

    def accept(self) -> None:
        """Wait until there is a key, and accept the store as it is."""
        status = self.cluster.superuser.get_status()

        def try_it() -> bool:
            try:
                self.cluster.superuser.accept_older_store(status.timeline, status.revision)
            except grpc.RpcError as exc:
                if exc.code() is grpc.StatusCode.FAILED_PRECONDITION:  # there is no key yet
                    return False
                raise
            return True

        self.cluster.wait("it is accepted", try_it)
        self.cluster.wait_ready()

    @property
    def _file(self) -> Path:
        return self.cluster.directory.data / "nexus.db"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tampering]:
    """Two keepers."""
    with running(tmp_path_factory.mktemp("floors") / "dev", Plan(keepers=2, threshold=2)) as cluster:
        yield Tampering(cluster)


@pytest.fixture
def store(shared: Tampering) -> Tampering:
    """The same, ready, with a policy that is in force and another one, and known to all keepers."""
    cluster = shared.cluster
    cluster.wait_ready()
    cluster.allow(APP, ["floors/**"], ["read", "write"])
    cluster.allow(OTHER.replace("-", "/"), ["floors/**"], ["read"])
    shared.put()
    Operations(cluster).wait_rest()  # after an acceptance the nexus changes control rows by itself for a while
    cluster.wait_filled()
    cluster.wait_marked()
    return shared


def test_a_revoked_policy_does_not_come_back_with_the_rows(store: Tampering) -> None:
    """The nexus leaves ready although nobody calls it, and neither it nor, after a restart, its keepers forget."""
    cluster, older = store.cluster, store.copy()
    store.revoke()
    cluster.wait_marked()
    with pytest.raises(shardhold.DeniedError):
        cluster.workload(APP).get(PATH)
    store.put_back(older)
    store.wait_blocked("ready ended: the store was put back", "this nexus remember", "policies or settings")
    assert [cluster.count_sets(name) for name in cluster.keepers] == [1, 1]
    cluster.rerun("nexus")

    def is_said_by_all(status: Status) -> bool:
        newer = status["newer_mark"]
        return newer is not None and newer["keepers"] == list(cluster.keepers)

    status = cluster.wait_status("the keepers say so", is_said_by_all)
    assert status["state"] == "recovering"
    with pytest.raises(shardhold.RecoveringError):
        cluster.workload(APP).get(PATH, timeout=patience(1))
    store.accept()


def test_no_revocation_is_told_as_made_on_rows_that_were_put_back(store: Tampering) -> None:
    """It fails, and what it was to revoke is not in force: the nexus has ended ready."""
    cluster, older = store.cluster, store.copy()
    store.revoke(OTHER)
    cluster.wait_marked()
    store.put_back(older)
    with pytest.raises(grpc.RpcError) as caught:
        store.revoke()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    store.wait_blocked("ready ended: the store was put back")
    store.accept()
    store.revoke()
    with pytest.raises(shardhold.DeniedError):
        cluster.workload(APP).get(PATH)


@pytest.mark.parametrize("column", ["control_revision", "revision", "epoch"])
def test_a_number_that_was_put_back_ends_ready(store: Tampering, column: str) -> None:
    """One alone, while the nexus runs; with the true one it comes back by itself, and nothing has to be accepted."""
    cluster = store.cluster
    store.change(f"UPDATE meta SET {column} = {column} - 1")
    name = column.replace("_", " ")
    said = cluster.wait_status(
        "ready has ended, and it is named",
        lambda status: f"ready ended: the store was put back: it is at {name}" in "\n".join(status["blocked_by"]),
    )
    assert said["state"] == "recovering"
    store.change(f"UPDATE meta SET {column} = {column} + 1")
    cluster.rerun("nexus")
    cluster.wait_ready()
    assert cluster.workload(APP).get(PATH).fields == {"value": b"kept"}


def test_a_seal_that_was_undone_in_the_store_is_seen(store: Tampering) -> None:
    """The flag itself is read before any key can check it; with the key, the keepers' marks have a higher epoch."""
    cluster = store.cluster
    assert cluster.superuser.seal().keepers_emptied == 2
    cluster.kill("nexus")
    store.change("UPDATE meta SET sealed = 0, epoch = epoch - 1")
    cluster.run("nexus")
    cluster.wait_status("marks came", lambda status: status["newer_mark"] is not None)
    session = cluster.custodian(1).start_unseal()
    for number in (1, 2, 3):
        submitted = cluster.custodian(number).submit_words(session.session_id, cluster.words[number - 1])
    assert (submitted.submitted, submitted.ready) == (3, False)
    blocked = "\n".join(cluster.status()["blocked_by"])
    assert "a seal or an unseal was undone in the store" in blocked
    store.accept()
    assert cluster.workload(APP).get(PATH).fields == {"value": b"kept"}
    cluster.wait_filled()


class Elsewhere:
    """Another nexus with the same name, on a copy of the store and the audit; it ends with the block."""

    def __init__(self, cluster: Cluster) -> None:
        self._processes = cluster.dev.processes
        root = cluster.directory.root / "elsewhere"
        shutil.copytree(cluster.directory.data, root / "data")
        shutil.copytree(cluster.directory.audit, root / "audit")
        (root / "config").mkdir()
        ports, text = cluster.dev.state.ports["nexus"], cluster.directory.config("nexus").read_text()
        for before, after in (
            (str(cluster.directory.data), str(root / "data")),
            (str(cluster.directory.audit), str(root / "audit")),
            (f":{ports.grpc}", ":0"),
            (f":{ports.http}", ":0"),
        ):
            assert before in text
            text = text.replace(before, after)
        config, self._log = root / "config" / "nexus.toml", root / "nexus.log"
        config.write_text(text)
        command = [*server_command(cluster.directory, "nexus")[:-1], str(config)]
        self._process = self._processes.start(
            command, log=self._log, environ=clean_environ(), directory=cluster.directory.root
        )
        port = wait_until(self._find_port, what="start of the second nexus")
        self._identity = WorkloadAPI(f"unix:{cluster.dev.add_identity(Identity(path=SUPERUSER_PATH))}")
        self._channel = PinnedChannel(f"127.0.0.1:{port}", self._identity, server_name="nexus.shardhold")
        self.superuser = Person(self._channel, self._identity)

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._identity.close()
        self._processes.send_signal(self._process, signal.SIGKILL)

    def is_ready(self) -> bool:
        return self.superuser.get_status().state == cluster_pb2.STATE_READY

    def _find_port(self) -> int:
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return next((int(line["port"]) for line in lines if line["event"] == "listening"), 0)


def test_a_nexus_that_slept_through_a_seal_fills_no_keeper(store: Tampering) -> None:
    """It wakes with its keys, and believes that it is ready: keepers refuse its epoch, and their marks end ready."""
    cluster = store.cluster
    cluster.freeze("nexus")
    with Elsewhere(cluster) as elsewhere:
        cluster.wait("the second nexus is ready", elsewhere.is_ready)
        assert elsewhere.superuser.seal("elsewhere").keepers_emptied == 2
    cluster.thaw("nexus")
    cluster.wait_status("it has woken, and ready has ended", lambda status: status["state"] == "recovering")
    assert [cluster.count_sets(name) for name in cluster.keepers] == [0, 0]
