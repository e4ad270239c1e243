"""A store that somebody changed while no nexus ran on it, and what a nexus that starts on it says.

Each test changes the same good copy. Keepers run all the while and hold their shards and marks.
"""

import base64
import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import grpc
import pytest

import shardhold
from nexus.keys.manifest import row_digest
from nexus.policy.rules import Permission, Policy, encode_policy
from pilot.dev.cluster import server_command
from pilot.dev.directory import DevError, Plan
from pilot.dev.identities import TRUST_DOMAIN
from tests.cluster.operations import Operations
from tests.kit.cluster import Cluster, running
from tests.kit.patience import at_most
from tests.kit.refusal import Refusal
from tests.kit.seed import make_random

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP, EVIL = "/tampered/app", "/tampered/evil"
PATHS = [f"tampered/{number}" for number in range(6)]
NEWEST = {"value": b"the newest version"}
VALUES = {path: {"value": path.encode()} for path in PATHS} | {PATHS[0]: NEWEST}
APP_POLICY = "tampered-app"
# What /readyz says while keepers are still to be asked.
IN_BETWEEN = re.compile(r"asked yet|reached yet|does not answer|is empty|the nexus is recovering|: *$", re.MULTILINE)
DATABASE, WAL = "nexus.db", "nexus.db-wal"
FRAME = 24 + 4096  # bytes of a frame of the WAL: its header and a page


class Tampered:
    """The cluster, and the store that each test begins with."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._copies = 0
        self.keep()

    def keep(self) -> None:
        """Take the store of the ready nexus, which is whole, as what the next test begins with.

        Needed after each change that counts: the keepers remember it, and an older store would be refused.
        """
        self.cluster.stop("nexus")
        self.cluster.run("nexus")
        self.cluster.wait_ready()
        Operations(self.cluster).wait_rest()  # what overwrites the files empties the WAL
        self.cluster.workload(APP).put(PATHS[0], NEWEST)
        check_whole(self)
        self.cluster.wait_marked()
        self.cluster.kill("nexus")
        self._copies += 1
        self._copy = self.cluster.store.copy(str(self._copies))  # what came last is in the WAL alone

    @property
    def folder(self) -> Path:
        return self.cluster.directory.data

    def put_back(self) -> None:
        """Put the store back, as the kill left it."""
        if self.cluster.dev.is_alive("nexus"):
            self.cluster.kill("nexus")
        self.cluster.store.put_back(self._copy)

    def connect(self) -> AbstractContextManager[sqlite3.Connection]:
        """Open the database, as everybody can who may write the file; closing it empties the WAL."""
        return closing(sqlite3.connect(self.folder / DATABASE, isolation_level=None))

    def change(self, sql: str, *parameters: object) -> None:
        """Change one row."""
        with self.connect() as database:
            assert database.execute(sql, parameters).rowcount == 1, sql

    def load(self, sql: str) -> tuple[Any, ...]:
        """Return the first row of a query."""
        with self.connect() as database:
            row: tuple[Any, ...] = database.execute(sql).fetchone()
            return row

    def write_control(self, kind: str, name: str, body: bytes) -> None:
        """Put a control row there with the digest that belongs to it, which takes no key; the manifest takes one."""
        (cluster_id,) = self.load("SELECT cluster_id FROM meta")
        digest = row_digest(cluster_id, kind, name, body)
        self.change("INSERT OR REPLACE INTO control VALUES (?, ?, ?, ?)", kind, name, body, digest)

    def edit_control(self, kind: str, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit the body of the only control row of a kind."""
        name, body = self.load(f"SELECT name, body FROM control WHERE kind = '{kind}'")
        document = json.loads(body)
        edit(document)
        self.write_control(kind, name, json.dumps(document).encode())

    def try_to_start(self) -> str:
        """Start a nexus, and return why it does not come back, in its own words; empty: it is ready."""
        try:
            self.cluster.run("nexus")
        except DevError as exc:
            if "ended with exit code 1" not in str(exc):
                raise
            return self.cluster.directory.log("nexus").read_text().rpartition("nexus: error: ")[2]
        said = ""

        def look() -> bool:
            nonlocal said
            said = self.cluster.fetch("nexus", "/readyz")
            return self.cluster.dev.is_ready() or not (said == "" or IN_BETWEEN.search(said))

        self.cluster.wait("the nexus is ready, or says why it is not", look)
        return "" if self.cluster.dev.is_ready() else said

    def list_damaged(self) -> list[tuple[object, object]]:
        """Return kind and name of each control row that a nexus has ever named as damaged."""
        text = self.cluster.directory.log("nexus").read_text().splitlines()
        lines = [json.loads(line) for line in text if line.startswith("{")]  # the others are last words of processes
        return [(line["kind"], line["name"]) for line in lines if line["event"] == "control row does not verify"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tampered]:
    """Two keepers, a few secrets of two workloads, and a policy for one of them."""
    root = tmp_path_factory.mktemp("tampered") / "dev"
    with running(root, Plan(keepers=2, threshold=2)) as cluster:
        cluster.allow(APP, ["tampered/**"], ["read", "write", "list"])
        for path in PATHS:
            cluster.workload(APP).put(path, VALUES[path])
        cluster.wait_filled()
        yield Tampered(cluster)


