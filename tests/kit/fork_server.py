"""Forks nexus, keeper and pilot from a process that has imported them once; `python -P fork_server.py FD`.

What makes a start expensive are its imports. This process does them all, once; then it becomes, for each request on
the socket FD, a new program. Rules:

1. It has one thread and no gRPC object: a fork takes no other thread with it, and no lock that one holds.
2. The new process is a child of whoever started this one (CLONE_PARENT), so that waits, exit codes and signals are as
   they are after an ordinary start.
3. It has what its request says, and nothing else: file descriptors, session, directory, environment, arguments. It
   runs the program as `python -P -m` does, and ends by the interpreter's own end.
4. A request whose environment holds what is read before the first of our lines, as LD_PRELOAD is, is declined.

What a forked process does not prove is how it is started: its /proc/PID/cmdline and environ, its memory and the order
of its imports are this process's.
"""

import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import platform
import runpy
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("common", "keeper", "nexus", "pilot", "shardhold")
# What they import only when they need it.
LATE = (
    "argparse",
    "cryptography.hazmat.primitives.hpke",
    "cryptography.hazmat.primitives.kdf.hkdf",
    "encodings.ascii",
    "encodings.idna",
    "grpc._channel",
    "grpc._server",
    "grpc.experimental",
    "rich.box",
    "rich.console",
    "rich.table",
    "rich.text",
    "shamir_mnemonic",
)
READ_AT_START = ("GRPC_", "LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYTHON")
TAKEN_OVER = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")  # of those: `Start.take_over` sees to them
REQUEST_SIZE = 1 << 18  # bytes; the environment and the arguments
DECLINED = 0  # instead of a pid
_CLONE = {"aarch64": 220, "x86_64": 56}  # number of the system call
_CLONE_PARENT = 0x8000


@dataclass(frozen=True)
class Start:
    """What a new process is to be."""

    program: str
    arguments: list[str]
    environ: dict[str, str]
    new_session: bool
    fds: list[int]  # stdin, stdout, stderr, working directory, and what is closed once all of them are taken over

    @property
    def is_possible(self) -> bool:
        """Whether nothing in the environment would have had to be there before the imports."""
        return all(
            os.environ.get(name) == value
            for name, value in self.environ.items()
            if name.startswith(READ_AT_START) and name not in TAKEN_OVER
        )

    def take_over(self) -> None:
        """Make this process look like one that was just started."""
        if self.new_session:
            os.setsid()
        os.fchdir(self.fds[3])
        for standard, fd in enumerate(self.fds[:3]):
            os.dup2(fd, standard)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # from here on the starter takes it for started
        os.environ.clear()
        os.environ.update(self.environ)
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # by common.server.preload, which was imported before
        if self.program != "pilot":
            from common.server.preload import GRPC_ENVIRONMENT

            os.environ.update(GRPC_ENVIRONMENT)
        sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
        for standard, name in enumerate(("stdin", "stdout", "stderr")):
            stream = _open_standard(standard, name)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        sys.argv = [self.program, *self.arguments]

    def run(self) -> None:
        """Run the program; it ends the process, or returns, or raises, as `__main__` may."""
        runpy.run_module(self.program, run_name="__main__", alter_sys=True)


def main() -> None:
    # Ctrl-C is for whoever asks for processes, and for those processes.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        import_all()
        gc.freeze()  # no collection of a child's looks at these, and copies their pages
        start = serve(requests)
    if start is not None:
        signal.signal(signal.SIGINT, on_interrupt)
        start.take_over()
        start.run()


def import_all() -> None:
    """Import every module of ours but the `__main__`s, and with them what they use."""
    import common.server.preload  # noqa: F401 — before gRPC and structlog are loaded

    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    importlib.import_module("pilot.app").app(["version"], standalone_mode=False)  # typer imports most at its first line
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        sys.exit(f"fork server: {threads} threads after the imports, want 1")


def serve(requests: socket.socket) -> Start | None:
    """Fork for each request; return what to be in the new process, and None when nobody is left to ask."""
    while True:
        message, fds, _, _ = socket.recv_fds(requests, REQUEST_SIZE, 5)
        if not message:
            return None
        start = Start(**json.loads(message), fds=fds)
        pid = fork_sibling() if start.is_possible else DECLINED
        if pid == 0 and start.is_possible:
            return start
        requests.send(b"%d" % pid)
        for fd in fds:
            os.close(fd)


def fork_sibling() -> int:
    """Fork as `os.fork` does, but into a child of this process's parent; returns 0 in it, else its pid.

    Raises:
        OSError: The kernel refuses.
    """
    libc = ctypes.PyDLL(None, use_errno=True)  # keeps the lock of the interpreter, as os.fork does
    libc.PyOS_BeforeFork()
    pid = libc.syscall(_CLONE[platform.machine()], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        libc.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    libc.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return int(pid)


def _open_standard(fd: int, name: str) -> io.TextIOWrapper:
    """Open one of the standard streams as the interpreter does at its start."""
    is_written = name != "stdin"
    is_unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    raw = io.FileIO(fd, "w" if is_written else "r", closefd=False)
    raw.name = f"<{name}>"
    binary = io.BufferedReader(raw) if not is_written else raw if is_unbuffered else io.BufferedWriter(raw)
    before = getattr(sys, name)
    return io.TextIOWrapper(
        binary,
        encoding=before.encoding,
        errors=before.errors,
        newline="\n",
        line_buffering=not is_unbuffered and (name == "stderr" or binary.isatty()),
        write_through=is_unbuffered,
    )


if __name__ == "__main__":
    main()
