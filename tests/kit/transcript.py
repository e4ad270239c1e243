"""Running pilot as a process, with or without a terminal."""

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pilot.dev.spawn import run_captured
from tests.kit.patience import at_most
from tests.kit.spawn import choose_spawn
from tests.pilot.person import DEADLINE_S

ROOT = Path(__file__).parents[2]

# Makes its stdin the controlling terminal, so that Ctrl-C reaches the program, then becomes the program. Tests that a
# shell runs in the background ignore SIGINT, and the program would inherit that.
ON_A_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Transcript:
    """What a command wrote, and how it ended."""

    code: int
    out: str
    err: str


def make_environ() -> dict[str, str]:
    """Return the environment of a pilot that stands alone."""
    dropped = ("SHARDHOLD_", "SPIFFE_", "LINES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"COLUMNS": "1000", "TERM": "dumb"}  # nothing wraps


def run_pilot(*arguments: str | Path, stdin: str = "", environ: dict[str, str] | None = None) -> Transcript:
    """Run a command line with *stdin* on a pipe."""
    done = run_captured(
        choose_spawn(),
        [sys.executable, "-P", "-m", "pilot", *map(str, arguments)],
        environ=make_environ() | (environ or {}),
        directory=ROOT,
        given=stdin,
        timeout=at_most(60),
    )
    return Transcript(done.returncode, done.stdout, done.stderr)


def run_at_terminal(
    *arguments: str | Path, script: Sequence[tuple[str, str]] = (), environ: dict[str, str] | None = None
) -> Transcript:
    """Run a command line of pilot as `run_program_at_terminal` does."""
    return run_program_at_terminal(sys.executable, "-m", "pilot", *arguments, script=script, environ=environ)


def run_program_at_terminal(
    *command: str | Path, script: Sequence[tuple[str, str]] = (), environ: dict[str, str] | None = None
) -> Transcript:
    """Run a command on a terminal: for each pair wait until the first is on the screen, then type the second.

    The output on stdout, which is a pipe, and that on the screen are kept apart.
    """
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *map(str, command)],
        cwd=ROOT,
        env=make_environ() | (environ or {}),
        start_new_session=True,
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    )
    os.close(follower)
    seen = ""
    position = 0
    watchdog = threading.Timer(6 * DEADLINE_S, process.kill)
    watchdog.start()
    try:
        waiting = list(script)
        while True:
            if waiting and (at := seen.find(waiting[0][0], position)) >= 0:
                prompt, typed = waiting.pop(0)
                position = at + len(prompt)
                os.write(leader, typed.encode() + b"\n")
                continue
            try:
                read = os.read(leader, 4096)
            except OSError:  # it has ended
                break
            if not read:
                break
            seen += read.decode(errors="replace")
        out, _ = process.communicate(timeout=at_most(DEADLINE_S))
    finally:
        watchdog.cancel()
        os.close(leader)
    assert not waiting, f"never asked for {waiting[0][0]!r}; on the screen: {seen!r}"
    return Transcript(process.returncode, out, seen.replace("\r\n", "\n"))
