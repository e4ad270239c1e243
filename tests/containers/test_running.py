"""A stack that runs: what its containers may do, reach and write, and that no secret is where others look."""

import itertools
import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.containers.layers import load_layers
from tests.containers.shared import SharedStacks
from tests.containers.stack import (
    IMAGES,
    KEEPERS,
    ROOT,
    SERVERS,
    SHARES,
    Stack,
    docker,
    inspect,
    name_image,
)
from tests.containers.without_shells import LASTING, ONE_SHOTS, PATH, VALUE, take

# What each service may write, beside /proc, /sys and devices, which are the engine's.
WRITABLE = {
    "nexus": ("/var/lib/shardhold/data", "/var/lib/shardhold/audit"),
    "identity": ("/run/identity", "/run/shardhold"),
}
# A socket is written to when it is called; the queues are the container's own and nobody opens one.
ALWAYS = ("/run/identity/workload.sock", "/dev/mqueue")

# Where a mount is read-only nothing can be written; the root is one of them.
LOOK_AROUND = """
import json, os, stat
mounts = [line.split() for line in open("/proc/self/mounts")]
open_ones = [top for _, top, kind, options, *_ in mounts if "rw" in options.split(",")]
tops = {top for top in open_ones if not top.startswith(("/proc", "/sys"))} | {"/run"}
writable, sockets = set(), set()
for top in tops:
    for folder, folders, files in os.walk(top):
        if folder == "/":
            folders[:] = sorted(set(folders) - {"proc", "sys"})
        for path in (folder, *(os.path.join(folder, file) for file in files)):
            kind = stat.S_IFMT(os.lstat(path).st_mode)
            if kind not in (stat.S_IFLNK, stat.S_IFCHR) and os.access(path, os.W_OK):
                writable.add(path)
            if kind == stat.S_IFSOCK:
                sockets.add(path)
status = dict(line.rstrip().split(":\\t", 1) for line in open("/proc/1/status"))
commands = [open(f"/proc/{pid}/cmdline").read() for pid in os.listdir("/proc") if pid.isdigit()]
print(json.dumps({"writable": [*writable], "sockets": [*sockets], "status": status, "commands": commands}))
"""
CALL = """
import os, socket, sys
from concurrent.futures import ThreadPoolExecutor
os.environ["RES_OPTIONS"] = "timeout:2"  # seconds; a name that is not there is asked for twice
def call(target):
    host, port = target.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        return "open"
    except socket.gaierror:
        return "unknown"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "unreachable"
with ThreadPoolExecutor(8) as pool:
    print(*pool.map(call, sys.argv[1:]))
"""
SCRAPE = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
"""
LIST_SHARES = """
import hashlib, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""
READ_SHARES = """
import pathlib, sys
for path in pathlib.Path(sys.argv[1]).glob("*.txt"):
    print(path.read_text())
"""
LIST_MODES = """
import os, sys
for top in sys.argv[1:]:
    for folder, _, files in os.walk(top):
        for path in (folder, *(os.path.join(folder, file) for file in files)):
            state = os.lstat(path)
            print(state.st_uid, oct(state.st_mode))
"""


@pytest.fixture(scope="module")
def stack(stacks: SharedStacks) -> Stack:
    """The stack without shells; it has a secret."""
    return take(stacks)


def see_shares(stack: Stack, program: str) -> str:
    """Run a Python program over the recovery shares, in a container that has them."""
    return stack.observe("python3", "-c", program, SHARES).stdout


@pytest.fixture(scope="module")
def seen(stack: Stack) -> dict[str, dict[str, Any]]:
    """What a process in each container sees of it: what it can write, sockets, and what it is itself."""
    with ThreadPoolExecutor(2) as pool:
        said = pool.map(lambda service: stack.python(service, LOOK_AROUND), LASTING)
        return {service: json.loads(one) for service, one in zip(LASTING, said, strict=True)}


