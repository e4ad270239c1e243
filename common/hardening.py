"""What each server does to its process before the first key is in memory."""

import ctypes
import os
import resource
import sys

from common.errors import ProtectionError

_PR_SET_DUMPABLE = 4


def harden_process() -> None:
    """Make the process non-dumpable: no core file, no ptrace and no /proc/PID/mem for other processes of the same user.

    Elsewhere than on Linux only the limit of core files is set. A pipe in kernel.core_pattern ignores that limit; it is
    PR_SET_DUMPABLE that keeps such a handler away. An exec of a child resets it: children call this themselves.

    Raises:
        ProtectionError: The kernel refuses.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as exc:
        raise ProtectionError(f"RLIMIT_CORE cannot be set to 0: {exc}") from exc
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        nothing = ctypes.c_ulong(0)
        if libc.prctl(_PR_SET_DUMPABLE, nothing, nothing, nothing, nothing) != 0:
            raise ProtectionError(f"PR_SET_DUMPABLE cannot be set to 0: {os.strerror(ctypes.get_errno())}")
