"""How a program is started: what each way takes and gives, and the ordinary one."""

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

HERE = Path()


class Child(Protocol):
    """A child of this process; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended; `subprocess.TimeoutExpired` when it has not in time."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""

    def kill(self) -> None:
        """Send SIGKILL."""


class Spawn(Protocol):
    """Starts *command* in *directory* with this environment and these file descriptors, and no other."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        directory: Path,
        stdin: int,
        stdout: int,
        stderr: int,
        new_session: bool = False,
    ) -> Child:
        """Return the new child; `OSError` when the program cannot be started."""


def exec_program(
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    directory: Path,
    stdin: int,
    stdout: int,
    stderr: int,
    new_session: bool = False,
) -> Child:
    """Start a program as everybody does."""
    return subprocess.Popen(
        command,
        env=dict(environ),
        cwd=directory,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=new_session,
    )


def run_captured(
    spawn: Spawn,
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    timeout: float,
    directory: Path = HERE,
    given: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run *command* to its end, with *given* on a pipe as its stdin, and return what it wrote.

    Raises:
        subprocess.TimeoutExpired: It took more than *timeout* seconds, and was killed.
    """
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stdin, _open_memory("stdout") as out, _open_memory("stderr") as err:
        with os.fdopen(reading, "rb"):
            child = spawn(
                command,
                environ=environ,
                directory=directory,
                stdin=reading,
                stdout=out.fileno(),
                stderr=err.fileno(),
            )
        try:
            with contextlib.suppress(BrokenPipeError):  # it may end without reading
                stdin.write(given.encode())
                stdin.close()
            code = child.wait(timeout)
        except BaseException:
            child.kill()
            child.wait()
            raise
        return subprocess.CompletedProcess(command, code, _read(out), _read(err))


def _open_memory(name: str) -> BinaryIO:
    """Open a file that is on no disk: unlike a pipe it is never full."""
    return os.fdopen(os.memfd_create(name), "w+b")


def _read(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()
