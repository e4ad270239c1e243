"""A cluster that lost its store comes back from a backup, on real processes and by the printed commands."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from common.forms.bech32 import encode_identity
from common.keys.protected_file import protect
from nexus.store.protocol import Meta
from nexus.store.sqlite.store import SqliteStore
from pilot.dev.cluster import clean_environ, server_command
from pilot.dev.directory import Plan
from shardhold.v1 import root_pb2 as pb
from tests.cluster.ledger import Ledger
from tests.cluster.operations import Operations
from tests.cluster.strace import Injection, Strace
from tests.kit.cluster import Cluster, running
from tests.kit.patience import at_most
from tests.kit.probes import Status
from tests.kit.transcript import run_program_at_terminal

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three keepers, threshold two."""
    with running(tmp_path / "dev", Plan(keepers=3, threshold=2)) as cluster:
        yield cluster


def back_up(cluster: Cluster) -> Path:
    """Make a backup, and return its file."""
    made = json.loads(cluster.pilot("backup", "create", "-o", "json").stdout)
    return cluster.directory.backups / str(made["name"])


def make_command(cluster: Cluster, backup: Path, *, identity: Path) -> list[str]:
    """Return the command line that restores *backup*."""
    command = server_command(cluster.directory, "nexus")
    command.insert(command.index("--config"), "restore")
    return [*command, "--from", str(backup), "--identity", str(identity)]


def restore(
    cluster: Cluster, backup: Path, *more: str, wrap: Callable[[Sequence[str]], list[str]] = list
) -> subprocess.CompletedProcess[str]:
    """Run `nexus restore` while no nexus runs, by the command that *wrap* makes of it."""
    command = [*make_command(cluster, backup, identity=cluster.directory.backup_identity), *more]
    return subprocess.run(
        wrap(command), env=clean_environ(), capture_output=True, text=True, timeout=at_most(60), check=False
    )


def find_genesis(cluster: Cluster) -> str:
    """Return the fingerprint that is on the share cards."""
    return cluster.superuser.get_status().genesis.hex()


def lose_data(cluster: Cluster) -> None:
    """Take data and audit away, as with their machine."""
    for folder in (cluster.directory.data, cluster.directory.audit):
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)


def accept(cluster: Cluster) -> Status:
    """Wait until the restored store waits for a superuser, accept it, and return the status of after."""
    status = cluster.wait_status(
        "it is to be accepted", lambda status: bool(status["blocked_by"]) and status["generation"]
    )
    at = ("--timeline", str(status["timeline"]), "--revision", str(status["revision"]))
    cluster.wait(
        "it is accepted", lambda: cluster.pilot("accept-older-store", *at, "--yes", exit_code=None).returncode == 0
    )
    cluster.wait_ready()
    return cluster.status()


def test_a_server_that_is_lost_with_all_keepers(cluster: Cluster) -> None:
    """The backup gives the rows back, custodians the key; then a new timeline and a new root key begin."""
    ledger, genesis = Ledger(cluster.superuser), find_genesis(cluster)
    assert ledger.put() == ""
    backup = back_up(cluster)
    cluster.kill("nexus", *cluster.keepers)
    lose_data(cluster)
    done = restore(cluster, backup, "--genesis", genesis)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("restored  timeline 1, revision ")
    cluster.run("nexus", *cluster.keepers)
    status = cluster.status()
    assert (status["state"], status["restored"]) == ("recovering", True)
    cluster.unseal()
    after = accept(cluster)
    assert (after["timeline"], after["generation"], after["restored"]) == (2, 2, False)
    ledger.check()
    Operations(cluster).wait_rest()
    cluster.restart_nexus()
    assert cluster.status()["generation"] == 2


