"""What Linux reports about a process, and which core it may use."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

SERVER_CORE, CLIENT_CORE = 0, 1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process, and those that they start, on one core, if there are enough cores."""
    if core >= (os.cpu_count() or 1):
        return
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), {core})
        except ProcessLookupError:
            pass  # it ended meanwhile


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run the block, which starts no threads, on one core."""
    before = os.sched_getaffinity(0)
    if core in before:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads, in user and in kernel mode, to 10 ms."""
    # Fields 14 and 15 of proc(5); the second, the program's name, may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_mb(pid: int) -> float:
    """Return the resident memory in MB (10^6 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


def describe() -> str:
    """Describe the machine that this runs on."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    return f"{cores} {'core' if cores == 1 else 'cores'}, load {load:.1f} before"