@pytest.fixture(scope="module")
def told(stack: Stack) -> dict[str, dict[str, Any]]:
    """What the engine knows of each container."""
    return stack.inspect_all(*LASTING)


@pytest.fixture(scope="module")
def settings() -> dict[str, dict[str, Any]]:
    """What docker-compose.yml says of each service."""
    command = ("--file", str(ROOT / "docker-compose.yml"), "--profile", "pilot", "config", "--format", "json")
    services: dict[str, dict[str, Any]] = json.loads(docker("compose", *command))["services"]
    return services


def test_what_one_container_put_another_gets(stack: Stack) -> None:
    """A workload gets with its own identity what a superuser put, and the example says that it did."""
    got = stack.exec("app", "pilot", "secret", "get", PATH, "--field", "password")
    assert got.stdout == VALUE
    assert "spiffe://dev.shardhold/team/app" in stack.exec("app", "pilot", "whoami").stdout
    stack.wait("the example got it", lambda: f"got {PATH} version 1: password" in stack.logs("app"))


def test_the_workload_may_do_no_more(stack: Stack) -> None:
    """The workload's policy lets it read what is its own, and neither write nor read anything else."""
    assert stack.exec("app", "pilot", "secret", "put", PATH, "password=@/app/app.py", check=False).returncode == 4
    assert stack.exec("app", "pilot", "secret", "get", "team/other/db", check=False).returncode == 4


def test_status(stack: Stack) -> None:
    """All five keepers hold their shards, and keys are in protected memory."""
    status = stack.wait_filled()
    assert (status["state"], status["shard_threshold"], status["shard_count"]) == ("ready", 3, 5)
    assert status["memory_protection"] >= 2


def test_every_service_is_known(settings: dict[str, dict[str, Any]]) -> None:
    """These tests look at every service of docker-compose.yml: one that is added there is added here."""
    assert set(settings) == {*LASTING, *ONE_SHOTS, "pilot"}


def test_every_service_is_bounded(settings: dict[str, dict[str, Any]]) -> None:
    """Every service runs without root, capabilities and a writable root, within limits of all that it could use up."""
    for name, service in settings.items():
        assert service["user"] == "10001:10001", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["ipc"] == "none", name
        assert 0 < int(service["mem_limit"]) <= 512 << 20, name
        assert 0 < float(service["cpus"]) <= 1, name
        assert 0 < int(service["pids_limit"]) <= 256, name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert service["restart"] == ("unless-stopped" if name in LASTING else "no"), name
        assert not {"privileged", "cap_add", "devices", "pid", "container_name"} & set(service), name


@pytest.mark.parametrize("service", LASTING)
def test_the_engine_did_as_it_was_told(told: dict[str, dict[str, Any]], service: str) -> None:
    """The engine enforces the limits that docker-compose.yml declares."""
    host = told[service]["HostConfig"]
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
    assert min(host["Memory"], host["NanoCpus"], host["PidsLimit"]) > 0


@pytest.mark.parametrize("service", LASTING)
def test_no_process_is_root(stack: Stack, seen: dict[str, dict[str, Any]], service: str) -> None:
    """Every process has the uid 10001, a seccomp filter, and neither a capability nor a way to get one."""
    listed = docker("top", stack.name_container(service), "-eo", "uid,pid").split("\n")[1:]
    assert {line.split()[0] for line in listed if line} == {"10001"}
    status = seen[service]["status"]
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"10001"}
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize("service", LASTING)
def test_nothing_else_can_be_written(seen: dict[str, dict[str, Any]], service: str) -> None:
    """A container's user may write only to its volumes, as the kernel says of every path on a writable mount."""
    allowed, found = WRITABLE.get(service, ()), seen[service]["writable"]
    others = [path for path in found if not any(path == one or path.startswith(f"{one}/") for one in allowed)]
    assert set(others) <= set(ALWAYS)
    assert set(allowed) <= set(found)


