"""The directory of a development cluster and what is written into it."""

import resource
import socket
import stat
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest

from pilot.dev.cluster import DevCluster
from pilot.dev.configuration import write_config
from pilot.dev.directory import LONGEST_SOCKET_NAME, MARKER, SOCKET_LIMIT, DevDirectory, DevError, Plan
from pilot.dev.identities import Identity, add_identities, load_identities, parse_workload, server_identity
from pilot.dev.ports import RANGE, choose_ports, is_free


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda root: (root / "thesis.tex").write_text("x"), id="a file"),
        pytest.param(lambda root: (root / "src").mkdir(), id="a folder"),
        pytest.param(lambda root: (root / "dev.json").write_text("{}"), id="a state file without the marker"),
    ],
)
def test_a_directory_that_holds_anything_else_is_refused(tmp_path: Path, make: object) -> None:
    """Nothing is written beside files that no development cluster made."""
    assert callable(make)
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DevError, match="which no development cluster made"):
        DevCluster.create(DevDirectory(tmp_path), Plan())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_the_way_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    """A DIR that is a file is named together with the system's message."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(DevError, match="cannot be used: File exists"):
        DevCluster.create(DevDirectory(tmp_path / "file"), Plan())


def test_git_ignores_the_directory(tmp_path: Path) -> None:
    """Shares and keys are not committed by accident; one that is there already is made so, and a rule of mine stays."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    directory = DevDirectory(tmp_path / "dev")
    DevCluster.create(directory, Plan())
    status = ["git", "-C", str(tmp_path), "status", "--porcelain", "--untracked-files=all"]
    assert subprocess.run(status, check=True, capture_output=True).stdout == b""

    ignored = directory.root / ".gitignore"
    ignored.unlink()
    directory.claim()
    assert ignored.read_text() == "*\n"
    ignored.write_text("*\n!logs\n")
    directory.claim()
    assert ignored.read_text() == "*\n!logs\n"


def test_a_new_directory_says_what_it_is_for(tmp_path: Path) -> None:
    """The marker's name and text say what a new directory is for, and only the owner may look into it."""
    directory = DevDirectory(tmp_path / "new")
    DevCluster.create(directory, Plan())
    assert "Never keep a real secret in it" in (directory.root / MARKER).read_text()
    assert stat.S_IMODE(directory.root.stat().st_mode) == 0o700


def test_a_first_start_that_was_cut_off_can_be_repeated(tmp_path: Path) -> None:
    """A marked directory without state is accepted for a new cluster."""
    directory = DevDirectory(tmp_path / "new")
    directory.claim()
    assert not directory.exists
    DevCluster.create(directory, Plan())
    assert directory.exists


def test_earlier_recovery_shares_are_kept(tmp_path: Path) -> None:
    """Shares of an earlier init move aside, whole, each time under a name of its own; without any nothing is done."""
    directory = DevDirectory(tmp_path)
    assert directory.set_shares_aside() is None
    for number in (1, 2):
        directory.recovery_shares.mkdir()
        (directory.recovery_shares / "custodian-1.txt").write_text(f"words {number}")
        aside = directory.set_shares_aside()
        assert aside == tmp_path / f"recovery-shares-{number}"
        assert (aside / "custodian-1.txt").read_text() == f"words {number}"
    assert not directory.recovery_shares.exists()


def test_a_state_that_cannot_be_written_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    """The file and the system's message are named, the old state stays, and no draft is left."""
    directory = DevDirectory(tmp_path)
    cluster = DevCluster.create(directory, Plan())
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))  # SIGXFSZ is ignored by Python: the write fails
    try:
        with pytest.raises(DevError, match="dev.json cannot be written: File too large"):
            directory.save(cluster.state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert directory.load() == cluster.state
    assert sorted(tmp_path.iterdir()) == before


def test_ports_are_chosen_once(tmp_path: Path) -> None:
    """Every server has two ports of its own below the range of outgoing connections, and keeps them."""
    directory = DevDirectory(tmp_path)
    ports = DevCluster.create(directory, Plan(keepers=3)).state.ports
    numbers = [number for pair in ports.values() for number in (pair.grpc, pair.http)]
    assert set(ports) == {"nexus", "keeper-1", "keeper-2", "keeper-3"}
    assert len(set(numbers)) == 8
    assert set(numbers) <= set(RANGE)
    assert DevCluster(directory).state.ports == ports


def test_a_taken_port_is_not_chosen() -> None:
    """A port is free until a server listens on it."""
    (port,) = choose_ports(1)
    assert is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port)
    assert port not in choose_ports(50, taken={port})


