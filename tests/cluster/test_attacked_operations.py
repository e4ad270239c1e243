"""A reshare that somebody disturbs: a seal at a bad moment, rows written by somebody else, a store put back, kills."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import grpc
import msgspec
import pytest

from nexus.keys import records
from nexus.keys.manifest import row_digest
from pilot.dev.cluster import server_command
from pilot.dev.directory import Plan
from pilot.dev.identities import server_identity
from shardhold.v1 import root_pb2 as pb
from shardhold.v1.root_pb2_grpc import RootServiceStub
from tests.cluster.ledger import Ledger
from tests.kit.cluster import Cluster, running
from tests.kit.patience import at_most, join
from tests.kit.seed import make_random

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

STAYING, LAST = ("keeper-1", "keeper-2", "keeper-3"), "keeper-4"


class Operator:
    """Whoever begins operations on *cluster*."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._root = RootServiceStub(cluster.superuser.channel)

    def start(self, *, add: str = "", remove: str = "") -> bytes:
        """Begin a reshare in which one keeper joins or leaves; return its id."""
        request = pb.StartOperationRequest(operation_id=os.urandom(16), depth=pb.DEPTH_RESHARE)
        request.remove.extend(filter(None, [remove]))
        if add:
            address = f"127.0.0.1:{self.cluster.dev.state.ports[add].grpc}"
            request.add.add(name=add, address=address, spiffe_id=server_identity(add).spiffe_id)
        self._root.StartOperation(request, timeout=at_most(20), wait_for_ready=True)
        return request.operation_id

    def try_start(self) -> bool:
        """Begin a reshare, in whose course the nexus may die; return whether that was answered."""
        with contextlib.suppress(grpc.RpcError):
            self.start()
            return True
        return False

    def abort(self) -> None:
        """Take back what is in progress; it may have ended meanwhile."""
        with contextlib.suppress(grpc.RpcError):
            running_id = self.fetch().operation.operation_id
            self._root.AbortOperation(pb.AbortOperationRequest(operation_id=running_id), timeout=at_most(20))

    def fetch(self) -> pb.GetOperationResponse:
        """Ask how the root key stands."""
        return self._root.GetOperation(pb.GetOperationRequest(), timeout=at_most(5), wait_for_ready=True)

    def wait_idle(self) -> pb.EndedOperation:
        """Wait until no operation is in progress; return the last one."""

        def is_idle() -> bool:
            with contextlib.suppress(grpc.RpcError):
                return not self.fetch().HasField("operation")
            return False

        self.cluster.wait("no operation is in progress", is_idle)
        return self.fetch().last

    def check_whole(self) -> None:
        """See that a reshare settles, once what is damaged has been healed, and leaves each keeper with one set."""
        self.wait_idle()
        self.cluster.wait("a reshare begins", self.try_start)
        assert self.wait_idle().outcome == pb.OUTCOME_SETTLED
        self.wait_sets(*self.cluster.keepers, count=1)

    def wait_sets(self, *names: str, count: int) -> None:
        """Wait until keepers hold so many sets each."""
        self.cluster.wait(
            f"{', '.join(names)} hold {count} sets",
            lambda: all(self.cluster.count_sets(name) == count for name in names),
        )

    def interrupt(self, step: str, *, add: str = "") -> None:
        """Begin a reshare, and have the nexus killed once a step is committed; it does not run then."""
        command = server_command(self.cluster.directory, "nexus")
        failpoint = f"SHARDHOLD_NEXUS__FAILPOINT={step}.commit:after:1:kill"
        self.cluster.kill("nexus")
        self.cluster.processes.start_instead("nexus", ["env", failpoint, *command])
        self.cluster.wait_ready()
        with contextlib.suppress(grpc.RpcError):
            self.start(add=add)
        self.cluster.wait("the nexus is dead", lambda: not self.cluster.dev.is_alive("nexus"))

    def accept(self) -> None:
        """Wait until the store is refused, and accept it as it is."""
        cluster = self.cluster

        def is_refused() -> bool:
            return "older than a rollback mark" in cluster.fetch("nexus", "/readyz")

        cluster.wait("the store is refused", is_refused)
        cluster.unseal()
        status = cluster.superuser.get_status()
        cluster.superuser.accept_older_store(status.timeline, status.revision)
        cluster.wait_ready()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four keepers, of which two rebuild the key."""
    with running(tmp_path_factory.mktemp("attacked") / "dev", Plan(keepers=4, threshold=2)) as cluster:
        yield cluster


@pytest.fixture
def operator(shared: Cluster) -> Operator:
    """The cluster ready, with all keepers in the current set."""
    operator = Operator(shared)
    if operator.fetch().keepers == len(STAYING):
        operator.start(add=LAST)
        operator.wait_idle()
    shared.wait_filled()
    return operator


# Seals


def seal(cluster: Cluster) -> None:
    """Seal, and wait for nobody who does not answer."""
    cluster.superuser.seal(timeout=at_most(2))


def test_a_keeper_that_left_is_emptied_by_a_sealed_nexus_after_a_restart(operator: Operator) -> None:
    """It was away since before it left, and its old shard is of the root key of now."""
    cluster = operator.cluster
    cluster.freeze(LAST)
    operator.start(remove=LAST)
    operator.wait_idle()
    seal(cluster)
    cluster.kill("nexus")
    cluster.run("nexus")
    cluster.thaw(LAST)
    operator.wait_sets(*cluster.keepers, count=0)
    cluster.unseal()
    cluster.wait_ready()


def test_a_keeper_that_joins_is_emptied_by_a_seal_without_a_key(operator: Operator) -> None:
    """It has a shard of the pending set, and is no member of the current one."""
    cluster = operator.cluster
    operator.start(remove=LAST)
    operator.wait_idle()
    operator.wait_sets(LAST, count=0)
    operator.interrupt("distribute", add=LAST)
    operator.wait_sets(LAST, count=1)
    cluster.freeze(*STAYING)
    cluster.run("nexus")
    cluster.wait_status("it recovers", lambda status: status["state"] == "recovering")
    seal(cluster)
    cluster.thaw(*STAYING)
    operator.wait_sets(*cluster.keepers, count=0)
    cluster.unseal()
    cluster.wait_ready()
    assert operator.fetch().last.outcome == pb.OUTCOME_ABORTED


# Rows


class Rows:
    """The control rows of a nexus that does not run, in the hands of somebody who may write the file."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        (self._cluster_id,) = database.execute("SELECT cluster_id FROM meta").fetchone()
        numbers = database.execute("SELECT max(CAST(name AS INTEGER)) FROM control WHERE kind = 'shard-set'")
        self.newest_set = records.SHARD_SET, str(numbers.fetchone()[0])

    def edit(self, key: records.Key, **changes: object) -> None:
        """Change fields of a row, with the digest that belongs to it, which takes no key."""
        (body,) = self._database.execute("SELECT body FROM control WHERE kind = ? AND name = ?", key).fetchone()
        body = msgspec.json.encode(msgspec.json.decode(body) | changes)
        row = (*key, body, row_digest(self._cluster_id, *key, body))
        self._database.execute("INSERT OR REPLACE INTO control VALUES (?, ?, ?, ?)", row)

    def delete(self, key: records.Key) -> None:
        """Delete a row."""
        assert self._database.execute("DELETE FROM control WHERE kind = ? AND name = ?", key).rowcount == 1


