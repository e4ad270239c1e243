"""`pilot dev` as its user sees it."""

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot.dev.cluster import DevCluster, clean_environ, server_command
from pilot.dev.directory import MARKER, DevDirectory
from pilot.dev.identities import OPERATOR_PATH, custodian_path
from tests.kit.patience import at_most, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

PILOT = [sys.executable, "-m", "pilot"]


def pilot(*arguments: str | Path, exit_code: int = 0, environ: dict[str, str] | None = None) -> str:
    """Run pilot, compare its exit code, and return what it said."""
    done = subprocess.run(
        [*PILOT, *map(str, arguments)],
        env=environ or clean_environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=at_most(120),
        check=False,
    )
    assert done.returncode == exit_code, f"{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def read_env(folder: Path) -> dict[str, str]:
    """Return the environment that `eval "$(pilot dev env)"` makes in a shell."""
    command = f'eval "$({" ".join(PILOT)} dev env --dir "$1")"; env -0'
    done = subprocess.run(
        ["bash", "-c", command, "bash", str(folder)], env=clean_environ(), capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place for a development cluster, whose name needs quoting; whatever runs there ends with the test."""
    chosen = tmp_path / "it's dev"
    yield chosen
    if DevDirectory(chosen).exists:
        DevCluster(DevDirectory(chosen)).stop()


def test_from_up_to_down(folder: Path) -> None:
    """One cluster through all commands: up, env, exec, kill, restart, up again, down, and up once more."""
    said = pilot("dev", "up", "--dir", folder, "--keepers", "3", "--threshold", "2", "--detach")
    assert "FOR DEVELOPMENT ONLY" in said
    assert "pilot dev env --dir" in said
    assert (folder / MARKER).is_file()

    environ = read_env(folder)
    assert json.loads(pilot("status", "-o", "json", environ=environ))["state"] == "ready"
    assert "role/superuser/dev" in pilot("whoami", environ=environ)

    print_environ = [sys.executable, "-c", "import os; print(os.environ['SPIFFE_ENDPOINT_SOCKET'])"]
    assert "unix:" in pilot("dev", "exec", "--dir", folder, "--as", "/team/app", "--", *print_environ)
    assert "/team/app" in pilot("dev", "exec", "--dir", folder, "--as", "/team/app", "--", *PILOT, "whoami")
    pilot("dev", "exec", "--dir", folder, "--as", "/team/app", "--", "sh", "-c", "exit 7", exit_code=7)
    shows = ("sh", "-c", "grep SigIgn /proc/self/status; echo ${GRPC_VERBOSITY-unset}")
    _, ignored, verbosity = pilot("dev", "exec", "--dir", folder, "--as", "/team/app", "--", *shows).split()
    assert not int(ignored, 16) & sum(1 << one - 1 for one in (signal.SIGPIPE, signal.SIGXFSZ))  # as Python has them
    assert verbosity == "unset"

    cluster = DevCluster(DevDirectory(folder))
    assert "keeper-2 killed" in pilot("dev", "kill", "keeper-2", "--dir", folder)
    assert not cluster.is_alive("keeper-2")
    assert "did not run" in pilot("dev", "kill", "keeper-2", "--dir", folder)
    assert "runs after" in pilot("dev", "restart", "keeper-2", "--dir", folder)
    assert "nexus killed" in pilot("dev", "kill", "nexus", "--dir", folder)
    assert "nexus ready after" in pilot("dev", "restart", "nexus", "--dir", folder)
    pilot("dev", "kill", "keeper-1", "--dir", folder)
    assert "ready" in pilot("dev", "up", "--dir", folder, "--detach")
    cluster.reload()
    assert all(cluster.is_alive(name) for name in cluster.names)
    assert read_env(folder)["SHARDHOLD_ADDRESS"] == environ["SHARDHOLD_ADDRESS"]

    assert "down" in pilot("dev", "down", "--dir", folder)
    assert not any(cluster.is_alive(name) for name in cluster.names)
    assert "does not run" in pilot("dev", "env", "--dir", folder, exit_code=5)
    assert "does not run" in pilot("dev", "exec", "--dir", folder, "--as", "/team/app", "--", "true", exit_code=5)
    said = pilot("dev", "up", "--dir", folder, "--detach", "--no-unseal", exit_code=5)
    assert "forgot their shards" in said
    environ = read_env(folder)
    assert json.loads(pilot("status", "-o", "json", environ=environ))["state"] == "recovering"
    commands = [line for line in said.splitlines() if line.startswith("  pilot dev exec")]
    assert len(commands) == 3
    for command in commands:
        spelled = re.sub(r"(^|-- )pilot ", rf"\1{' '.join(PILOT)} ", command.strip())
        subprocess.run(
            ["bash", "-c", spelled], env=clean_environ(), capture_output=True, timeout=at_most(60), check=True
        )
    assert json.loads(pilot("status", "-o", "json", environ=environ))["state"] == "ready"


def test_one_command_brings_it_back_after_a_reboot(folder: Path) -> None:
    """Init is practised by hand; when all processes are gone, `up` unseals with the shares in the directory.

    Without them it says what is missing, and who can help; once they are back, the same command does the rest.
    """
    up: list[str | Path] = ["dev", "up", "--dir", folder, "--detach"]
    said = pilot(*up, "--keepers", "2", "--threshold", "2", "--no-init")
    assert "not initialised" in said
    commands = [line.strip() for line in said.splitlines() if "pilot init" in line]
    assert len(commands) == 2
    environ = read_env(folder)
    assert json.loads(pilot("status", "-o", "json", environ=environ))["state"] == "uninitialised"
    _, _, by_hand = commands[1].partition("pilot init ")
    pilot("init", *shlex.split(by_hand), environ=environ)
    pilot("secret", "put", "team/app", "@/dev/null", "--allow-empty", environ=environ)

    cluster = DevCluster(DevDirectory(folder))
    for name in cluster.names:
        cluster.kill(name)
    said = pilot(*up)
    assert "unsealed: the keepers were all down at once and forgot their shards" in said
    assert "3 recovery shares" in said
    assert "ready after" in said
    assert "team/app" in pilot("secret", "list", environ=read_env(folder))

    pilot("dev", "down", "--dir", folder)
    lost = folder / "recovery-shares" / "custodian-2.txt"
    elsewhere = lost.rename(folder.with_name("card.txt"))
    said = pilot(*up, exit_code=5)
    assert f"not unsealed: {lost} is not there" in said
    assert "3 custodians bring it back" in said

    elsewhere.rename(lost)
    first = folder / "recovery-shares" / "custodian-1.txt"
    custodian: list[str | Path] = ["dev", "exec", "--dir", folder, "--as", custodian_path(1), "--", *PILOT]
    assert "1 of 3" in pilot(*custodian, "unseal", f"@{first}")
    assert "ready after" in pilot(*up)


def test_a_restored_store_waits_for_a_superuser(folder: Path) -> None:
    """Brought up on a store from a backup, it has its key and says at once what is missing: that it is accepted."""
    up: list[str | Path] = ["dev", "up", "--dir", folder, "--keepers", "2", "--threshold", "2", "--detach"]
    pilot(*up)
    environ, directory = read_env(folder), DevDirectory(folder)
    backup = json.loads(pilot("backup", "create", "-o", "json", environ=environ).partition("pilot: ")[0])["name"]
    genesis = json.loads(pilot("status", "-o", "json", environ=environ))["genesis"]
    pilot("dev", "down", "--dir", folder)
    restore = [*server_command(directory, "nexus"), "restore", "--from", str(directory.backups / backup), "--replace"]
    restore += ["--identity", str(directory.backup_identity), "--genesis", genesis]
    subprocess.run(restore, env=clean_environ(), capture_output=True, timeout=at_most(60), check=True)
    said = pilot(*up, exit_code=5)
    assert "not ready: the store was restored from a backup" in said
    assert "forgot their shards" not in said
    environ = read_env(folder)
    (hint,) = re.findall(r"'pilot (accept-older-store [^']*)'", pilot("status", environ=environ))
    pilot(*shlex.split(hint), "--yes", environ=environ)
    assert json.loads(pilot("status", "-o", "json", environ=environ))["state"] == "ready"


def test_a_sealed_cluster_stays_sealed(folder: Path) -> None:
    """Restarted or brought up again, a sealed nexus says at once that custodians are needed; an operator may ask."""
    pilot("dev", "up", "--dir", folder, "--keepers", "2", "--threshold", "2", "--detach")
    as_operator: list[str | Path] = ["dev", "exec", "--dir", folder, "--as", OPERATOR_PATH, "--", *PILOT]
    assert "2 of 2 hold no shard" in pilot(*as_operator, "seal", "--yes", "--reason", "test")
    assert "sealed" in pilot("dev", "restart", "nexus", "--dir", folder, exit_code=5)
    said = pilot("dev", "up", "--dir", folder, "--detach", exit_code=5)
    assert "not ready: sealed" in said
    assert json.loads(pilot(*as_operator, "status", "-o", "json"))["state"] == "sealed"


@contextlib.contextmanager
def foreground(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`pilot dev up` without --detach, once it is up, and the file with what it says."""
    log = folder.parent / "log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            [*PILOT, "dev", "up", "--dir", str(folder), "--keepers", "2", "--threshold", "2"],
            env=clean_environ(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        assert wait_until(lambda: "Ctrl-C" in log.read_text() or up.poll() is not None, seconds=60), log.read_text()
        yield up, log
    finally:
        up.kill()
        up.wait()


def test_in_the_foreground_it_ends_with_the_terminal(folder: Path) -> None:
    """`pilot dev up` without --detach stays, says which process ended, and takes everything down at the signal."""
    with foreground(folder) as (up, log):
        cluster = DevCluster(DevDirectory(folder))
        assert all(cluster.is_alive(name) for name in cluster.names), log.read_text()
        pilot("dev", "kill", "keeper-1", "--dir", folder)
        assert wait_until(lambda: "keeper-1 ended" in log.read_text(), seconds=10)
        pilot("dev", "restart", "keeper-1", "--dir", folder)
        assert wait_until(lambda: "keeper-1 runs again" in log.read_text(), seconds=10)
        cluster.reload()
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=at_most(30)) == 0
    assert not any(cluster.is_alive(name) for name in cluster.names)


def test_in_the_foreground_it_notices_down(folder: Path) -> None:
    """When another command took the cluster down there is nothing left to stay for."""
    with foreground(folder) as (up, _):
        pilot("dev", "down", "--dir", folder)
        assert up.wait(timeout=at_most(30)) == 0


def test_a_removed_directory_leaves_no_process(folder: Path) -> None:
    """Removing the directory of a running cluster ends its processes too, since no command could find them again."""
    with foreground(folder) as (up, log):
        cluster = DevCluster(DevDirectory(folder))
        shutil.rmtree(folder)
        assert up.wait(timeout=at_most(30)) == 0, log.read_text()
    assert not any(cluster.is_alive(name) for name in cluster.names)


def test_a_start_that_fails_leaves_nothing_running(folder: Path) -> None:
    """When a process does not start its last words are shown, and the others are taken down."""
    folder.mkdir()
    (folder / MARKER).write_text("x")
    (folder / "data").write_text("a file where a folder has to be")
    assert "data" in pilot("dev", "up", "--dir", folder, "--detach", exit_code=1)
    assert not DevDirectory(folder).exists


def test_a_nexus_that_does_not_start_takes_the_others_with_it(folder: Path) -> None:
    """A damaged store keeps the nexus from starting: its log is shown, and no keeper stays behind."""
    pilot("dev", "up", "--dir", folder, "--keepers", "2", "--threshold", "2", "--detach")
    pilot("dev", "down", "--dir", folder)
    (folder / "data" / "nexus.db").write_bytes(b"this is no database " * 1000)
    said = pilot("dev", "up", "--dir", folder, "--detach", exit_code=1)
    assert "nexus ended with exit code 1" in said
    assert "nexus.log" in said
    cluster = DevCluster(DevDirectory(folder))
    assert not any(cluster.is_alive(name) for name in cluster.names)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        pytest.param(["kill", "nexus"], 1, "there is no development cluster", id="kill without a cluster"),
        pytest.param(["down"], 1, "there is no development cluster", id="down without a cluster"),
        pytest.param(["env"], 1, "there is no development cluster", id="env without a cluster"),
        pytest.param(["up", "--keepers", "2", "--threshold", "3"], 2, "--threshold: got 3", id="threshold too high"),
        pytest.param(["up", "--keepers", "1"], 2, "--keepers", id="one keeper"),
    ],
)
def test_usage_errors(folder: Path, arguments: list[str], exit_code: int, message: str) -> None:
    """What cannot be done is said, with the documented exit code, and makes no directory."""
    said = pilot("dev", arguments[0], "--dir", folder, *arguments[1:], exit_code=exit_code)
    assert message in said
    assert not folder.exists()


