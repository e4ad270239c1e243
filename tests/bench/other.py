"""The program of another commit, as a cluster beside the present one.

Its files come out of git into a folder, and run in the environment of the present ones. Its own `tests.bench.stage`
starts it, in a process of its own, so that a configuration or a call that has changed meanwhile does not matter. The
load generator is the present one for both.
"""

import contextlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.bench.driver import ROOT, Server

_STAGE = """
import sys
from pathlib import Path

import msgspec

from tests.bench.stage import Pace, Stage

stage = Stage(Path(sys.argv[1]), Pace())
try:
    print(msgspec.json.encode(stage.nexus).decode(), flush=True)
    sys.stdin.read()
finally:
    stage.close()
"""


def describe(commit: str) -> str:
    """Name *commit* in short, with the first line of its message; raises `SystemExit` when there is none."""
    shown = _git("log", "-1", "--format=%h %s", f"{commit}^{{commit}}", "--")
    return shown.decode().strip()


@contextlib.contextmanager
def run_other(commit: str, folder: Path) -> Iterator[Server]:
    """Run the nexus of *commit* with all that it needs, in *folder*, until the block ends."""
    program = folder / "program"
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", commit))) as files:
        files.extractall(program, filter="data")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(program), str(program / "client")])}
    command = [sys.executable, "-P", "-c", _STAGE, str(folder)]
    with subprocess.Popen(
        command, cwd=program, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stage:
        assert stage.stdin is not None
        assert stage.stdout is not None
        line = stage.stdout.readline()
        if not line:
            raise SystemExit(f"bench: the program of {commit} does not start: what it wrote above says why")
        server = msgspec.json.decode(line, type=Server)
        yield _check_program(server, program)
        stage.stdin.close()


def _check_program(server: Server, program: Path) -> Server:
    """Make sure that it is the other program that runs."""
    environ = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
    if not any(one.startswith(f"PYTHONPATH={program}".encode()) for one in environ):
        raise SystemExit("bench: the nexus beside the present one is not of the other commit")
    return server


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: git {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout
