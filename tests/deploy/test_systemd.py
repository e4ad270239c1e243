"""The systemd units: they are understood whole, shut their process in, and let it do what it has to."""

import functools
import re
import subprocess
from pathlib import Path

import pytest

from pilot.dev.cluster import server_command
from pilot.dev.directory import Plan
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
NEXUS, KEEPER = "shardhold-nexus.service", "shardhold-keeper@.service"
MOST_EXPOSED = 20  # tenths of systemd's scale from 0 to 10
# Only of a process of root: SQLite gives new files to the owner of the database.
OF_ROOT = {"fchown"}

pytestmark = pytest.mark.needs("systemd")


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `systemd-analyze`."""
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=at_most(60), check=False)


def verify(text: str, name: str, folder: Path) -> tuple[int, str]:
    """Let systemd read a unit on a machine that has its program; return the exit code and all that it said."""
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = folder / name
    unit.write_text(re.sub(r"(?<=^ExecStart=)\S+", str(program), text, flags=re.M))
    done = analyze("verify", unit)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", [NEXUS, KEEPER])
def test_systemd_understands_every_line(name: str, tmp_path: Path) -> None:
    """Of an unknown key it says something, and exits with 0 all the same: so it has to say nothing."""
    text = (FOLDER / name).read_text()
    assert verify(text, name, tmp_path) == (0, "")
    code, said = verify(text.replace("ProtectHome=", "ProtectHomes="), name, tmp_path)
    assert (code, "Unknown key 'ProtectHomes'" in said) == (0, True)


@pytest.mark.parametrize("name", [NEXUS, KEEPER])
def test_it_is_started_again_however_often_it_ends(name: str) -> None:
    """By default systemd gives a unit up that ends five times in ten seconds, as on a disk that is away."""
    section, _, _ = (FOLDER / name).read_text().partition("[Service]")
    assert "\nStartLimitIntervalSec=0\n" in section
    assert "\nRestart=always\n" in (FOLDER / name).read_text()


def test_a_child_that_runs_out_of_memory_ends_alone() -> None:
    """By default systemd stops the whole unit: a nexus, with its key, for one backup."""
    assert "\nOOMPolicy=continue\n" in (FOLDER / NEXUS).read_text()


@pytest.mark.parametrize("name", [NEXUS, KEEPER])
def test_the_sandbox_is_tight(name: str) -> None:
    """Exposure is below 2.0 by systemd's own measure, and it sees what is missing."""
    options = ("security", "--offline=yes", f"--threshold={MOST_EXPOSED}")
    done = analyze(*options, FOLDER / name)
    assert done.returncode == 0, done.stdout


def test_a_looser_sandbox_is_noticed(tmp_path: Path) -> None:
    """Without the filter of system calls it is above the threshold."""
    unit = tmp_path / NEXUS
    unit.write_text(re.sub(r"^SystemCall.*\n", "", (FOLDER / NEXUS).read_text(), flags=re.M))
    assert analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", unit).returncode != 0


@functools.cache
def list_calls(group: str) -> frozenset[str]:
    """List the system calls of one of systemd's groups."""
    if not group.startswith("@"):
        return frozenset({group})
    lines = analyze("syscall-filter", group).stdout.splitlines()[1:]
    names = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return frozenset[str]().union(*map(list_calls, names))


def list_allowed(name: str) -> set[str]:
    """List the system calls that a unit allows: its lines in order, `~` takes away."""
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.+)$", (FOLDER / name).read_text(), flags=re.M):
        calls = set[str]().union(*map(list_calls, line.lstrip("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return allowed


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.needs("strace")
def test_every_system_call_that_is_made_is_allowed(tmp_path: Path) -> None:
    """A cluster from its init to its end, with a backup, stays within the filters."""
    cluster = Cluster(tmp_path / "dev", Plan(keepers=2, threshold=2))
    calls = {"nexus": tmp_path / "nexus.calls", "keeper-1": tmp_path / "keeper-1.calls"}

    def command(name: str) -> list[str]:
        server = list(server_command(cluster.directory, name))
        # -D: the server is the child of who starts it, and gets its signals.
        return ["strace", "-D", "-f", "-qq", "-c", "-o", str(calls[name]), *server] if name in calls else server

    try:
        cluster.start_by(command)
        cluster.dev.init()
        cluster.wait_ready()
        cluster.wait_filled()
        cluster.pilot("backup", "create")
        assert "process_open_fds" in cluster.fetch("nexus", "/metrics")
        cluster.stop(*calls)
        cluster.wait(
            "strace has counted", lambda: all(file.exists() and file.stat().st_size for file in calls.values())
        )
    finally:
        cluster.close()
    for name, unit in (("nexus", NEXUS), ("keeper-1", KEEPER)):
        made = {line.split()[-1] for line in calls[name].read_text().splitlines() if line.strip()[:1].isdigit()}
        made -= {"total"} | OF_ROOT
        assert len(made) > 30
        assert made - list_allowed(unit) == set()
        assert "memfd_secret" in made
        assert "memfd_secret" not in list_calls("@system-service")


def test_the_users_of_the_units_are_made(tmp_path: Path) -> None:
    """On a machine that has none of them, and with the group that may open the agent's socket."""
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", str(FOLDER / "shardhold.sysusers")]
    subprocess.run(command, check=True, capture_output=True, timeout=at_most(60))
    users = {line.split(":")[0] for line in (tmp_path / "etc" / "passwd").read_text().splitlines()}
    groups = {line.split(":")[0] for line in (tmp_path / "etc" / "group").read_text().splitlines()}
    for name in (NEXUS, KEEPER):
        wanted = dict(re.findall(r"^(User|SupplementaryGroups)=(.+)$", (FOLDER / name).read_text(), flags=re.M))
        assert wanted["User"] in users
        assert {wanted["User"], wanted["SupplementaryGroups"]} <= groups
