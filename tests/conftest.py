"""What holds for all tests.

What some need of the machine: without it they are skipped, or fail where `TEST_REQUIRE` asks for it;
`TEST_REQUIRE=memory,memfd_secret` is how CI makes sure that nothing is skipped in silence. Which examples hypothesis
looks at (`TEST_PROFILE`), and the seed of all other chance (`TEST_SEED`).
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from common.errors import ProtectionError
from common.keys.protected import Level, ProtectedMemory
from tests.kit import seed
from tests.kit.fake_clock import find_library
from tests.kit.order import put_long_first

# Always the same examples, or always new ones; however long one takes, for that is the machine's to say.
_TOLERATED = [HealthCheck.too_slow]
settings.register_profile(
    "ci", derandomize=True, database=None, deadline=None, print_blob=True, suppress_health_check=_TOLERATED
)
settings.register_profile("soak", deadline=None, print_blob=True, suppress_health_check=_TOLERATED)
set_hypothesis_home_dir(Path(__file__).parents[1] / ".pytest_cache" / "hypothesis")
settings.load_profile(os.environ.get("TEST_PROFILE", "ci"))

_CAP_IPC_LOCK, _CAP_SYS_PTRACE = 14, 19


def _may(capability: int) -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False  # not Linux
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> capability & 1)


def _has_memfd_secret() -> bool:
    try:
        ProtectedMemory(size=4096, lowest=Level.SECRET)
    except ProtectionError:
        return False
    return True


def _may_mount() -> bool:
    """Whether this process may start one that mounts a small disk for itself."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _has_docker() -> bool:
    """Whether an engine answers, with compose v2."""
    if shutil.which("docker") is None:
        return False
    commands = (["docker", "info"], ["docker", "compose", "version"])
    return all(subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in commands)


# part: (whether it is there, how one gets it)
PARTS: dict[str, tuple[Callable[[], bool], str]] = {
    # The memory of processes that made themselves non-dumpable.
    "memory": (lambda: _may(_CAP_SYS_PTRACE), "run as root, or with CAP_SYS_PTRACE"),
    "ipc_lock": (lambda: _may(_CAP_IPC_LOCK), "run as root with CAP_IPC_LOCK: it locks memory without a limit"),
    "memfd_secret": (_has_memfd_secret, "needs Linux with memfd_secret (secretmem.enable=1) and enough RLIMIT_MEMLOCK"),
    "strace": (lambda: shutil.which("strace") is not None, "install strace: it makes the disk fail"),
    "faketime": (lambda: find_library() is not None, "install libfaketime, with apt: faketime"),
    "promtool": (lambda: shutil.which("promtool") is not None, "install promtool, with apt: prometheus"),
    "systemd": (
        lambda: shutil.which("systemd-analyze") is not None,
        "install systemd: its systemd-analyze checks units",
    ),
    "docker": (functools.cache(_has_docker), "needs a Docker engine that answers, and `docker compose` v2"),
    "tmpfs": (_may_mount, "run as root, or where users may make namespaces"),
}


def pytest_report_header() -> str:
    """Say what decides the examples of this run, for whoever repeats it."""
    return f"{seed.VARIABLE}={seed.SEED} TEST_PROFILE={settings.get_current_profile_name()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the memory scan, those on containers and the fuzzers as all of them are, and sort by length."""
    for item in items:
        if Path(__file__).parent / "containers" in item.path.parents:
            item.add_marker(pytest.mark.needs("docker"))
        if item.get_closest_marker("memory"):
            item.add_marker(pytest.mark.needs("memory"))
            item.add_marker(pytest.mark.final)
        if Path(__file__).parent / "fuzz" in item.path.parents:
            item.add_marker(pytest.mark.final)
    put_long_first(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that lacks a part, or fail it when the part is required."""
    required = os.environ.get("TEST_REQUIRE", "").replace(" ", "").split(",")
    for marker in item.iter_markers("needs"):
        for part in marker.args:
            is_there, remedy = PARTS[part]
            if is_there():
                continue
            if part in required:
                pytest.fail(f"TEST_REQUIRE has {part}, which is missing: {remedy}", pytrace=False)
            pytest.skip(f"{part} is missing: {remedy}")
