"""Processes identified by pid and start time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pilot.dev.processes import Processes, ProcessRecord
from tests.kit.patience import wait_until

SLEEPER = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()",
]


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Return processes that end with the test."""
    processes = Processes()
    yield processes
    for record in processes.started:
        processes.kill(record)


def start(processes: Processes, folder: Path, command: list[str] = SLEEPER) -> ProcessRecord:
    """Start a command that says "up" and wait for that."""
    log = folder / "log"
    record = processes.start(command, log=log, environ=os.environ, directory=folder)
    assert wait_until(lambda: "up" in log.read_text(), seconds=20)
    return record


def test_a_started_process_is_alive_until_it_is_killed(processes: Processes, tmp_path: Path) -> None:
    """Killing ends exactly this process, and a second kill says that nothing ran."""
    record = start(processes, tmp_path)
    assert processes.is_alive(record)
    assert processes.kill(record)
    assert not processes.is_alive(record)
    assert processes.find_exit_code(record) == -signal.SIGKILL
    assert not processes.kill(record)


def test_a_reused_pid_is_never_killed(processes: Processes, tmp_path: Path) -> None:
    """A record whose start time is not the process's stands for a process that is gone, so nothing is killed."""
    record = start(processes, tmp_path)
    older = msgspec.structs.replace(record, started=record.started[:-1] + str((int(record.started[-1]) + 1) % 10))
    assert not processes.is_alive(older)
    assert not processes.kill(older)
    assert not processes.stop(older, grace=0.1)
    assert processes.is_alive(record)


def test_another_command_finds_the_process_again(processes: Processes, tmp_path: Path) -> None:
    """The record alone is enough to end a process that another command started."""
    record = start(processes, tmp_path)
    assert not Processes().stop(record, grace=20)
    assert not processes.is_alive(record)


def test_a_process_survives_the_session_of_its_starter(tmp_path: Path) -> None:
    """A process runs in a session of its own and goes on after the command that started it has ended."""
    script = (
        "import os, msgspec; from pathlib import Path; from pilot.dev.processes import Processes\n"
        f"record = Processes().start({SLEEPER!r}, log=Path('log'), environ=os.environ, directory=Path())\n"
        "assert os.getsid(record.pid) == record.pid\n"
        "print(msgspec.json.encode(record).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    record = msgspec.json.decode(done.stdout, type=ProcessRecord)
    assert Processes().is_alive(record)
    assert Processes().kill(record)


def test_who_ignores_sigterm_is_killed(processes: Processes, tmp_path: Path) -> None:
    """A process that ignores SIGTERM gets SIGKILL after the grace period, and stop reports it."""
    (tmp_path / "other").mkdir()
    stubborn, other = start(processes, tmp_path, STUBBORN), start(processes, tmp_path / "other")
    assert processes.stop(stubborn, other, grace=0.5) == (stubborn,)
    assert not processes.is_alive(stubborn)
    assert not processes.is_alive(other)


def test_a_zombie_is_not_alive(tmp_path: Path) -> None:
    """A process that has ended and that nobody has waited for yet counts as ended."""
    processes = Processes()
    record = processes.start([sys.executable, "-c", ""], log=tmp_path / "log", environ=os.environ, directory=tmp_path)
    assert wait_until(lambda: not Processes().is_alive(record), seconds=20)  # another command's view: it cannot reap
    assert not processes.is_alive(record)