@pytest.fixture
def store(shared: Tampered) -> Tampered:
    """The same, with nobody running on it."""
    shared.put_back()
    return shared


def check_whole(store: Tampered) -> None:
    """All that was ever acknowledged is served."""
    store.cluster.wait_ready()
    for path in PATHS:
        assert store.cluster.workload(APP).get(path).fields == VALUES[path]


# Control rows


def grant(name: str, path: str) -> bytes:
    """Make a policy, as an attacker would like to have one."""
    return encode_policy(
        Policy(name=name, spiffe_ids=(f"spiffe://{TRUST_DOMAIN}{path}",), paths=("**",), permissions=(Permission.READ,))
    )


def add_policy(store: Tampered) -> None:
    store.write_control("policy", "evil", grant("evil", EVIL))


def edit_policy(store: Tampered) -> None:
    store.write_control("policy", APP_POLICY, grant(APP_POLICY, EVIL))


def remove_policy(store: Tampered) -> None:
    store.change("DELETE FROM control WHERE kind = 'policy' AND name = ?", APP_POLICY)


def delete_added(cluster: Cluster) -> None:
    cluster.pilot("policy", "delete", "evil")


def apply_again(cluster: Cluster) -> None:
    cluster.allow(APP, ["tampered/**"], ["read", "write", "list"])


@pytest.mark.parametrize(
    ("damage", "name", "heal"),
    [
        pytest.param(add_policy, "evil", delete_added, id="a policy added by SQL"),
        pytest.param(edit_policy, APP_POLICY, apply_again, id="a policy edited by SQL"),
        pytest.param(remove_policy, APP_POLICY, apply_again, id="a policy removed by SQL"),
    ],
)
def test_policies_changed_by_sql(
    store: Tampered, damage: Callable[[Tampered], None], name: str, heal: Callable[[Cluster], None]
) -> None:
    """The row is named, no workload is authorised by any policy, and a superuser puts that right."""
    cluster = store.cluster
    damage(store)
    cluster.run("nexus")
    cluster.wait_ready()
    assert ("policy", name) in store.list_damaged()
    for path in (EVIL, APP):
        with pytest.raises(shardhold.DeniedError):
            cluster.workload(path).get(PATHS[1])
    assert name in cluster.pilot("policy", "list", exit_code=None).stderr
    heal(cluster)
    with pytest.raises(shardhold.DeniedError):
        cluster.workload(EVIL).get(PATHS[1])
    check_whole(store)
    store.keep()


def swap_keeper(body: dict[str, Any]) -> None:
    body["members"][0]["spiffe_id"] = f"spiffe://{TRUST_DOMAIN}{EVIL}"


def swap_commitment(body: dict[str, Any]) -> None:
    body["members"][0]["commitment"] = encode(os.urandom(32))


def kill_set(body: dict[str, Any]) -> None:
    body["state"] = "dead"


def swap_bytes(field: str) -> Callable[[dict[str, Any]], None]:
    """Replace the bytes of a field by random ones."""

    def edit(body: dict[str, Any]) -> None:
        body[field] = encode(os.urandom(len(base64.b64decode(body[field]))))

    return edit


def swap_escrow(body: dict[str, Any]) -> None:
    swap_bytes("sealed")(body["copies"][0])


def swap_wrap(body: dict[str, Any]) -> None:
    body["keks"]["2"]["wrap"] = encode(os.urandom(98))


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("kind", "edit", "says"),
    [
        pytest.param("generation", swap_bytes("kcv"), "key check value of generation 1", id="key check value"),
        pytest.param("keyring", swap_wrap, "control row keyring/1 does not verify", id="keyring"),
        pytest.param("canary", swap_bytes("value"), "control row canary/2 does not verify", id="canary"),
        pytest.param("genesis", swap_bytes("record"), "genesis record does not decode", id="genesis"),
        pytest.param("shard-set", swap_keeper, "does not verify: shard-set/1", id="a keeper's SPIFFE ID in the set"),
        pytest.param("shard-set", swap_commitment, "does not verify: shard-set/1", id="a commitment in the set"),
        pytest.param("shard-set", kill_set, "0 shard sets are current", id="the state of the set"),
    ],
)
def test_rows_that_recovery_needs(
    store: Tampered, kind: str, edit: Callable[[dict[str, Any]], None], says: str
) -> None:
    """It does not come back and says which row; keepers keep what they hold, and with the true row all is well."""
    cluster = store.cluster
    store.edit_control(kind, edit)
    assert says in store.try_to_start()
    assert [cluster.count_sets(name) for name in cluster.keepers] == [1, 1]
    store.put_back()
    cluster.run("nexus")
    check_whole(store)


