"""`pilot run`: what the program gets, how it ends, what signals and changes do, and what keeps it from starting."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import DeniedError, NotFoundError, SealedError, ShardholdError
from pilot.dev.cluster import clean_environ
from shardhold.v1 import secrets_pb2
from tests.client.servers import Nexus
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.patience import at_most
from tests.kit.pilot_run import PilotRun, pilot_run
from tests.kit.transcript import ROOT, Transcript, run_at_terminal, run_pilot
from tests.kit.waiting import wait_until

PILOT = (sys.executable, "-P", "-m", "pilot")
PASSWORD = "--env", "PW=team/app/db#password"

# Names each signal that it gets, and ends by TERM with code 7.
NAMES_SIGNALS = """
import os, signal, sys
heeded = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGWINCH}
signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
print("ready", os.environ.get("PW"), flush=True)
while (number := signal.sigwait(heeded)) != signal.SIGTERM:
    print(signal.Signals(number).name, flush=True)
sys.exit(7)
"""

# Does not end by TERM, and ends by USR1 with code 5.
ENDS_BY_USR1 = """
import signal, sys
heeded = {signal.SIGTERM, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
print("ready", flush=True)
while signal.sigwait(heeded) != signal.SIGUSR1:
    print("TERM", flush=True)
sys.exit(5)
"""

# Says how many signals are left for it after Ctrl-C, once pilot has passed on two later ones: signals that come
# together may overtake each other.
COUNTS_INTERRUPTS = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
print("ready", file=sys.stderr, flush=True)
signal.sigwait({signal.SIGINT})
for _ in range(2):
    os.kill(os.getppid(), signal.SIGUSR1)
    signal.sigwait({signal.SIGUSR1})
print(len(signal.sigpending()), "more")
"""

# Has pilot pass on an interrupt that comes from no terminal.
INTERRUPTS_PILOT = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
os.kill(os.getppid(), signal.SIGINT)
print(signal.sigtimedwait({signal.SIGINT}, 60) and "passed on")
"""

# Runs a command in the background of the terminal that is its stdin.
IN_THE_BACKGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

# Becomes pilot, to which the kernel hands orphans as it hands them to the first process of a container.
AS_FIRST_PROCESS = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
os.execv(sys.executable, [sys.executable, "-P", "-m", "pilot", *sys.argv[1:]])
"""

# Leaves two orphans that end at once, and ends when pilot has no child left but this one.
LEAVES_ORPHANS = """
import os, pathlib, subprocess, sys, time
subprocess.run(["sh", "-c", "(exit 0) & (exit 0) & echo"], stdout=subprocess.DEVNULL)
children = pathlib.Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children")
end = time.monotonic() + 30
while len(children.read_text().split()) > 1 and time.monotonic() < end:
    time.sleep(0.01)
print("children", len(children.read_text().split()))
"""


@pytest.fixture
def nexus(ca: Authority) -> Iterator[Nexus]:
    """Run a server with one secret at every path."""
    nexus = Nexus(ca)
    write(nexus, 1)
    yield nexus
    nexus.stop()


@pytest.fixture
def reach(nexus: Nexus, ca: Authority, tmp_path: Path) -> list[str]:
    """Return the options that lead to the nexus, as a workload."""
    folder = write_svid(tmp_path / "workload", ca.issue("/team/app"))
    return ["--address", nexus.address, "--svid-dir", str(folder), "--timeout", str(at_most(5))]


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a folder on a tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def write(nexus: Nexus, version: int, **fields: bytes) -> None:
    """Have the server answer with this version from now on."""
    given = {"password": b"canary-%d" % version, "user": b"ann", "key": b"\x00\xff", **fields}

    def answer(request: secrets_pb2.GetSecretRequest) -> secrets_pb2.GetSecretResponse:
        return secrets_pb2.GetSecretResponse(path=request.path, version=version, incarnation=bytes(16), fields=given)

    nexus.answers["GetSecret"] = answer


def refuse(nexus: Nexus, error: ShardholdError) -> None:
    """Have the server answer with this error from now on."""

    def answer(_: Any) -> Any:
        raise error

    nexus.answers["GetSecret"] = answer


def running(folder: Path, *arguments: str | Path) -> contextlib.AbstractContextManager[PilotRun]:
    """Run `pilot run` for as long as the block lasts, or until its program ends."""
    return pilot_run(folder, *arguments, environ=clean_environ())


def run_by_exec(*command: str, stdin: int = subprocess.DEVNULL) -> Transcript:
    """Run a command in a session of its own by a real exec."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=stdin,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=at_most(60),
        check=False,
    )
    return Transcript(done.returncode, done.stdout, done.stderr)


def run(*arguments: str | Path, environ: dict[str, str] | None = None) -> Transcript:
    """Run `pilot run` to its end."""
    return run_pilot("run", *arguments, environ=environ)


class TestWhatAProgramGets:
    """Variables, files, arguments and streams."""

    def test_variables(self, nexus: Nexus, reach: list[str]) -> None:
        """Several fields of several secrets, each secret fetched once, beside pilot's own environment."""
        told = run(
            *(*reach, "--env", "PW=team/app/db#password", "--env", "U=team/app/db#user", "--env", "K=team/key#user"),
            *("--", "sh", "-c", 'echo "$PW $U $K $KEPT $0 $*"', "zero", "--env", "-- x"),
            environ={"KEPT": "kept", "PW": "of before"},
        )
        assert told == Transcript(0, "canary-1 ann ann kept zero --env -- x\n", "")
        assert sorted(request.path for request in nexus.requests) == ["team/app/db", "team/key"]
        assert nexus.callers == {"spiffe://example.test/team/app"}

    def test_no_secret_on_the_command_line(self, reach: list[str]) -> None:
        """Neither pilot's arguments nor the program's have the value, nor has pilot's environment."""
        look = (
            "tr '\\0' '\\n' </proc/$PPID/cmdline; tr '\\0' '\\n' </proc/$PPID/environ; tr '\\0' ' ' </proc/$$/cmdline"
        )
        told = run_by_exec(*PILOT, "run", *reach, *PASSWORD, "--", "sh", "-c", look)
        assert told.code == 0
        assert "team/app/db#password" in told.out
        assert "canary" not in told.out + told.err

    def test_only_the_standard_streams(self, reach: list[str]) -> None:
        """The program inherits no file, socket or key of pilot's, and no setting that is pilot's own."""
        told = run(*reach, *PASSWORD, "--", "sh", "-c", 'ls /proc/self/fd; echo "${GRPC_VERBOSITY-unset}"')
        assert told.out.split() == ["0", "1", "2", "3", "unset"]  # 3: the folder that ls reads

    def test_files(self, nexus: Nexus, reach: list[str], tmp_path: Path, memory: Path) -> None:
        """Templates are filled in on a tmpfs, for the owner alone, before the program starts, and removed after it."""
        (tmp_path / "a.tmpl").write_text('p = {{ team/app/db#password | json }}\n{{"{{"}}\n')
        (tmp_path / "b.tmpl").write_text("{{ team/app/db#key }}")
        told = run(
            *(*reach, "--template", f"{tmp_path}/a.tmpl:{memory}/a", "--template", f"{tmp_path}/b.tmpl:{memory}/b"),
            *("--", "sh", "-c", f"stat -c %a {memory}/a {memory}/b; cat {memory}/a; od -An -tx1 {memory}/b"),
        )
        assert told == Transcript(0, '600\n600\np = "canary-1"\n{{\n 00 ff\n', "")
        assert list(memory.iterdir()) == []
        assert len(nexus.requests) == 1

    def test_a_template_without_secrets(self, reach: list[str], tmp_path: Path, memory: Path) -> None:
        """It is a file like any other, also when nothing else is handed over."""
        (tmp_path / "a.tmpl").write_text("plain\n")
        told = run(*reach, "--template", f"{tmp_path}/a.tmpl:{memory}/a", "--", "cat", f"{memory}/a")
        assert told == Transcript(0, "plain\n", "")
        assert list(memory.iterdir()) == []

    def test_stdin_is_the_programs(self, reach: list[str]) -> None:
        """What is piped into pilot goes to the program."""
        assert run_pilot("run", *reach, *PASSWORD, "--", "cat", stdin="typed").out == "typed"


class TestWhatKeepsItFromStarting:
    """Each is pilot's error, and the program is not started."""

    @pytest.mark.parametrize(
        ("options", "code", "said"),
        [
            pytest.param([], 2, "nothing to hand over, want --env or --template", id="nothing"),
            pytest.param(["--env", "A"], 2, "--env: got 'A', want NAME=PATH#FIELD", id="no reference"),
            pytest.param(["--env", "A=a#b", "--env", "A=a#b"], 2, "--env: A is given twice", id="variable twice"),
            pytest.param(["--env", "A=a#pin"], 3, "version 1 of a has no field pin", id="no field"),
            pytest.param(["--env", "A=a#key"], 1, "A: the value of a#key has a NUL byte, want text", id="NUL"),
            pytest.param([*PASSWORD, "--on-change", "KILL"], 2, "--on-change: got 'KILL', want ignore,", id="reaction"),
            pytest.param(["--template", "x"], 2, "--template: got 'x', want FILE:TARGET", id="no target"),
            pytest.param(["--template", "/no:/dev/shm/x"], 2, "--template: /no: No such file", id="no template"),
            pytest.param(["--template", "README.md:README.md"], 2, "README.md is the template itself", id="itself"),
            pytest.param(["--template", f"LICENSE:/dev/shm/{'x' * 256}"], 1, ": File name too long", id="long name"),
            pytest.param(["--template", "LICENSE:/proc/x"], 2, "/proc/x: the folder is on proc, want tmpfs", id="disk"),
        ],
    )
    def test_command_lines(self, reach: list[str], options: list[str], code: int, said: str) -> None:
        """A command line that is wrong, or values that do not fit."""
        told = run(*reach, *options, "--", "echo", "started")
        assert (told.code, told.out) == (code, "")
        assert told.err.startswith("pilot: error: ")
        assert said in told.err

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            pytest.param(DeniedError("not allowed"), 4, id="denied"),
            pytest.param(NotFoundError("no such secret"), 3, id="no such secret"),
        ],
    )
    def test_refusals(self, nexus: Nexus, reach: list[str], error: ShardholdError, code: int) -> None:
        """What the nexus refuses is told at once."""
        refuse(nexus, error)
        told = run(*reach, *PASSWORD, "--", "echo", "started")
        assert (told.code, told.out) == (code, "")
        assert told.err.startswith(f"pilot: error: team/app/db: {error}")
        assert len(nexus.requests) == 1

    def test_an_address_without_a_port(self, reach: list[str]) -> None:
        """The port is then that of every nexus, as for other commands."""
        told = run(*reach, "--address", "localhost", "--timeout", "0.5", *PASSWORD, "--", "echo", "started")
        assert (told.code, told.out) == (5, "")
        assert ":8553: " in told.err

    def test_a_sealed_nexus(self, nexus: Nexus, reach: list[str]) -> None:
        """An outage that lasts for --timeout is pilot's error."""
        refuse(nexus, SealedError("the nexus is sealed"))
        told = run(*reach, "--timeout", "0.5", *PASSWORD, "--", "echo", "started")
        assert (told.code, told.out) == (5, "")
        assert "pilot: error: the nexus is sealed" in told.err

    @pytest.mark.parametrize(
        ("command", "code", "said"),
        [
            pytest.param("./no-such-program", 127, "./no-such-program: No such file or directory", id="no program"),
            pytest.param("/dev", 126, "/dev: Permission denied", id="no program but a folder"),
        ],
    )
    def test_no_program(
        self, reach: list[str], tmp_path: Path, memory: Path, command: str, code: int, said: str
    ) -> None:
        """What cannot be started is told as a shell tells it, and leaves no file."""
        (tmp_path / "a.tmpl").write_text("{{ team/app/db#password }}")
        told = run(*reach, "--template", f"{tmp_path}/a.tmpl:{memory}/a", "--", command)
        assert (told.code, told.err) == (code, f"pilot: error: {said}\n")
        assert list(memory.iterdir()) == []

    def test_a_value_that_is_too_large(self, nexus: Nexus, reach: list[str]) -> None:
        """What no environment takes is told, with the way that does."""
        write(nexus, 1, password=b"x" * 200_000)
        told = run(*reach, *PASSWORD, "--", "echo", "started")
        said = (
            "pilot: error: echo: Argument list too long\npilot: hint: hand large values over as files, with --template"
        )
        assert (told.code, told.out, told.err) == (126, "", f"{said}\n")