@pytest.mark.parametrize("service", [*SERVERS, "app"])
def test_a_container_has_one_identity(seen: dict[str, dict[str, Any]], service: str) -> None:
    """A container sees the one socket of the provider that gives it its own identity."""
    assert seen[service]["sockets"] == ["/run/identity/workload.sock"]
    assert len(seen["identity"]["sockets"]) >= len(SERVERS) + 2


@pytest.mark.parametrize(
    ("service", "targets"),
    [
        pytest.param(
            "app",
            {"nexus:8553": "open", "nexus:9553": "refused", "metrics:9553": "unknown", "keeper-1:8443": "unknown"},
            id="workload",
        ),
        pytest.param("nexus", {f"{keeper}:8443": "open" for keeper in KEEPERS}, id="nexus"),
        pytest.param(
            "keeper-1",
            {
                "nexus:9553": "refused",
                "metrics:9553": "unknown",
                "keeper-2:8443": "unknown",
                "192.0.2.1:443": "unreachable",
            },
            id="keeper",
        ),
        pytest.param("identity", {"192.0.2.1:443": "unreachable"}, id="identity provider"),
    ],
)
def test_who_reaches_whom(stack: Stack, service: str, targets: dict[str, str]) -> None:
    """Networks let through what is needed, and nothing more: no keeper knows another, and none has a way out."""
    assert dict(zip(targets, stack.python(service, CALL, *targets).split(), strict=True)) == targets


def test_metrics_are_scraped_in_a_network_of_their_own(stack: Stack) -> None:
    """Whoever is in it, as the Prometheus of the profile `monitoring` is, gets them; the process is seen whole."""
    options = ("--rm", "--network", f"{stack.project}_monitoring", "--entrypoint", "python3")
    page = docker("run", *options, name_image("pilot", stack.tag), "-c", SCRAPE, "http://metrics:9553/metrics")
    assert 'shardhold_nexus_state{state="ready"} 1.0' in page
    assert "process_open_fds" in page


def test_health_needs_no_configuration_to_be_named(stack: Stack) -> None:
    """As the image starts the program; a keeper says whether it holds a shard."""
    assert stack.exec("nexus", "nexus", "health").stdout == "SERVING\n"
    assert stack.exec("keeper-1", "keeper", "health", "--holds-shard").stdout == "SERVING\n"


def test_no_keeper_reaches_another_by_its_address(stack: Stack, told: dict[str, dict[str, Any]]) -> None:
    """A keeper that knows the address of another keeper gets no answer there."""
    networks = [network for keeper in KEEPERS for network in told[keeper]["NetworkSettings"]["Networks"].values()]
    assert len(networks) == len(KEEPERS)
    own, *others = [f"{network['IPAddress']}:8443" for network in networks]
    assert stack.python(KEEPERS[0], CALL, own, *others).split() == ["open", *["unreachable"] * len(others)]


def test_one_port_is_published_and_on_loopback(told: dict[str, dict[str, Any]]) -> None:
    """The gRPC port of the nexus is published on loopback, and no other port is published at all."""
    published = {
        (service, port, binding["HostIp"])
        for service in LASTING
        for port, bindings in told[service]["NetworkSettings"]["Ports"].items()
        for binding in bindings or ()
    }
    assert published == {("nexus", "8553/tcp", "127.0.0.1")}


def test_init_again_is_harmless(stack: Stack) -> None:
    """When `up` runs the one-shots again, the cluster and its recovery shares stay as they were, and it stays ready."""
    genesis, shares = stack.status()["genesis"], see_shares(stack, LIST_SHARES)
    assert shares.count("custodian-") == 5
    stack.up()
    assert "left alone  the cluster was initialised before" in stack.logs("init")
    assert (stack.status()["genesis"], see_shares(stack, LIST_SHARES)) == (genesis, shares)
    assert stack.status()["state"] == "ready"


