"""A forked program cannot be told from one that was started by exec, and ends as one."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pilot.dev.ports import RANGE
from pilot.dev.spawn import Spawn, exec_program, run_captured
from tests.kit.ports import find_port_range
from tests.kit.spawn import ForkServer, ForkServerError, choose_spawn, fork_program
from tests.kit.witness import ENDS

WITNESS = [sys.executable, "-P", "-m", "tests.kit.witness"]

ENVIRON = {
    name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LC_CTYPE") if name in os.environ
}
BOTH = pytest.mark.parametrize("spawn", [exec_program, fork_program])


def start(
    spawn: Spawn, *arguments: str, directory: Path, environ: dict[str, str] | None = None, given: str = ""
) -> Any:
    command = [*WITNESS, *arguments]
    used = ENVIRON | (environ or {})
    return run_captured(spawn, command, environ=used, directory=directory, timeout=60, given=given)


def is_forked(pid: int) -> bool:
    return b"fork_server.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="plain"),
        pytest.param({"WITNESS": "ß", "PYTHONUNBUFFERED": "1"}, id="unbuffered"),
        pytest.param({"PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nowhere"}, id="no bytecode"),
    ],
)
def test_a_forked_program_sees_what_a_started_one_sees(tmp_path: Path, environ: dict[str, str]) -> None:
    """Arguments, environment, directory, descriptors, signals and streams: all is as after an exec."""
    seen = [
        json.loads(start(spawn, "describe", "a b", "", directory=tmp_path, environ=environ).stdout)
        for spawn in (exec_program, fork_program)
    ]
    assert ["fork_server.py" in one.pop("command line") for one in seen] == [False, True]
    assert seen[1] == seen[0]
    assert seen[1]["parent"] == os.getpid()
    assert seen[1]["directory"] == str(tmp_path)
    assert {name: seen[1]["environ"][name] for name in environ} == environ


@pytest.mark.parametrize("end", [end for end in ENDS if end not in ("sleep", "echo", "random")])
def test_a_forked_program_ends_as_a_started_one(tmp_path: Path, end: str) -> None:
    """Exit code and output are those of the interpreter, whatever ends the program."""
    ends = [start(spawn, end, directory=tmp_path) for spawn in (exec_program, fork_program)]
    codes = [done.returncode for done in ends]
    written = [(done.stdout, done.stderr.splitlines()[-1:]) for done in ends]
    assert (codes[1], written[1]) == (codes[0], written[0])
    assert ("Traceback" in ends[1].stderr) == ("Traceback" in ends[0].stderr)


def test_the_ends_differ(tmp_path: Path) -> None:
    """The comparison above is one of different things."""
    ends = {"return": 0, "raise": 1, "exit 3": 3, "exit words": 1, "interrupted": -2, "killed": -9}
    assert {end: start(fork_program, end, directory=tmp_path).returncode for end in ends} == ends


@BOTH
def test_what_is_given_is_read(tmp_path: Path, spawn: Spawn) -> None:
    """Input reaches the program, also more than a pipe holds."""
    given = "x" * 200_000
    assert start(spawn, "echo", directory=tmp_path, given=given).stdout == f"{given}\n"


@BOTH
def test_input_that_nobody_reads(tmp_path: Path, spawn: Spawn) -> None:
    """A program that ends without reading is no error."""
    assert start(spawn, "return", directory=tmp_path, given="x" * 200_000).returncode == 0


def test_no_two_forks_have_the_same_randomness(tmp_path: Path) -> None:
    """Neither Python's nor OpenSSL's generator goes on from the fork server's state."""
    numbers = [number for _ in range(3) for number in start(fork_program, "random", directory=tmp_path).stdout.split()]
    assert len(set(numbers)) == 6