class TestEnd:
    """The end of the program is the end of pilot."""

    @pytest.mark.parametrize(
        ("script", "code"),
        [
            pytest.param("exit 0", 0, id="done"),
            pytest.param("exit 3", 3, id="its code"),
            pytest.param("kill -TERM $$", 143, id="ended by TERM"),
            pytest.param("kill -KILL $$", 137, id="killed"),
        ],
    )
    def test_exit_codes(self, reach: list[str], script: str, code: int) -> None:
        """The code is the program's, or 128 and the number of the signal."""
        assert run(*reach, *PASSWORD, "--", "sh", "-c", script) == Transcript(code, "", "")

    def test_the_exit_code_of_a_silent_program(self, reach: list[str]) -> None:
        """Pilot writes nothing of its own, so nothing of its own fails where nothing can be written."""
        told = run_by_exec(
            "sh", "-c", '"$@" > /dev/full', "sh", *PILOT, "run", *reach, *PASSWORD, "--", "sh", "-c", "exit 3"
        )
        assert told == Transcript(3, "", "")

    def test_signals_are_passed_on(self, reach: list[str], tmp_path: Path) -> None:
        """Each signal reaches the program, which decides; TERM ends it, by its own code."""
        with running(tmp_path, *reach, *PASSWORD, "--", sys.executable, "-c", NAMES_SIGNALS) as pilot:
            seen = "ready canary-1\n"
            pilot.wait_out(seen)
            for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
                pilot.child.send_signal(signal.Signals[name])
                seen += f"{name}\n"
                pilot.wait_out(seen)
            assert pilot.end() == 7
            assert pilot.err.read_text() == ""

    def test_ctrl_c_comes_once(self, reach: list[str]) -> None:
        """The terminal gives Ctrl-C to the program itself, so pilot does not pass it on as well."""
        told = run_at_terminal(
            *("run", *reach, *PASSWORD, "--", sys.executable, "-c", COUNTS_INTERRUPTS),
            script=[("ready", "\x03")],
        )
        assert (told.code, told.out) == (0, "0 more\n")

    def test_interrupts_from_elsewhere_are_passed_on(self, reach: list[str]) -> None:
        """In the background of a terminal an interrupt is not from there, so the program gets it from pilot."""
        leader, follower = pty.openpty()
        with os.fdopen(leader), os.fdopen(follower) as terminal:
            command = [*PILOT, "run", *reach, *PASSWORD, "--", sys.executable, "-c", INTERRUPTS_PILOT]
            told = run_by_exec(sys.executable, "-c", IN_THE_BACKGROUND, *command, stdin=terminal.fileno())
        assert told == Transcript(0, "passed on\n", "")

    def test_what_was_ignored_stays_ignored(self, reach: list[str]) -> None:
        """Under nohup the hang-up of the terminal ends neither pilot nor the program."""
        script = "kill -HUP $PPID; kill -HUP $$; echo goes on"
        told = run_by_exec("nohup", *PILOT, "run", *reach, *PASSWORD, "--", "sh", "-c", script)
        assert told == Transcript(0, "goes on\n", "")

    def test_orphans_are_reaped(self, reach: list[str]) -> None:
        """As the first process of a container pilot reaps what the program leaves behind."""
        first = (sys.executable, "-c", AS_FIRST_PROCESS)
        told = run_by_exec(*first, "run", *reach, *PASSWORD, "--", sys.executable, "-c", LEAVES_ORPHANS)
        assert told == Transcript(0, "children 1\n", "")


