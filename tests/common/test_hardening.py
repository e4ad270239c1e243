"""Hardening, in a child, since it cannot be undone."""

import subprocess
import sys

import pytest

_CHILD = """
import ctypes, pathlib, resource
from common.hardening import harden_process
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
    """After hardening no core may be written and /proc/PID belongs to root; a second time changes nothing."""
    child = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines() == ["1", "0", "0 0", "0"]
    assert child.stderr == ""