def test_a_second_nexus_names_the_lock_and_ends(stack: Stack) -> None:
    """A second nexus on the same volume says which lock is held and ends, and the first goes on."""
    ended = stack.compose("run", "--rm", "--no-TTY", "nexus", check=False)
    assert ended.returncode == 1
    lock = "/var/lib/shardhold/data/nexus.db.lock"
    assert f"nexus: error: store lock {lock} is held: another nexus has this store" in ended.stderr
    assert stack.exec("app", "pilot", "secret", "get", PATH, "--field", "password").stdout == VALUE


def test_a_second_nexus_by_scale(stack: Stack) -> None:
    """`--scale nexus=2` starts a second nexus that ends each time that it is started, and the first serves on."""
    first, before = stack.container("nexus"), stack.inspect("nexus")["RestartCount"]
    try:
        stack.compose("up", "--detach", "--no-recreate", "--no-deps", "--scale", "nexus=2", "nexus")
        stack.wait("the second says it", lambda: ".lock is held: another nexus" in stack.logs("nexus"))
        found = inspect(first)[0]
        assert found["State"]["Running"]
        assert found["RestartCount"] == before
    finally:
        stack.compose("up", "--detach", "--no-recreate", "--no-deps", "--scale", "nexus=1", "nexus")
    assert stack.container("nexus") == first
    assert stack.exec("app", "pilot", "secret", "get", PATH, "--field", "password").stdout == VALUE


def test_overlapping_folders_are_refused_by_name(stack: Stack) -> None:
    """A nexus that is told to write its audit inside its data folder names that folder and ends with exit code 2."""
    moved = "SHARDHOLD_NEXUS__AUDIT__DIRECTORY=/var/lib/shardhold/data/audit"
    ended = stack.compose("run", "--rm", "--no-TTY", "--env", moved, "nexus", check=False)
    assert ended.returncode == 2
    assert "nexus: error: audit.directory: got the folder /var/lib/shardhold/data/audit" in ended.stderr


def test_health_tells_alive_from_ready(stack: Stack) -> None:
    """The image's health check passes with any answer; without --live the nexus has to be ready."""
    for live in ([], ["--live"]):
        asked = stack.exec("nexus", "nexus", "health", *live, "--config", "/etc/shardhold/nexus.toml")
        assert asked.stdout == "SERVING\n"
    assert stack.inspect("nexus")["State"]["Health"]["Log"][-1]["Output"] == "SERVING\n"


def test_no_secret_is_where_others_look(stack: Stack, seen: dict[str, dict[str, Any]]) -> None:
    """No value, recovery word or key is in environments, in what the engine tells, in images or in logs."""
    words = re.findall(r"\b\d+ ([a-z]{4,8})\b", see_shares(stack, READ_SHARES))
    assert len(words) > 100  # 33 words on each card
    containers = stack.compose("ps", "--all", "--quiet").stdout.split()
    assert len(containers) >= len(LASTING) + len(ONE_SHOTS)
    images = [name_image(role, stack.tag) for role in IMAGES]
    volumes = docker("volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={stack.project}").split()
    told = json.dumps(inspect(*containers, *images, *volumes)) + stack.logs()
    told += "".join(docker("history", "--no-trunc", image) for image in images)
    layers = [file.content for found in load_layers(images).values() for layer in found for file in layer.values()]
    pairs = {f"{first} {second}" for first, second in itertools.pairwise(words)}
    for secret in (VALUE, "PRIVATE KEY", *pairs):
        assert secret not in told
    assert not [content for content in layers if VALUE.encode() in content]
    assert not [service for service in LASTING if VALUE in "".join(seen[service]["commands"])]


def test_volumes_are_for_their_owner(stack: Stack) -> None:
    """The folders of data, audit and recovery shares have mode 0700, and what lies in them 0600."""
    listed = stack.python("nexus", LIST_MODES, "/var/lib/shardhold/data", "/var/lib/shardhold/audit")
    listed += see_shares(stack, LIST_MODES)
    found = {(int(uid), int(mode, 8)) for uid, mode in (line.split() for line in listed.splitlines())}
    assert found == {(10001, stat.S_IFDIR | 0o700), (10001, stat.S_IFREG | 0o600)}