def test_a_foreign_directory_is_refused(folder: Path) -> None:
    """Nothing is started beside somebody's files."""
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    assert "'thesis.tex', which no development cluster made" in pilot("dev", "up", "--dir", folder, exit_code=1)
    assert [entry.name for entry in folder.iterdir()] == ["thesis.tex"]


def test_identities_alone(folder: Path) -> None:
    """`pilot dev identity` serves one socket for each identity and rotates; a second one is refused."""
    command = [
        *PILOT,
        "dev",
        "identity",
        "--dir",
        str(folder),
        "--lifetime",
        "5",
        "--keepers",
        "2",
        "--as",
        "/team/app",
    ]
    with subprocess.Popen(command, env=clean_environ(), stdout=subprocess.PIPE, text=True) as provider:
        try:
            assert provider.stdout is not None
            lines = [provider.stdout.readline() for _ in range(5)]
            sockets = dict(line.rstrip("\n").split("  ", 1) for line in lines)
            assert "another identity provider" in pilot("dev", "identity", "--dir", folder, exit_code=1)
            watch_rotation(sockets["spiffe://dev.shardhold/team/app"])
        finally:
            provider.terminate()
        assert provider.wait(timeout=at_most(20)) == 0
    assert not list((folder / "sockets").iterdir())


