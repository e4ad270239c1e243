"""The standard streams, which whoever starts pilot may have closed, and whose other end may be full or gone."""

import errno
import os
import sys

_WRITE_FAULTS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def open_missing() -> None:
    """Open the standard streams that are closed, the wrong way round: using one then fails, as it should.

    If they stayed closed, the next file or connection would take their place.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 — as long as the process
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def is_write_fault(error: OSError) -> bool:
    """Say whether *error* comes from writing to what is open, such as standard output, and not from a named file."""
    return error.errno in _WRITE_FAULTS and error.filename is None


def drop_output() -> None:
    """Let what is left of the output, and what follows, go nowhere: not even the end of the process fails on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