def test_a_store_that_is_put_back_over_a_newer_one(cluster: Cluster, tmp_path: Path) -> None:
    """Keepers give the key back and remember more; the newer store is kept beside. A passphrase is asked for."""
    genesis = find_genesis(cluster)
    backup = back_up(cluster)
    late = Ledger(cluster.superuser)
    assert late.put() == ""
    cluster.wait_marked()
    refused = restore(cluster, backup, "--genesis", genesis)
    assert "another nexus has this store" in refused.stderr
    cluster.kill("nexus")
    for more, said in (((), "--genesis: got none"), (("--genesis", genesis), "there is a store at")):
        refused = restore(cluster, backup, *more)
        assert (refused.returncode != 0, said in refused.stderr) == (True, True), refused.stderr
    protected = tmp_path / "identity.age"
    protected.write_bytes(protect(cluster.directory.backup_identity.read_bytes(), b"seven herons", work=10))
    command = [*make_command(cluster, backup, identity=protected), "--genesis", genesis, "--replace"]
    done = run_program_at_terminal(*command, script=[("passphrase of", "seven herons")])
    assert done.code == 0, done
    assert "kept beside it as nexus.db.replaced" in done.out
    assert cluster.directory.data.joinpath("nexus.db.replaced").exists()
    cluster.run("nexus")
    assert accept(cluster)["timeline"] == 2
    cluster.pilot("secret", "get", "ledger/0", exit_code=3)


def test_a_backup_from_the_middle_of_a_rotation(cluster: Cluster) -> None:
    """Keepers are a root key further, so custodians bring the earlier one back; nothing is left of the rotation."""
    genesis, operations = find_genesis(cluster), Operations(cluster)
    operations.back_up()  # the first one waits for the end of an operation
    assert operations.ledger.put() == ""
    cluster.wait_filled()
    cluster.kill("keeper-3")
    operations.begin(pb.DEPTH_ROTATE)
    operations.wait_waiting("keeper-3")
    backup = back_up(cluster)
    cluster.run("keeper-3")
    operations.wait_ended()
    cluster.kill("nexus")
    done = restore(cluster, backup, "--genesis", genesis, "--replace")
    assert done.returncode == 0, done.stderr
    cluster.run("nexus")
    cluster.unseal()
    assert accept(cluster)["timeline"] == 2
    operations.check_world(is_everybody=False)
    cluster.restart_nexus()
    operations.check_world(is_everybody=False)


@pytest.mark.needs("strace")
def test_a_restore_that_is_killed_leaves_the_old_store_or_the_new(cluster: Cluster, tmp_path: Path) -> None:
    """At every call that moves a file; the next restore goes through, and the cluster comes back."""
    genesis, backup = find_genesis(cluster), back_up(cluster)
    assert Ledger(cluster.superuser).put() == ""
    cluster.kill("nexus")
    database = cluster.directory.data / "nexus.db"
    files = [database.with_name(database.name + suffix) for suffix in ("", ".restoring", ".replaced", "-wal", "-shm")]
    before, killed = read_meta(database), 0
    for call in ("link", "rename", "fsync", "unlink"):
        for when in range(1, 4):
            strace = Strace(tmp_path / "strace", [*files, database.parent], Injection(call, "signal=KILL", str(when)))
            done = restore(cluster, backup, "--genesis", genesis, "--replace", wrap=strace.wrap)
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL, done.stderr
            killed += 1
            found = read_meta(database)
            assert found.is_restored or found == before
            assert (found.cluster_id, found.phase) == (before.cluster_id, before.phase)
    assert killed >= 5
    assert restore(cluster, backup, "--genesis", genesis, "--replace").returncode == 0
    cluster.run("nexus")
    assert accept(cluster)["timeline"] == 2
    assert Ledger(cluster.superuser).put() == ""


def read_meta(database: Path) -> Meta:
    """Read what the store says of itself, as a nexus would open it."""
    store = SqliteStore.open(database)
    try:
        with store.read() as reader:
            return reader.load_meta()
    finally:
        store.close()


@pytest.mark.parametrize("kind", ["cut off", "another cluster's", "another identity's"])
def test_what_is_no_backup_of_this_cluster(cluster: Cluster, kind: str) -> None:
    """Refused with the reason, and the place of the store is as it was."""
    backup, genesis = back_up(cluster), find_genesis(cluster)
    cluster.kill("nexus")
    lose_data(cluster)
    if kind == "cut off":
        backup.write_bytes(backup.read_bytes()[:-100])
    more = ("--genesis", "ab" * 32 if kind == "another cluster's" else genesis)
    if kind == "another identity's":
        cluster.directory.backup_identity.write_text(encode_identity(bytes(32)))
    refused = restore(cluster, backup, *more)
    said = {
        "cut off": "damaged or cut off",
        "another cluster's": "another cluster",
        "another identity's": "not for this",
    }
    assert refused.returncode == 1
    assert said[kind] in refused.stderr
    assert [path.name for path in cluster.directory.data.iterdir()] == ["nexus.db.lock"]
