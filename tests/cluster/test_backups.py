"""Backups on a real cluster: made while writers write, opened by the nexus and without one, and never half a file."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.dev.cluster import server_command
from pilot.dev.directory import Plan
from tests.cluster.ledger import Ledger
from tests.kit.cluster import Cluster, running
from tests.kit.patience import join, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three keepers, threshold two, as `pilot dev up` starts them."""
    with running(tmp_path_factory.mktemp("backups") / "dev", Plan(keepers=3, threshold=2)) as cluster:
        yield cluster


def ask(cluster: Cluster, *command: str) -> Any:
    """Run `pilot backup …` and return its document."""
    return json.loads(cluster.pilot("backup", *command, "-o", "json").stdout)


def read_alone(cluster: Cluster, file: Path) -> Any:
    """Verify a file with the identity of its recipient, where no nexus can be reached."""
    genesis = cluster.superuser.get_status().genesis.hex()
    identity = str(cluster.directory.backup_identity)
    command = ["backup", "verify", str(file), "--identity", identity, "--genesis", genesis, "-o", "json"]
    return json.loads(cluster.pilot(*command, "--address", "127.0.0.1:1").stdout)


def list_left(cluster: Cluster) -> list[str]:
    """List what a backup leaves only while it is made."""
    folders = (cluster.directory.data, cluster.directory.backups)
    names = [path.name for folder in folders for path in folder.iterdir()]
    return sorted(name for name in names if name.endswith(".new") or ".copy" in name)


def test_backups_by_schedule(cluster: Cluster) -> None:
    """None was verified, so the first look makes one; what retention does not keep is gone, and the status says so."""
    by_hand = ask(cluster, "create")["name"]
    options = {"INTERVAL_HOURS": "1", "KEEP_LAST": "1", "KEEP_MINIMUM": "1"}
    environ = [f"SHARDHOLD_NEXUS__BACKUP__{name}={value}" for name, value in options.items()]
    cluster.kill("nexus")
    cluster.processes.start_instead("nexus", ["env", *environ, *server_command(cluster.directory, "nexus")])
    cluster.wait_ready()
    cluster.wait("one is made by schedule", lambda: ask(cluster, "status")["newest"] != by_hand)
    cluster.wait("retention removes the older one", lambda: ask(cluster, "status")["backups"] == 1)
    status = ask(cluster, "status")
    assert status["verified"] == status["newest"] != by_hand
    assert (status["every_hours"], status["failures"]) == (1, 0)
    assert status["next_at"] is not None
    cluster.rerun("nexus")
    cluster.wait_ready()


def test_a_backup_of_a_busy_cluster(cluster: Cluster) -> None:
    """It holds one state of the store; its nexus verifies it, and so does whoever has the identity, without a nexus."""
    is_over, ledger = threading.Event(), Ledger(cluster.superuser)
    answers: list[str] = []

    def write() -> None:
        while not is_over.is_set():
            answers.append(ledger.put())
            ledger.turn()

    writer = threading.Thread(target=write)
    writer.start()
    made = [ask(cluster, "create") for _ in range(2)]
    is_over.set()
    join(writer, 10)
    assert not any(answers)
    assert ask(cluster, "verify")["name"] == made[1]["name"]
    assert made[0]["revision"] < made[1]["revision"]
    listed = ask(cluster, "list")["backups"]
    assert [backup["name"] for backup in listed[:2]] == [one["name"] for one in reversed(made)]
    assert [bool(backup["verified_at"]) for backup in listed[:2]] == [True, False]
    for one in made:
        alone = read_alone(cluster, cluster.directory.backups / one["name"])
        assert alone["revision"] == one["revision"]
        assert alone["rows"]["secrets"] == alone["rows"]["versions"] == alone["rows"]["requests"]
    assert list_left(cluster) == []


def test_kills_leave_no_half_backup(cluster: Cluster) -> None:
    """Of the nexus and of the process that writes: what is listed is whole, and nothing else stays."""
    before = ask(cluster, "list")["backups"]
    thread = threading.Thread(target=lambda: cluster.pilot("backup", "create", exit_code=None))
    thread.start()
    wait_until(lambda: bool(list_left(cluster)) or not thread.is_alive(), seconds=10, pause=0.001)
    cluster.kill("nexus")
    join(thread, 20)
    cluster.start_nexus()
    cluster.wait_ready()
    made = ask(cluster, "create")
    assert list_left(cluster) == []
    for backup in ask(cluster, "list")["backups"]:
        assert read_alone(cluster, cluster.directory.backups / backup["name"])["revision"] == backup["revision"]
    assert made["revision"] >= before[0]["revision"]


def test_a_damaged_backup_is_refused(cluster: Cluster) -> None:
    """By its name; the one before it verifies as ever."""
    whole = ask(cluster, "create")["name"]
    file = cluster.directory.backups / whole
    copy = file.with_name(f"{whole[:-12]}00000000.age")
    shutil.copy(file, copy)
    with copy.open("r+b") as damaged:
        damaged.seek(-100, os.SEEK_END)
        damaged.write(b"\0" * 10)
    refused = cluster.pilot("backup", "verify", copy.name, exit_code=1)
    assert f"{copy.name}: it is damaged or cut off" in refused.stderr
    assert ask(cluster, "verify", whole)["name"] == whole


def test_a_sealed_nexus_makes_none(cluster: Cluster) -> None:
    """It has no key to sign with; the file still opens without it."""
    newest = ask(cluster, "list")["backups"][0]
    cluster.superuser.seal("test")
    refused = cluster.pilot("backup", "create", exit_code=5)
    assert "sealed" in refused.stderr
    assert read_alone(cluster, cluster.directory.backups / newest["name"])["name"] == newest["name"]
    cluster.unseal()
    cluster.wait_ready()
    assert ask(cluster, "verify", newest["name"])["name"] == newest["name"]
