"""The memory promise: no readable page of nexus or keepers holds a key that outlives its call.

Needs CAP_SYS_PTRACE, since both make themselves non-dumpable: `make test-memory`. At level 3 nobody can read the
protected pages; at level 2 root can, so they are left out of the scan, and show which the shards are.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.cluster import Cluster
from tests.kit.process_memory import find_keys, list_regions, make_forms, read_region
from tests.kit.stored_keys import load_stored
from tests.memory.last_moment import caught_at_exit
from tests.memory.scanning import find_all_keys, find_pid, scan, serve_requests

pytestmark = pytest.mark.memory

UNSEALS = 3  # each runs on a new worker, or on one that has run one before
SCANNED = (0, UNSEALS - 1)

_HOLDER = """
import sys
form = bytes.fromhex(sys.stdin.readline())
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
"""


def test_no_key_is_readable(used_cluster: Cluster) -> None:
    """After requests, a refill and a recovery no readable page of nexus or keepers holds a key in any form."""
    assert not scan(used_cluster, find_all_keys(used_cluster))


def test_no_key_is_readable_after_a_seal_and_an_unseal(used_cluster: Cluster) -> None:
    """No key is readable while sealed, while shares wait for others, or after the opener gave the root key back.

    The earlier keys are searched for as well: what a seal leaves is as bad as what an unseal leaves.
    """
    keys = find_all_keys(used_cluster)
    found = {}
    for number in range(UNSEALS):
        used_cluster.superuser.seal()
        found[f"sealed, {number}"] = scan(used_cluster, keys) if number in SCANNED else []
        words = used_cluster.words
        session = used_cluster.custodian(1).start_unseal()
        for custodian in (1, 2):
            used_cluster.custodian(custodian).submit_words(session.session_id, words[custodian - 1])
        found[f"two shares, {number}"] = scan(used_cluster, keys) if number in SCANNED else []
        used_cluster.custodian(3).submit_words(session.session_id, words[2])
        used_cluster.wait_filled()
        later = {f"{name} (of now)": key for name, key in find_all_keys(used_cluster).items() if "shard" in name}
        found[f"unsealed, {number}"] = scan(used_cluster, keys | later) if number in SCANNED else []
    serve_requests(used_cluster)
    assert not any(found.values()), "\n".join(f"{when}: {one}" for when, all_ in found.items() for one in all_)
    assert not scan(used_cluster, find_all_keys(used_cluster))


def test_what_is_no_secret_is_found(used_cluster: Cluster) -> None:
    """The scan really reads these processes: it finds the cluster id, which they all know."""
    stored = load_stored(used_cluster)
    for name in ("nexus", *used_cluster.keepers):
        assert any(one.form == "bytes" for one in find_keys(find_pid(used_cluster, name), {"id": stored.cluster_id})), (
            name
        )


def test_the_stack_of_every_thread_is_searched(used_cluster: Cluster) -> None:
    """Wherever a thread waits in the kernel, its stack is in one of the regions that the scan reads."""
    for name in ("nexus", *used_cluster.keepers):
        pid = find_pid(used_cluster, name)
        searched = [region for region in list_regions(pid) if not region.is_protected]
        stacks = [pointer for pointer in map(_find_stack, Path(f"/proc/{pid}/task").iterdir()) if pointer]
        assert len(stacks) > 5, name
        for pointer in stacks:
            (region,) = [one for one in searched if one.start <= pointer < one.end]
            assert any(read_region(pid, region)), name


def _find_stack(thread: Path) -> int:
    """Return the stack pointer of a thread that waits in a system call; 0 for one that runs or has ended."""
    try:
        words = (thread / "syscall").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(words[-2], 16) if len(words) > 2 else 0


def test_protected_pages_are_where_they_should_be(used_cluster: Cluster) -> None:
    """Each process has an arena: unreadable at level 3; at level 2 locked, in no core dump and in no fork."""
    for name in ("nexus", *used_cluster.keepers):
        pid = find_pid(used_cluster, name)
        protected = [region for region in list_regions(pid) if region.is_protected]
        assert protected, name
        assert sum(region.swapped for region in protected) == 0, name
        if used_cluster.plan.highest_level == 3:
            secret = [region for region in protected if "secretmem" in region.name]
            assert secret, name
            assert not any(list(read_region(pid, region)) for region in secret), name
        else:
            assert [region.locked for region in protected] == [region.end - region.start for region in protected], name


def test_no_core_files(used_cluster: Cluster) -> None:
    """No process may write a core file."""
    for name in ("nexus", *used_cluster.keepers):
        limits = Path(f"/proc/{find_pid(used_cluster, name)}/limits").read_text()
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"], name


def test_what_was_protected_is_wiped_at_sigterm(used_cluster: Cluster) -> None:
    """At a stopped process's last moment no page holds a key: at level 2 root can read them all."""
    keys = find_all_keys(used_cluster)
    for name in ("nexus", "keeper-1"):
        with caught_at_exit(find_pid(used_cluster, name)):
            assert [str(one) for one in find_keys(find_pid(used_cluster, name), keys, also_protected=True)] == []
            assert list_regions(find_pid(used_cluster, name)), "its memory was gone already"
        used_cluster.wait(f"{name} ends", lambda name=name: not used_cluster.dev.is_alive(name))  # type: ignore[misc]
        assert used_cluster.dev.processes.find_exit_code(used_cluster.dev.state.processes[name]) == 0
    _bring_back(used_cluster, "nexus", "keeper-1")


def test_a_crash_leaves_no_core(used_cluster: Cluster) -> None:
    """Nexus and keeper die of SIGABRT without a core, although they still have their keys: level 2 shows that."""
    keys = find_all_keys(used_cluster)
    for name, own in (("nexus", {"root key", "KEK 2"}), ("keeper-1", {"shard of keeper-1"})):
        with caught_at_exit(find_pid(used_cluster, name), signal.SIGABRT):
            held = {one.key for one in find_keys(find_pid(used_cluster, name), keys, also_protected=True)}
            assert held >= own if used_cluster.plan.highest_level == 2 else not held, name
        assert _find_end(find_pid(used_cluster, name)) == os.CLD_KILLED, name
        used_cluster.wait(f"{name} ends", lambda name=name: not used_cluster.dev.is_alive(name))  # type: ignore[misc]
    assert not list(used_cluster.directory.root.glob("core*"))
    _bring_back(used_cluster, "nexus", "keeper-1")


def _bring_back(cluster: Cluster, *names: str) -> None:
    cluster.run(*reversed(names))
    cluster.wait_ready()
    cluster.wait_filled()


def test_a_core_would_be_seen(tmp_path: Path) -> None:
    """A process that is not hardened dies of the same signal with a core, if its parent's limit allows one."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    with subprocess.Popen([sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, cwd=tmp_path) as holder:
        resource.prlimit(holder.pid, resource.RLIMIT_CORE, (most, most))
        holder.send_signal(signal.SIGABRT)
        assert _find_end(holder.pid) == (os.CLD_DUMPED if most else os.CLD_KILLED)


def _find_end(pid: int) -> int:
    """Wait for a child process to end, and return its CLD code of waitid(2); it is not reaped."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return ended.si_code


@pytest.mark.parametrize("form", make_forms(bytes(range(1, 33))))
def test_planted_key_is_found(form: str) -> None:
    """A key that a process does hold is found, in whichever form."""
    key = os.urandom(32)
    command = [sys.executable, "-c", _HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(make_forms(key)[form].hex() + "\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "ready\n"
        found = {finding.form for finding in find_keys(holder.pid, {"planted": key})}
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert form in found
