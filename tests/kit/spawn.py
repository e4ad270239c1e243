"""How tests start nexus, keeper and pilot: forked from a process that has imported them, or by a real exec.

START=exec in the environment takes the real exec everywhere. Tests of what a fork does not show (command line,
environment and memory of a process, its imports) pass `exec_program` themselves.
"""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilot.dev.probes import wait_until
from pilot.dev.spawn import Child, Spawn, exec_program

PROGRAMS = ("nexus", "keeper", "pilot", "tests.kit.historian", "tests.kit.witness")
SERVER = Path(__file__).with_name("fork_server.py")
_PYTHON = [sys.executable, "-P", "-m"]


class ForkServerError(RuntimeError):
    """The fork server cannot work here."""


def choose_spawn() -> Spawn:
    """Return how this run starts the programs, unless a test asks for more."""
    wanted = os.environ.get("START", "fork")
    if wanted not in ("fork", "exec"):
        raise ValueError(f"START: got {wanted!r}, want fork or exec")
    return exec_program if wanted == "exec" else fork_program


def fork_program(
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    directory: Path,
    stdin: int,
    stdout: int,
    stderr: int,
    new_session: bool = False,
) -> Child:
    """Start a program by the fork server when it is one of ours, spelled `python -P -m`, `env NAME=VALUE …` before it.

    Everything else, and what the fork server declines, is a real exec.
    """
    variables, rest = _split_env(command)
    pid = 0
    if rest[:3] == _PYTHON and rest[3] in PROGRAMS:
        pid = _get_server().fork(
            rest[3:],
            environ={**environ, **variables},
            directory=directory,
            streams=(stdin, stdout, stderr),
            new_session=new_session,
        )
    if pid:
        return ForkedProcess(pid)
    return exec_program(
        command,
        environ=environ,
        directory=directory,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        new_session=new_session,
    )


class ForkedProcess:
    """A child of this process that another process forked for it. Thread-safe."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._code: int | None = None
        self._reaping = threading.Lock()

    @property
    def pid(self) -> int:
        return self._pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        with self._reaping:
            if self._code is None:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
            return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended; `subprocess.TimeoutExpired` when it has not in time."""
        wait_until(lambda: self.poll() is not None, timeout=float("inf") if timeout is None else timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self._pid}", timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self._pid, sig)  # not reaped: the pid is still its own

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks, and the way to ask it. Thread-safe; ends with `close`, and with this process."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise ForkServerError(f"the fork server wants Linux, not {sys.platform}: run with START=exec")
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(SERVER), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._asking = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        directory: Path,
        streams: tuple[int, int, int],
        new_session: bool,
    ) -> int:
        """Fork a program with its arguments; return its pid, 0 when only an exec can start it.

        Raises:
            OSError: There is no such directory.
            ForkServerError: The fork server has ended.
        """
        request = {
            "program": command[0],
            "arguments": list(command[1:]),
            "environ": dict(environ),
            "new_session": new_session,
        }
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        started, ready = os.pipe()
        with os.fdopen(started, "rb") as started_file:
            try:
                answer = self._ask(json.dumps(request).encode(), [*streams, folder, ready])
            finally:
                os.close(folder)
                os.close(ready)
            started_file.read()  # nothing: the program let go of it, as of all that is not its own, or has ended
        return int(answer)

    def _ask(self, request: bytes, fds: Sequence[int]) -> bytes:
        try:
            with self._asking:
                socket.send_fds(self._requests, [request], fds)
                answer = self._requests.recv(32)
        except ConnectionError:
            answer = b""
        if not answer:
            code = self._process.wait(10)
            raise ForkServerError(f"the fork server ended with {code}; START=exec does without it")
        return answer

    def close(self) -> None:
        self._requests.close()
        self._process.wait(10)


@functools.cache
def _get_server() -> ForkServer:
    """Return the one fork server of this process."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def _split_env(command: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take the variables off a command that begins with `env NAME=VALUE …`."""
    variables: dict[str, str] = {}
    rest = list(command)
    if rest[0] == "env":
        del rest[0]
        while "=" in rest[0]:
            name, _, value = rest.pop(0).partition("=")
            variables[name] = value
    return variables, rest
