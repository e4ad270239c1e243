"""Processes that outlive the command that started them, known by pid and start time.

A pid alone says little: after the process ended the kernel gives it to another. So a record holds the start time as
well, and signals go through a pidfd whose start time was compared. Linux only, like the servers.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec


class ProcessRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One process, for ever."""

    pid: int
    started: str  # boot id of the machine, then clock ticks from boot to the start of the process


class Processes:
    """Starts processes in the background and ends them. One object for each command or test; not thread-safe."""

    def __init__(self) -> None:
        self._children: dict[ProcessRecord, subprocess.Popen[bytes]] = {}

    def start(self, command: Sequence[str], *, log: Path, environ: Mapping[str, str], directory: Path) -> ProcessRecord:
        """Start *command* in a session of its own, so that neither Ctrl-C nor a closed terminal reaches it.

        Its output is appended to *log*; it works in *directory*.

        Raises:
            OSError: The program or the log cannot be opened.
        """
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environ),
                cwd=directory,
                start_new_session=True,
            )
        started = _find_start(child.pid)
        if started is None:  # cannot be: a child stays in /proc until it is waited for
            raise ProcessLookupError(f"process {child.pid} is gone")
        record = ProcessRecord(pid=child.pid, started=started)
        self._children[record] = child
        return record

    @property
    def started(self) -> tuple[ProcessRecord, ...]:
        """What this object started."""
        return tuple(self._children)

    def is_alive(self, record: ProcessRecord) -> bool:
        """Return whether the process runs; a zombie does not."""
        self._reap(record)
        return _find_start(record.pid) == record.started and not _is_zombie(record.pid)

    def find_exit_code(self, record: ProcessRecord) -> int | None:
        """Return the exit code, negative for a signal; None while it runs or when it is no child of ours."""
        child = self._children.get(record)
        return child.poll() if child else None

    def send_signal(self, record: ProcessRecord, signum: signal.Signals) -> bool:
        """Send a signal; return False if the process is gone. Never reaches another process with the same pid."""
        with contextlib.suppress(ProcessLookupError), _open_pidfd(record.pid) as fd:
            if self.is_alive(record):
                signal.pidfd_send_signal(fd, signum)
                return True
        return False

    def wait_until_gone(self, record: ProcessRecord, *, timeout: float) -> bool:
        """Wait until the process has ended; return False if it still runs after *timeout* seconds."""
        with contextlib.suppress(ProcessLookupError), _open_pidfd(record.pid) as fd:
            if self.is_alive(record):
                poll = select.poll()
                poll.register(fd, select.POLLIN)  # readable once the process has ended
                poll.poll(timeout * 1000)
        return not self.is_alive(record)

    def stop(self, record: ProcessRecord, *, grace: float) -> bool:
        """End the process: SIGTERM, and SIGKILL after *grace* seconds. Return whether SIGTERM was enough."""
        self.send_signal(record, signal.SIGTERM)
        if self.wait_until_gone(record, timeout=grace):
            return True
        self.kill(record)
        return False

    def kill(self, record: ProcessRecord) -> bool:
        """End the process with SIGKILL and wait until it is gone; return whether it ran."""
        ran = self.send_signal(record, signal.SIGKILL)
        self.wait_until_gone(record, timeout=10)
        return ran

    def _reap(self, record: ProcessRecord) -> None:
        child = self._children.get(record)
        if child is not None:
            child.poll()


@contextlib.contextmanager
def _open_pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _find_start(pid: int) -> str | None:
    fields = _load_stat(pid)
    if fields is None:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{fields[19]}"  # starttime, field 22 of proc(5)


def _is_zombie(pid: int) -> bool:
    fields = _load_stat(pid)
    return fields is None or fields[0] in ("Z", "X")


def _load_stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third on; the second, the program's name, may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