def test_identities_in_folders_outlive_a_kill(folder: Path, tmp_path: Path) -> None:
    """Each socket has a folder of its own; a provider that was killed is followed by one with another authority."""
    from shardhold import WorkloadAPI

    command = [*PILOT, "dev", "identity", "--dir", str(folder), "--folders", str(tmp_path / "s"), "--as", "/team/app"]
    bundles = set()
    for end in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(command, env=clean_environ(), stdout=subprocess.PIPE, text=True) as provider:
            try:
                assert provider.stdout is not None
                sockets = {provider.stdout.readline().rstrip("\n").rpartition("unix:")[2] for _ in range(12)}
                identity = WorkloadAPI(str(tmp_path / "s" / "team+app" / "workload.sock"))
                bundles.add(identity.current().bundle_pem)
                identity.close()
            finally:
                provider.send_signal(end)
            provider.wait(timeout=at_most(20))
    assert len(bundles) == 2
    people = ("superuser-dev", "operator-dev", *(f"recover-custodian-{number}" for number in (1, 2, 3)))
    names = ("team+app", "nexus-1", *(f"keeper-{number}" for number in range(1, 6)), *people)
    assert sockets == {str(tmp_path / "s" / name / "workload.sock") for name in names}


def watch_rotation(socket: str) -> None:
    """Wait until the Workload API at *socket* has pushed another SVID than the first."""
    from shardhold import WorkloadAPI

    identity = WorkloadAPI(socket)
    try:
        first = identity.current()
        assert first.spiffe_id == "spiffe://dev.shardhold/team/app"
        assert wait_until(lambda: identity.current() != first, seconds=20)
    finally:
        identity.close()
