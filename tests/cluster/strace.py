"""strace on a nexus: it writes down which calls touch some files, and kills or fails the k-th of one kind.

strace counts the calls of each thread and of each kind by themselves, so "the k-th" is the first thread's that gets
there. A nexus is traced from its start, or from some moment on; either way its process id is its own.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kit.patience import at_most, patience, wait_until

# What changes files. With a question mark: what not every architecture has.
CALLS = "write,pwrite64,fsync,fdatasync,ftruncate,fallocate,?unlink,unlinkat,?rename,?renameat,renameat2,?mknod,mknodat"
WAIT_S = 30.0  # seconds until strace has got hold of a process, or has let it go
_CALL = re.compile(r"(\d+) +(\w+)\(")


@dataclass(frozen=True)
class Injection:
    """What happens to the k-th *call*."""

    call: str
    effect: str  # as in strace: signal=KILL, error=EIO
    when: str  # K: once; K+: from there on

    def __str__(self) -> str:
        return f"{self.call}:{self.effect}:when={self.when}"


class Strace:
    """One run of strace over one process."""

    def __init__(self, log: Path, files: Iterable[Path], injection: Injection | None = None) -> None:
        """Look at calls on *files*, which may be missing as yet; what it saw is in *log*."""
        self._log = log
        self.kills = injection is not None and injection.effect == "signal=KILL"
        # What only gives room back, or sets it aside, may fail in silence.
        self.fails_for_good = (
            injection is not None and injection.when.endswith("+") and injection.call in ("pwrite64", "fdatasync")
        )
        self._log.write_bytes(b"")
        trace = injection.call if injection else CALLS
        self._command = ["strace", "-f", "-o", str(log), "-e", f"trace={trace}", "-e", "signal=none"]
        for file in files:
            self._command += ["-P", str(file)]
        if injection:
            self._command += ["-e", f"inject={injection}"]

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs *command* traced, which stays the process itself."""
        # -D: the process is our child, not strace's; -I: strace can be told to let go.
        return [*self._command, "-qq", "-D", "-I", "waiting", "--", *command]

    @contextlib.contextmanager
    def attached(self, pid: int) -> Iterator[None]:
        """Trace a process that runs, all its threads, until the block ends."""
        with (
            self._log.with_suffix(".stderr").open("w+b") as said,
            subprocess.Popen([*self._command, "-p", str(pid)], stderr=said, stdin=subprocess.DEVNULL) as strace,
        ):
            try:
                wait_until(lambda: self._said(b"attached") or strace.poll() is not None, seconds=WAIT_S)
                assert self._said(b"attached"), self._log.with_suffix(".stderr").read_text()
                yield
            finally:
                _end(strace, pid)

    @property
    def fired(self) -> bool:
        """Whether the k-th call came."""
        # What was killed at a call never came back from it.
        return any(
            mark in self._log.read_bytes() for mark in (b"(INJECTED)", b"= ?", b"<unfinished", b"killed by SIGKILL")
        )

    def count_calls(self) -> dict[str, int]:
        """Count what was seen: of each kind of call, the most that one thread made."""
        begun = [found.groups() for line in self._log.read_text().splitlines() if (found := _CALL.match(line))]
        most: dict[str, int] = {}
        for (_, call), count in Counter(begun).items():
            most[call] = max(count, most.get(call, 0))
        return most

    def _said(self, what: bytes) -> bool:
        return what in self._log.with_suffix(".stderr").read_bytes()


def _end(strace: subprocess.Popen[bytes], pid: int) -> None:
    """Have strace let go of a process, or end with one that died."""
    wait_until(lambda: strace.poll() is not None or _is_running(pid), seconds=WAIT_S)
    strace.send_signal(signal.SIGTERM)
    try:
        strace.wait(patience(5))
    except subprocess.TimeoutExpired:  # the process died while strace let go of it: then it waits for ever
        strace.kill()
        strace.wait(at_most(WAIT_S))


def _is_running(pid: int) -> bool:
    """Whether the process has not begun to die."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def release(pid: int) -> None:
    """Let go of a process that was traced from its start, if it runs."""
    if tracer := _find_tracer(pid):
        os.kill(tracer, signal.SIGTERM)
        assert wait_until(lambda: not _find_tracer(pid), seconds=WAIT_S), "strace does not let go"


def _find_tracer(pid: int) -> int:
    """Return the process that traces *pid*; 0: none does."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("TracerPid:"))
