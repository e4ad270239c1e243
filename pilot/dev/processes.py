"""Processes that outlive the command that started them, known by pid and start time.

A pid alone says little: once the process has ended, the kernel may reuse it. A record therefore holds the start time as
well, and signals go through a pidfd whose start time was compared. Linux only, like the servers.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from pilot.dev.spawn import Child, Spawn, exec_program

NOTHING = Path(os.devnull)


class ProcessRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One process, identified for good."""

    pid: int
    started: str  # boot id of the machine, then clock ticks from boot to the start of the process


class Processes:
    """Starts processes in the background and ends them. One object for each command or test; not thread-safe."""

    def __init__(self, spawn: Spawn = exec_program) -> None:
        self._spawn = spawn
        self._children: dict[ProcessRecord, Child] = {}

    def start(self, command: Sequence[str], *, log: Path, environ: Mapping[str, str], directory: Path) -> ProcessRecord:
        """Start *command* in a session of its own, so that neither Ctrl-C nor a closed terminal reaches it.

        Its output is appended to *log*; it works in *directory*.

        Raises:
            OSError: The program or the log cannot be opened.
        """
        with log.open("ab") as output, NOTHING.open("rb") as nothing:
            child = self._spawn(
                command,
                environ=environ,
                directory=directory,
                stdin=nothing.fileno(),
                stdout=output.fileno(),
                stderr=output.fileno(),
                new_session=True,
            )
        started = _find_start(child.pid)
        if started is None:  # impossible: a child stays in /proc until it is waited for
            raise ProcessLookupError(f"process {child.pid} is gone")
        record = ProcessRecord(pid=child.pid, started=started)
        self._children[record] = child
        return record

    @property
    def started(self) -> tuple[ProcessRecord, ...]:
        """What this object started."""
        return tuple(self._children)

    def is_alive(self, record: ProcessRecord) -> bool:
        """Return whether the process runs; one that ended and was not waited for does not."""
        return not self.wait_until_gone(record, timeout=0)

    def find_exit_code(self, record: ProcessRecord) -> int | None:
        """Return the exit code, negative for a signal; None while it runs or when it is not our child."""
        child = self._children.get(record)
        return child.poll() if child else None

    def send_signal(self, record: ProcessRecord, signum: signal.Signals) -> bool:
        """Send a signal; return False if the process is gone. Never reaches another process with the same pid."""
        with _open_pidfd(record) as fd:
            if fd is None or _has_ended(fd, timeout=0):
                return False
            signal.pidfd_send_signal(fd, signum)
            return True

    def wait_until_gone(self, record: ProcessRecord, *, timeout: float) -> bool:
        """Wait until the process has ended; return False if it still runs after *timeout* seconds."""
        with _open_pidfd(record) as fd:
            gone = fd is None or _has_ended(fd, timeout=timeout)
        if gone and record in self._children:
            self._children[record].wait()  # reaps the zombie
        return gone

    def stop(self, *records: ProcessRecord, grace: float) -> tuple[ProcessRecord, ...]:
        """End processes, all at once: SIGTERM, then SIGKILL after *grace* seconds to those that are returned."""
        for record in records:
            self.send_signal(record, signal.SIGTERM)
        give_up = time.monotonic() + grace
        left = tuple(
            record
            for record in records
            if not self.wait_until_gone(record, timeout=max(0.0, give_up - time.monotonic()))
        )
        for record in left:
            self.kill(record)
        return left

    def kill(self, record: ProcessRecord) -> bool:
        """End the process with SIGKILL and wait until it is gone; return whether it ran."""
        ran = self.send_signal(record, signal.SIGKILL)
        self.wait_until_gone(record, timeout=10)
        return ran


@contextlib.contextmanager
def _open_pidfd(record: ProcessRecord) -> Iterator[int | None]:
    """Open a file descriptor that stands for the process itself; None when it is gone or its pid is another's."""
    try:
        fd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # The descriptor pins the process: what is compared now stays true.
        yield fd if _find_start(record.pid) == record.started else None
    finally:
        os.close(fd)


def _has_ended(fd: int, *, timeout: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)  # readable once every thread of the process has ended, and so all ports are closed
    return bool(poll.poll(timeout * 1000))


def _find_start(pid: int) -> str | None:
    """Return the boot id of the machine and the start of a process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 22 of proc(5); the second, the program's name, may hold anything.
    ticks = text.rpartition(")")[2].split()[19]
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{ticks}"