class TestChanges:
    """What a change of a secret does."""

    def test_restart(self, nexus: Nexus, reach: list[str], tmp_path: Path) -> None:
        """The program is told to end, and started anew with the new value, as often as there is one."""
        script = 'echo "$PW"; exec sleep 600'
        options = ["--on-change", "restart", "--refresh", "0.1"]
        with running(tmp_path, *reach, *PASSWORD, *options, "--", "sh", "-c", script) as pilot:
            pilot.wait_out("canary-1\n")
            write(nexus, 2)
            pilot.wait_out("canary-1\ncanary-2\n")
            write(nexus, 3)
            pilot.wait_out("canary-1\ncanary-2\ncanary-3\n")
            assert pilot.end() == 143

    def test_restart_after_the_grace(self, nexus: Nexus, reach: list[str], tmp_path: Path) -> None:
        """A program that does not end is killed."""
        script = 'trap "" TERM; echo "$PW"; exec sleep 600'
        options = ["--on-change", "restart", "--refresh", "0.1", "--grace", "0.2"]
        with running(tmp_path, *reach, *PASSWORD, *options, "--", "sh", "-c", script) as pilot:
            pilot.wait_out("canary-1\n")
            write(nexus, 2)
            pilot.wait_out("canary-1\ncanary-2\n")

    def test_told_to_end_during_a_restart(self, nexus: Nexus, reach: list[str], tmp_path: Path) -> None:
        """Whoever ends pilot during a restart means the program: it is not started again."""
        options = ["--on-change", "restart", "--refresh", "0.1", "--grace", "600"]
        with running(tmp_path, *reach, *PASSWORD, *options, "--", sys.executable, "-c", ENDS_BY_USR1) as pilot:
            pilot.wait_out("ready\n")
            write(nexus, 2)
            pilot.wait_out("ready\nTERM\n")
            pilot.child.send_signal(signal.SIGTERM)
            pilot.wait_out("ready\nTERM\nTERM\n")
            pilot.child.send_signal(signal.SIGUSR1)
            assert pilot.wait() == 5
            assert pilot.out.read_text().count("ready") == 1

    def test_signal(self, nexus: Nexus, reach: list[str], tmp_path: Path, memory: Path) -> None:
        """The file is rewritten, and then the program gets the signal, without a restart."""
        (tmp_path / "a.tmpl").write_text("{{ team/app/db#password }}\n")
        script = f'trap "cat {memory}/a" HUP; cat {memory}/a; while :; do sleep 0.01; done'
        options = ["--template", f"{tmp_path}/a.tmpl:{memory}/a", "--on-change", "hup", "--refresh", "0.1"]
        with running(tmp_path, *reach, *options, "--", "sh", "-c", script) as pilot:
            pilot.wait_out("canary-1\n")
            write(nexus, 2)
            pilot.wait_out("canary-1\ncanary-2\n")
            assert pilot.end() == 143
        assert list(memory.iterdir()) == []

    def test_files_follow_and_the_program_is_left_alone(
        self, nexus: Nexus, reach: list[str], tmp_path: Path, memory: Path
    ) -> None:
        """Without --on-change a file has the new value, and the program hears nothing."""
        (tmp_path / "a.tmpl").write_text("{{ team/app/db#password }}")
        options = ["--template", f"{tmp_path}/a.tmpl:{memory}/a", "--refresh", "0.1"]
        with running(tmp_path, *reach, *options, "--", sys.executable, "-c", NAMES_SIGNALS) as pilot:
            pilot.wait_out("ready None\n")
            write(nexus, 2)
            wait_until(lambda: (memory / "a").read_bytes() == b"canary-2")
            assert pilot.end() == 7
            assert pilot.out.read_text() == "ready None\n"

    def test_variables_alone_are_not_followed(self, nexus: Nexus, reach: list[str]) -> None:
        """Where a change would do nothing, nobody asks for it."""
        told = run(*reach, *PASSWORD, "--refresh", "0.1", "--", "sleep", "0.5")
        assert (told.code, len(nexus.requests)) == (0, 1)

    def test_other_fields_are_no_change(self, nexus: Nexus, reach: list[str], tmp_path: Path) -> None:
        """A new version with the same values, as far as the program gets them, restarts nothing."""
        options = ["--on-change", "USR1", "--refresh", "0.1"]
        with running(tmp_path, *reach, *PASSWORD, *options, "--", sys.executable, "-c", NAMES_SIGNALS) as pilot:
            pilot.wait_out("ready canary-1\n")
            write(nexus, 2, password=b"canary-1", user=b"bob")
            asked = len(nexus.requests)
            wait_until(lambda: len(nexus.requests) > asked + 1)
            write(nexus, 3)
            pilot.wait_out("ready canary-1\nSIGUSR1\n")

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            pytest.param(SealedError("the nexus is sealed"), "the last value stays: the nexus is sealed", id="sealed"),
            pytest.param(DeniedError("no\x1b]0;x\x07"), "the last value stays: no�]0;x�", id="denied by a liar"),
        ],
    )
    def test_outages(self, nexus: Nexus, reach: list[str], tmp_path: Path, error: ShardholdError, said: str) -> None:
        """The program goes on, pilot warns once and in plain text, and what changed meanwhile arrives afterwards."""
        options = ["--on-change", "restart", "--refresh", "0.1"]
        with running(tmp_path, *reach, *PASSWORD, *options, "--", "sh", "-c", 'echo "$PW"; exec sleep 600') as pilot:
            pilot.wait_out("canary-1\n")
            refuse(nexus, error)
            asked = len(nexus.requests)
            wait_until(lambda: len(nexus.requests) > asked + 1)
            assert pilot.err.read_text() == f"pilot: warning: team/app/db: not refreshed, {said}\n"
            write(nexus, 2)
            pilot.wait_out("canary-1\ncanary-2\n")

    def test_a_change_that_does_not_fit(self, nexus: Nexus, reach: list[str], tmp_path: Path) -> None:
        """A version that lacks the field is a warning; the program keeps the value until one has it."""
        options = ["--on-change", "restart", "--refresh", "0.1"]
        with running(tmp_path, *reach, *PASSWORD, *options, "--", "sh", "-c", 'echo "$PW"; exec sleep 600') as pilot:
            pilot.wait_out("canary-1\n")
            write(nexus, 2, password=b"canary\0")
            wait_until(lambda: "pilot: warning: " in pilot.err.read_text())
            assert "PW: the value of team/app/db#password has a NUL byte" in pilot.err.read_text()
            write(nexus, 3)
            pilot.wait_out("canary-1\ncanary-3\n")
            assert "canary" not in pilot.err.read_text()
