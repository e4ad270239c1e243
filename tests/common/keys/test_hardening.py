"""Hardening, tested in a child since it cannot be undone."""

import subprocess
import sys

import pytest

_CHILD = """
import ctypes, pathlib, resource
from common.keys.hardening import harden_process
PR_GET_DUMPABLE = 3
libc = ctypes.CDLL(None)
print(libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))
harden_process()
harden_process()
print(libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))
print(*resource.getrlimit(resource.RLIMIT_CORE))
print(pathlib.Path("/proc/self/environ").stat().st_uid)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has PR_SET_DUMPABLE")
def test_process_is_not_dumpable() -> None:
    """After hardening no core may be written and /proc/PID belongs to root; hardening twice changes nothing."""
    child = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines() == ["1", "0", "0 0", "0"]
    assert child.stderr == ""


_LOCKER = """
import ctypes, pathlib, resource, sys
from common.keys.hardening import lock_memory
limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] if sys.argv[1] == "own" else int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
if sys.argv[2] == "no":
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())  # gives up every capability
status = pathlib.Path("/proc/self/status").read_text
locked = lambda: int(next(line for line in status().splitlines() if line.startswith("VmLck")).split()[1])
print(lock_memory(), locked() > 10_000)
grown = bytes(32 * 1024 * 1024)
print(locked() > 32_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux locks all of a process")
@pytest.mark.parametrize(
    ("limit", "capabilities", "is_locked"),
    [
        pytest.param("own", "own", True, id="with CAP_IPC_LOCK", marks=pytest.mark.needs("ipc_lock")),
        pytest.param("65536", "no", False, id="64 KiB, which would not last"),
        pytest.param("0", "no", False, id="nothing"),
    ],
)
def test_memory_is_locked_where_that_lasts(limit: str, capabilities: str, is_locked: bool) -> None:
    """Either all present and future pages are locked, or none; the process keeps working in both cases."""
    command = [sys.executable, "-c", _LOCKER, limit, capabilities]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert child.stdout.split() == [str(is_locked)] * 3