@pytest.mark.parametrize(
    ("step", "spoil"),
    [
        pytest.param("prepare", lambda rows: rows.edit(records.OPERATION, quorum=1), id="prepared: fewer are wanted"),
        pytest.param("prepare", lambda rows: rows.delete(rows.newest_set), id="prepared: the set is gone"),
        pytest.param(
            "distribute", lambda rows: rows.edit(records.OPERATION, step="flipped"), id="distributed: flipped"
        ),
        pytest.param("distribute", lambda rows: rows.delete(records.OPERATION), id="distributed: forgotten"),
        pytest.param(
            "distribute", lambda rows: rows.edit(rows.newest_set, threshold=1), id="distributed: one is enough"
        ),
        pytest.param(
            "flip", lambda rows: rows.edit(records.OPERATION, step="prepared"), id="flipped: back to prepared"
        ),
        pytest.param("flip", lambda rows: rows.delete(records.OPERATION), id="flipped: forgotten"),
        pytest.param("settle", lambda rows: rows.edit(records.ENDED, outcome="aborted"), id="settled: a lie about it"),
    ],
)
def test_rows_of_an_operation_that_somebody_else_wrote(
    operator: Operator, step: str, spoil: Callable[[Rows], None]
) -> None:
    """The nexus comes back, carries out nothing that it did not write, and the next reshare leaves all as it should."""
    operator.interrupt(step)
    with closing(sqlite3.connect(operator.cluster.directory.data / "nexus.db", isolation_level=None)) as database:
        spoil(Rows(database))
    operator.cluster.run("nexus")
    operator.cluster.wait_ready()
    operator.check_whole()


# Stores


def test_a_store_of_before_a_reshare(operator: Operator) -> None:
    """It is refused, and keepers keep their new set; once it is accepted all goes on."""
    cluster = operator.cluster
    cluster.kill("nexus")
    copy = cluster.store.copy("before")
    cluster.run("nexus")
    cluster.wait_ready()
    operator.check_whole()
    cluster.kill("nexus")
    cluster.store.put_back(copy)
    cluster.run("nexus")
    operator.accept()
    operator.check_whole()


def test_a_store_of_the_middle_of_a_reshare_that_was_taken_back(operator: Operator) -> None:
    """Its pending set, which keepers have dropped, is never the current one."""
    cluster = operator.cluster
    operator.interrupt("distribute")
    copy = cluster.store.copy("distributed")
    cluster.run("nexus")
    cluster.wait_ready()
    operator.abort()
    operator.wait_idle()
    operator.wait_sets(*cluster.keepers, count=1)
    operator.check_whole()
    cluster.kill("nexus")
    cluster.store.put_back(copy)
    cluster.run("nexus")
    operator.accept()
    assert operator.wait_idle().outcome == pb.OUTCOME_ABORTED
    operator.check_whole()


# Kills


def test_kills_at_any_instant_under_load(operator: Operator) -> None:
    """What was acknowledged is there, and the operation ends by itself, whichever it was in."""
    cluster, ledger, chance = operator.cluster, Ledger(operator.cluster.superuser), make_random("reshare kills")
    for turn in range(4):
        ended = threading.Event()
        writer = threading.Thread(target=_write, args=(ledger, ended))
        writer.start()
        operator.try_start()
        ended.wait(chance.uniform(0.0, 1.2))
        cluster.kill("nexus")
        ended.set()
        join(writer, 60)
        if turn % 2:
            cluster.rerun(f"keeper-{turn + 1}")
        cluster.run("nexus")
        cluster.wait_ready()
        operator.wait_idle()
        ledger.check(whole=True)
    operator.check_whole()


def _write(ledger: Ledger, ended: threading.Event) -> None:
    while not ended.is_set():
        ledger.put()
