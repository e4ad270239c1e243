"""docker-compose.yml under a project name of its own: what a test does to it and asks of it.

Rules: a stack is made of images of one tag (`build_images`), on a port that the engine chooses; `remove` leaves nothing
of it. Every wait has a deadline, far longer than anything takes. What a test may not do as compose does it is done as
the machine would: `crash` ends a process behind the engine's back, so that its restart policy acts.
"""

import contextlib
import functools
import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kit.patience import wait_until

ROOT = Path(__file__).parent.parent.parent
KEEPERS = tuple(f"keeper-{number}" for number in range(1, 6))
SERVERS = ("nexus", *KEEPERS)
IMAGES = ("nexus", "keeper", "pilot")
SHARES = "/var/lib/shardhold/recovery-shares"
WAIT_S = 120.0  # seconds; a start takes 25
COMMAND_S = 300.0
UNTIL_TERM = "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, {s.SIGTERM}); s.sigwait({s.SIGTERM})"

_numbers = itertools.count(1)

Status = Mapping[str, Any]
Override = Mapping[str, Any]


class StackError(AssertionError):
    """The stack did not do what was asked, or not in time."""


def docker(*arguments: str, check: bool = True, given: str = "", timeout: float = COMMAND_S) -> str:
    """Run docker and return what it said on standard output; *given* is standard input."""
    command = ["docker", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise StackError(f"docker {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def inspect(*names: str) -> list[dict[str, Any]]:
    """Return what the engine knows of containers, images, networks or volumes."""
    found: list[dict[str, Any]] = json.loads(docker("inspect", *names)) if names else []
    return found


def name_image(role: str, tag: str) -> str:
    """Return the name under which docker-compose.yml has an image."""
    return f"shardhold/{role}:{tag}"


def build_images(tag: str) -> float:
    """Build all images under *tag*; return the seconds it took. Authorities that pip trusts here are the build's."""
    started = time.monotonic()
    _compose(["build", "--quiet"], environ=_environ(tag), timeout=1200)
    return time.monotonic() - started


def rebuild_images(tag: str) -> str:
    """Make images like those of *tag* that are other images, as the next release is; return their tag."""
    following = f"{tag}-next"
    for role in IMAGES:
        dockerfile = f"FROM {name_image(role, tag)}\nLABEL org.opencontainers.image.revision={following}\n"
        docker("build", "--quiet", "--tag", name_image(role, following), "-", given=dockerfile)
    return following


def remove_images(tag: str) -> None:
    """Remove what `build_images` made."""
    docker("image", "rm", "--force", *(name_image(role, tag) for role in IMAGES), check=False)


class Stack:
    """One project. Not thread-safe, but for `pilot`, `status` and `exec`."""

    def __init__(self, folder: Path, tag: str, *, override: Override | None = None) -> None:
        """Name it, and start nothing. *override* goes over docker-compose.yml; *folder* takes the file it is in."""
        self.project = f"shardhold-test-{os.getpid()}-{next(_numbers)}"
        self.tag = tag
        self._observer = f"{self.project}-observer"
        self._files = ["--file", str(ROOT / "docker-compose.yml")]
        if override is not None:
            file = folder / f"{self.project}.json"  # what compose reads as YAML
            file.write_text(json.dumps(override))
            self._files += ["--file", str(file)]

    def compose(
        self, *arguments: str, check: bool = True, given: str | None = None, timeout: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run docker compose for this project; *given* is standard input."""
        command = ["--project-name", self.project, *self._files, *arguments]
        return _compose(command, environ=_environ(self.tag), check=check, given=given, timeout=timeout)

    def up(self, *services: str) -> float:
        """Start it as the README says, and return the seconds until compose was content."""
        started = time.monotonic()
        self.compose("up", "--detach", "--wait", *services)
        return time.monotonic() - started

    def down(self) -> None:
        """Take all containers and networks down, as an operator does; volumes stay."""
        docker("rm", "--force", self._observer, check=False)
        self.compose("down", "--remove-orphans")

    def remove(self) -> None:
        """Leave nothing of it but its images."""
        docker("rm", "--force", self._observer, check=False)
        with contextlib.suppress(StackError):
            self.compose("--profile", "pilot", "unpause", check=False)
            self.compose("--profile", "pilot", "down", "--volumes", "--remove-orphans", "--timeout", "0")

    def environ(self) -> dict[str, str]:
        """Return an environment in which `docker compose` is about this project."""
        return _environ(self.tag) | {"COMPOSE_PROJECT_NAME": self.project}

    # What is asked

    def container(self, service: str) -> str:
        """Return the id of a service's container, which may have ended."""
        found = self.compose("ps", "--all", "--quiet", service).stdout.split()
        if len(found) != 1:
            raise StackError(f"{service} has {len(found)} containers, want one")
        return found[0]

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of a service's container."""
        return inspect(self.container(service))[0]

    def is_running(self, service: str) -> bool:
        state = self.inspect(service)["State"]
        return bool(state["Running"] and not state["Restarting"])

    def logs(self, *services: str) -> str:
        """Return what services, all by default, have logged."""
        return self.compose("logs", "--no-color", *services).stdout

    def exec(self, service: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a container that runs."""
        return self.compose("exec", "--no-TTY", service, *command, check=check)

    def python(self, service: str, program: str, *arguments: str) -> str:
        """Run a Python program in a container that runs, and return what it printed."""
        return self.exec(service, "python3", "-c", program, *arguments).stdout

    def pilot(self, *arguments: str, given: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run pilot as the superuser, in a container of its own."""
        return self.compose("run", "--rm", "--no-TTY", "pilot", *arguments, given=given, check=check)

    @contextlib.contextmanager
    def program(self, service: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """Run a service's program in a container of its own, with pipes to its standard input and output."""
        command = ["docker", "compose", "--project-name", self.project, *self._files]
        with subprocess.Popen(
            [*command, "run", "--rm", "--no-TTY", service, *arguments],
            cwd=ROOT,
            env=_environ(self.tag),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.terminate()

    def status(self) -> Status:
        """Return what `pilot status -o json` says; empty when the nexus does not answer."""
        if not docker("ps", "--quiet", "--filter", f"name={self._observer}"):
            self._start_observer()
        said = docker("exec", self._observer, "pilot", "status", "--output", "json", check=False)
        status: Status = json.loads(said) if said else {}
        return status

    def _start_observer(self) -> None:
        """Start a container of pilot's that stays: a status is asked for all the time, and a new one takes seconds."""
        options = ("--detach", "--rm", "--name", self._observer, "--entrypoint", "python3")
        self.compose("run", *options, "pilot", "-c", UNTIL_TERM)

    # Waiting

    def wait(self, what: str, condition: Callable[[], bool], *, timeout: float = WAIT_S) -> float:
        """Wait until *condition* holds; return the seconds it took.

        Raises:
            StackError: It did not within *timeout* seconds; with the end of all logs.
        """
        started = time.monotonic()
        if not wait_until(condition, seconds=timeout):
            tail = self.compose("logs", "--no-color", "--tail", "15", check=False).stdout
            raise StackError(f"not within {timeout:g} s: {what}\n\n{tail}")
        return time.monotonic() - started

    def wait_status(self, what: str, condition: Callable[[Status], bool], *, timeout: float = WAIT_S) -> Status:
        """Wait for a status that fulfils *condition*, and return it."""
        last: Status = {}

        def look() -> bool:
            nonlocal last
            last = self.status()
            return bool(last) and condition(last)

        try:
            self.wait(what, look, timeout=timeout)
        except StackError as exc:
            raise StackError(f"{exc}\n\nlast status: {json.dumps(last, indent=2)}") from exc
        return last

    def wait_state(self, state: str, *, timeout: float = WAIT_S) -> Status:
        """Wait until the nexus says that it is in *state*."""
        return self.wait_status(f"the nexus is {state}", lambda status: status["state"] == state, timeout=timeout)

    def wait_ready(self, *, timeout: float = WAIT_S) -> float:
        """Wait until the nexus is ready, asked in its own container; return the seconds it took."""
        command = ("nexus", "health", "--config", "/etc/shardhold/nexus.toml")
        return self.wait(
            "the nexus is ready", lambda: self.exec("nexus", *command, check=False).returncode == 0, timeout=timeout
        )

    def wait_filled(self, *keepers: str, timeout: float = WAIT_S) -> Status:
        """Wait until keepers, all by default, hold their shards."""
        wanted = set(keepers or KEEPERS)
        return self.wait_status(
            f"{', '.join(sorted(wanted))} hold their shards",
            lambda status: wanted <= {one["name"] for one in status["keepers"] if one["holds_current_set"]},
            timeout=timeout,
        )

    # What is done to it

    def crash(self, *services: str) -> None:
        """End the main processes with SIGKILL behind the engine's back: its restart policy acts, as after a crash."""
        pids = [self.inspect(service)["State"]["Pid"] for service in services]
        if 0 in pids:
            raise StackError(f"{services[pids.index(0)]} does not run")
        # With their own uid, in the machine's pid namespace: inside of it, who has pid 1 cannot be killed.
        program = "import os, sys\nfor pid in sys.argv[1:]: os.kill(int(pid), 9)"
        image = name_image("pilot", self.tag)
        command = ["run", "--rm", "--pid", "host", "--network", "none", "--entrypoint", "python3", image]
        docker(*command, "-c", program, *map(str, pids))

    def kill(self, *services: str) -> None:
        """`docker compose kill`: they stay down until they are started."""
        self.compose("kill", *services)

    def start(self, *services: str) -> None:
        """Start containers that there are, without waiting for anything."""
        self.compose("start", *services)

    def pause(self, *services: str) -> None:
        """Freeze all processes of containers: connections stay open, and nobody answers."""
        for service in services:
            self.wait(f"{service} is paused", functools.partial(self._try_to_pause, service))

    def _try_to_pause(self, service: str) -> bool:
        """Return whether it is paused: a busy engine may fail to freeze a container whose health is being asked."""
        return self.compose("pause", service, check=False).returncode == 0

    def unpause(self, *services: str) -> None:
        self.compose("unpause", *services)

    def cut(self, service: str, *networks: str) -> None:
        """Cut a service off a network: a keeper, by default, off its own, which connects it with the nexus."""
        container = self.container(service)
        for network in networks or (service,):
            docker("network", "disconnect", "--force", f"{self.project}_{network}", container)

    def mend(self, service: str, *networks: str) -> None:
        """Undo `cut`."""
        container = self.container(service)
        for network in networks or (service,):
            docker("network", "connect", "--alias", service, f"{self.project}_{network}", container)

    def unseal(self, numbers: Sequence[int] = (1, 2, 3)) -> None:
        """Have custodians submit their shares, as docs/deploy-containers.md says."""
        for number in numbers:
            self.pilot("unseal", f"@custodian-{number}.txt")


@contextlib.contextmanager
def running(folder: Path, tag: str, *, override: Override | None = None) -> Iterator[Stack]:
    """A stack that is up, and nothing of it afterwards. What failed meanwhile is shown with the end of all logs."""
    stack = Stack(folder, tag, override=override)
    try:
        stack.up()
        yield stack
    except Exception as exc:
        exc.add_note(stack.compose("logs", "--no-color", "--tail", "20", check=False).stdout)
        raise
    finally:
        stack.remove()


def _environ(tag: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "SHARDHOLD_"))}
    authorities = kept.get("BUILD_CA") or kept.get("PIP_CERT") or "/dev/null"
    return kept | {"SHARDHOLD_TAG": tag, "SHARDHOLD_PORT": "0", "BUILD_CA": authorities}


def _compose(
    arguments: Sequence[str],
    *,
    environ: Mapping[str, str],
    check: bool = True,
    given: str | None = None,
    timeout: float = COMMAND_S,
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["docker", "compose", *arguments],
        cwd=ROOT,
        env=environ,
        input=given or "",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode != 0:
        raise StackError(
            f"docker compose {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done