@pytest.mark.parametrize(
    ("kind", "edit", "says"),
    [
        pytest.param(
            "recovery-key",
            swap_bytes("public_key"),
            "recovery key is not the one of the genesis record",
            id="swapped recovery key",
        ),
        pytest.param("escrow", swap_escrow, "escrow is not the one of the genesis record", id="swapped escrow"),
    ],
)
def test_what_only_an_unseal_needs(
    store: Tampered, kind: str, edit: Callable[[dict[str, Any]], None], says: str
) -> None:
    """Custodians are told before they submit anything; by its keepers the nexus comes back, and names the row."""
    cluster = store.cluster
    store.edit_control(kind, edit)
    cluster.freeze(*cluster.keepers)
    cluster.run("nexus")
    custodian = cluster.custodian(1)
    for ask in (custodian.get_progress, custodian.start_unseal):
        with Refusal(grpc.StatusCode.DATA_LOSS, says=says):
            ask()
    cluster.thaw(*cluster.keepers)
    check_whole(store)
    assert kind in dict(store.list_damaged())
    alarm = f"custodians could not bring this cluster back: control row {kind}"
    status = cluster.wait_status("an alarm says so", lambda status: any(alarm in line for line in status["alarms"]))
    assert (status["state"], status["blocked_by"]) == ("ready", [])
    assert cluster.dev.is_ready()
    assert alarm in cluster.fetch("nexus", "/readyz")
    assert "shardhold_way_back_broken 1.0" in cluster.fetch("nexus", "/metrics")


# Secrets


def test_rows_of_secrets(store: Tampered) -> None:
    """Each damaged version is an error of its own, no value comes out in another's place, and the rest goes on."""
    first, flipped, copied, moved, marked, lost = PATHS
    store.change("UPDATE versions SET value = randomblob(length(value)) WHERE path = ?", flipped)
    store.change(
        "UPDATE versions SET (dek_id, wrapped_dek, value) ="
        " (SELECT dek_id, wrapped_dek, value FROM versions WHERE path = ?) WHERE path = ?",
        *(first, copied),
    )
    store.change("UPDATE versions SET incarnation = randomblob(16) WHERE path = ?", moved)
    store.change("UPDATE versions SET deleted = 1 WHERE path = ?", marked)
    store.change("DELETE FROM versions WHERE path = ?", lost)
    assert not store.try_to_start()
    app = store.cluster.workload(APP)
    for path in (flipped, copied, moved, marked, lost):
        with pytest.raises(shardhold.IntegrityError):
            app.get(path)
    assert app.get(first).fields == NEWEST


# Bits


def flip(file: Path, position: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def check_named_or_right(store: Tampered) -> str:
    """Start on it; return what it says. When it is ready, each secret is right, or an error that names damage."""
    if said := store.try_to_start():
        return said
    for path in PATHS:
        try:
            assert store.cluster.workload(APP).get(path).fields == VALUES[path]
        except shardhold.IntegrityError as exc:
            said += str(exc)
        except shardhold.DeniedError:
            assert "policy" in dict(store.list_damaged())
            said += "a policy is damaged"
    return said


def test_a_flipped_bit_in_the_database(store: Tampered) -> None:
    """Named at the start, the recovery or the read, or without a consequence; `tests/nexus` looks at all pages."""
    store.load("PRAGMA wal_checkpoint(TRUNCATE)")
    file = store.folder / DATABASE
    whole, chance = file.read_bytes(), make_random("bits")
    said = []
    for position in (16, 40, *(chance.randrange(len(whole)) for _ in range(4))):  # two in the header
        store.put_back()
        store.load("PRAGMA wal_checkpoint(TRUNCATE)")
        flip(file, position, 1)
        said.append(check_named_or_right(store))
    assert any(said)


def test_a_flipped_bit_in_the_wal(store: Tampered) -> None:
    """SQLite ends a WAL in silence at the first bad frame, and so undoes what was acknowledged: keepers know better."""
    wal = store.folder / WAL
    size = wal.stat().st_size
    assert size > FRAME + 32
    last = size - FRAME  # of the last change, the newest version
    said = []
    for position in (8, 32 + 100, size // 2, last + 10):
        store.put_back()
        flip(wal, position, 3)
        said.append(check_named_or_right(store))
    assert all("older than a rollback mark" in one for one in said[:2]), said
    store.put_back()
    store.cluster.run("nexus")
    check_whole(store)


# Who else has it


def test_a_second_nexus_on_the_same_store(store: Tampered) -> None:
    """It names the lock and ends with 1, and the first one does not notice."""
    cluster = store.cluster
    cluster.run("nexus")
    check_whole(store)
    command = server_command(cluster.directory, "nexus")
    second = subprocess.run(command, capture_output=True, text=True, timeout=at_most(60), check=False)
    lock = store.folder.resolve() / f"{DATABASE}.lock"
    assert second.returncode == 1
    assert f"nexus: error: store lock {lock} is held: another nexus has this store" in second.stderr
    check_whole(store)