def open_sleeper(spawn: Spawn, environ: dict[str, str], command: list[str] | None = None) -> Any:
    with Path(os.devnull).open("r+b") as nothing:
        return spawn(
            command or [*WITNESS, "sleep"],
            environ=ENVIRON | environ,
            directory=Path(),
            stdin=nothing.fileno(),
            stdout=nothing.fileno(),
            stderr=nothing.fileno(),
            new_session=True,
        )


@BOTH
def test_a_child_is_waited_for_in_time_and_is_killed(spawn: Spawn) -> None:
    """It leads its session; it runs until it is killed, and has one exit code for whoever asks."""
    child = open_sleeper(spawn, {})
    try:
        assert os.getsid(child.pid) == child.pid
        assert child.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.05)
    finally:
        child.kill()
    assert [child.wait(60), child.poll(), child.wait()] == [-9, -9, -9]
    child.kill()  # nobody is hit by it
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


@pytest.mark.parametrize(
    ("environ", "prefix", "is_fork"),
    [
        pytest.param({}, [], True, id="plain"),
        pytest.param({}, ["env", "ONE=1"], True, id="env before it"),
        pytest.param({"LD_PRELOAD": ""}, [], False, id="a library before all others"),
        pytest.param({}, ["env", "LD_PRELOAD="], False, id="the same by env"),
        pytest.param({"PYTHONHASHSEED": "7"}, [], False, id="for the interpreter"),
        pytest.param({"GRPC_TRACE": "http"}, [], False, id="for gRPC"),
        pytest.param({}, ["nice"], False, id="another program"),
    ],
)
def test_what_has_to_be_there_before_the_imports_is_an_exec(
    environ: dict[str, str], prefix: list[str], is_fork: bool
) -> None:
    """The fork server forks only what it can make the same."""
    child = open_sleeper(fork_program, environ, [*prefix, *WITNESS, "sleep"])
    try:
        assert is_forked(child.pid) is is_fork
    finally:
        child.kill()
        child.wait(60)


def test_a_missing_directory_is_said_to_the_starter(tmp_path: Path) -> None:
    """As with an exec: the caller gets the error, and no process."""
    with pytest.raises(FileNotFoundError):
        start(fork_program, "return", directory=tmp_path / "missing")


@pytest.mark.parametrize(("start_by", "spawn"), [("exec", exec_program), ("fork", fork_program), (None, fork_program)])
def test_the_whole_run_can_be_told_to_exec(monkeypatch: pytest.MonkeyPatch, start_by: str | None, spawn: Spawn) -> None:
    """START=exec takes the fork server out; without it forks are the rule."""
    monkeypatch.delenv("START", raising=False)
    if start_by:
        monkeypatch.setenv("START", start_by)
    assert choose_spawn() is spawn


def test_another_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that means nothing does not mean the default."""
    monkeypatch.setenv("START", "exce")
    with pytest.raises(ValueError, match="got 'exce', want fork or exec"):
        choose_spawn()


def test_a_fork_server_that_is_gone_is_named() -> None:
    """Whoever asks it learns how it ended, and what does without it."""
    server = ForkServer()
    os.kill(server.pid, 9)
    with pytest.raises(ForkServerError, match="ended with -9; START=exec"):
        server.fork(["pilot"], environ={}, directory=Path(), streams=(0, 1, 2), new_session=False)
    server.close()


def test_threads_may_start_programs_at_once(tmp_path: Path) -> None:
    """Each gets the child that it asked for."""
    outputs: dict[int, str] = {}

    def ask(number: int) -> None:
        outputs[number] = start(fork_program, "describe", str(number), directory=tmp_path).stdout

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: json.loads(output)["arguments"] for number, output in outputs.items()} == {
        number: ["describe", str(number)] for number in range(8)
    }


def test_workers_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slices of two workers, and what a `pilot dev up` takes, have no port in common."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    slices = []
    for worker in ("gw0", "gw1"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        slices.append(find_port_range())
    ports = [port for one in (*slices, RANGE) for port in one]
    assert len(set(ports)) == len(ports)
    assert min(map(len, slices)) >= 1000
