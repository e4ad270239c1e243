"""What each server, and the opener, does to its process before the first key is in memory."""

import ctypes
import os
import resource
import sys

from common.errors import ProtectionError

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic; where they differ the kernel refuses them
_AMPLE_LOCK = 1024**3  # bytes; more than all mappings of a child with its libraries


def harden_process() -> None:
    """Make the process non-dumpable: no core file, no ptrace and no /proc/PID/mem for other processes of the same user.

    Outside Linux only the core-file limit is set. A pipe in kernel.core_pattern ignores that limit; PR_SET_DUMPABLE is
    what keeps such a handler away. An exec resets it, so children call this themselves.

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


def lock_memory() -> bool:
    """Keep every present and future page of this process out of swap; return whether that was done.

    It is done only where it cannot fail later, in the middle of the work: with CAP_IPC_LOCK, or when RLIMIT_MEMLOCK is
    ample. An exec undoes it.
    """
    if sys.platform != "linux":
        return False
    _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    is_ample = most == resource.RLIM_INFINITY or most >= _AMPLE_LOCK
    # With a limit of 0 the call below succeeds only for a process that no limit binds.
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (most if is_ample else 0, most))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)
