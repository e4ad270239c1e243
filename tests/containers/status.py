"""`pilot status`, asked again and again: pilot is imported once, since that takes most of the time of a status.

Each status is a process of its own, forked from the one that imported pilot: it connects anew and knows of none before.
"""

import contextlib
import subprocess

END = "."
PROGRAM = f"""
import os, sys
import pilot.app, pilot.commands.status
from pilot.__main__ import run
for _ in sys.stdin:
    child = os.fork()
    if not child:
        os._exit(run(["status", "--output", "json"]))
    os.waitpid(child, 0)
    print({END!r}, flush=True)
"""


class StatusProgram:
    """The program that asks, in a container that runs and has a superuser's identity. Not thread-safe."""

    def __init__(self, container: str) -> None:
        """Start it; *container* is a name or an id."""
        self._process = subprocess.Popen(
            ["docker", "exec", "--interactive", container, "python3", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self) -> str:
        """Return what pilot printed, which is nothing when it got no answer.

        Raises:
            EOFError: The program or its container has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise EOFError from exc
        said = ""
        for line in self._process.stdout:
            if line.rstrip("\n") == END:
                return said
            said += line
        raise EOFError

    def end(self) -> None:
        """End the program, whether its container is still there or not."""
        self._process.terminate()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