@pytest.mark.parametrize("name", [pytest.param("deep" * 20, id="too long"), pytest.param("50% #?", id="read as URI")])
def test_sockets_move_out_of_an_unusable_directory(tmp_path: Path, name: str) -> None:
    """Where a socket's path would be too long for the kernel or misread, sockets go to a short private folder."""
    directory = DevDirectory(tmp_path / name)
    directory.claim()
    sockets = directory.make_sockets()
    assert directory.root not in sockets.parents
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert len(bytes(sockets)) + 1 + LONGEST_SOCKET_NAME <= SOCKET_LIMIT
    directory.remove_sockets(sockets)
    assert not sockets.exists()


def test_sockets_stay_in_a_short_directory() -> None:
    """Where paths are short enough the sockets' folder is inside, private, and stays when its sockets are gone."""
    with tempfile.TemporaryDirectory() as folder:
        directory = DevDirectory(Path(folder) / "dev")
        directory.claim()
        sockets = directory.make_sockets()
        assert sockets == directory.root / "sockets" == directory.find_sockets()
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        directory.remove_sockets(sockets)
        assert sockets.is_dir()


@pytest.mark.parametrize("name", ["nexus", "keeper-2"])
def test_configurations_are_toml_and_say_what_they_are_for(tmp_path: Path, name: str) -> None:
    """A server's file has its own ports and socket; a quote or a backslash in DIR does no harm."""
    directory = DevDirectory(tmp_path / 'a "b" \\c é')
    cluster = DevCluster.create(directory, Plan(keepers=2, threshold=2))
    write_config(directory, cluster.state, name)
    text = directory.config(name).read_text()
    config = tomllib.loads(text)
    assert "for development only" in text
    assert config["dev"] is True
    assert config["listen"]["address"] == f"127.0.0.1:{cluster.state.ports[name].grpc}"
    assert config["identity"]["socket"].endswith(server_identity(name).socket_name)
    if name == "nexus":
        assert [keeper["name"] for keeper in config["keepers"]] == ["keeper-1", "keeper-2"]
        assert config["storage"]["path"] == str(directory.data / "nexus.db")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        pytest.param("/team/app", "/team/app", id="a path"),
        pytest.param("team/app", "/team/app", id="without the first slash"),
        pytest.param("spiffe://dev.shardhold/team/app", "/team/app", id="a whole SPIFFE ID"),
    ],
)
def test_a_workload_is_named_by_path_or_id(text: str, path: str) -> None:
    """A path and a whole SPIFFE ID name the same identity."""
    assert parse_workload(text) == Identity(path=path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/team/",
        "/team//app",
        "/team/../app",
        "/team app",
        "spiffe://prod.example/team/app",
        "/shardhold/nexus/n",
    ],
)
def test_what_is_no_workload_is_refused(text: str) -> None:
    """Malformed paths, other trust domains and servers' identities are usage errors."""
    with pytest.raises(DevError) as caught:
        parse_workload(text)
    assert caught.value.exit_code == 2


def test_two_identities_never_share_a_socket() -> None:
    """Socket names fit the limit, even for the longest paths, and tell /a/app from /b/app."""
    paths = [
        "/a/app",
        "/b/app",
        "/a-b/app",
        "/a/b/app",
        "/shardhold/pilot/role/auditor/dev",
        "/x" * 16,
        "/" + "y" * 128,
    ]
    names = [parse_workload(path).socket_name for path in paths]
    names += [server_identity(name).socket_name for name in Plan(keepers=255).servers]
    assert len(set(names)) == len(names)
    assert max(len(name) for name in names) <= LONGEST_SOCKET_NAME


def test_identities_are_added_once(tmp_path: Path) -> None:
    """The list keeps what it has, and adding a known identity leaves the file unchanged."""
    directory = DevDirectory(tmp_path)
    add_identities(directory, Identity(path="/a"), Identity(path="/b"))
    before = directory.identities.stat().st_ino
    add_identities(directory, Identity(path="/a"))
    assert directory.identities.stat().st_ino == before
    add_identities(directory, Identity(path="/c"))
    assert [identity.path for identity in load_identities(directory)] == ["/a", "/b", "/c"]
