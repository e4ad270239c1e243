"""docker-compose.yml under a project name of its own: what a test does to it and asks of it.

Rules:
 1. A stack is made of images of one tag (`build_images`), on a port that the engine chooses; `remove` leaves nothing
    of it.
 2. Every wait has a deadline, far longer than anything takes.
 3. `crash` ends a process without asking the engine, as a real crash would, so that its restart policy acts.
 4. Whatever is asked is asked in a container that is up already: a new one costs a second.
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

from tests.containers.status import StatusProgram
from tests.kit.patience import wait_until

ROOT = Path(__file__).parent.parent.parent
KEEPERS = tuple(f"keeper-{number}" for number in range(1, 6))
SERVERS = ("nexus", *KEEPERS)
REVISION = "0123456789abcdef0123456789abcdef01234567"  # of what is in no commit yet
IMAGES = ("nexus", "keeper", "pilot")
SHARES = "/var/lib/shardhold/recovery-shares"
WAIT_S = 120.0  # seconds; a start takes 15
PAUSE_S = 0.1  # before something is looked at again
BY_ITSELF_S = 60.0  # for a stack to become whole before it is taken down for that
COMMAND_S = 300.0
# What stacks of tests have over docker-compose.yml: commands run in their containers too, `up` waits for the first
# check of the nexus, and a busy machine is no reason to give up.
AT_EASE = {"cpus": 1.0}
NEXUS = {**AT_EASE, "healthcheck": {"interval": "3s", "timeout": "60s", "retries": 20}}
UNTIL_TERM = "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, {s.SIGTERM}); s.sigwait({s.SIGTERM})"

_numbers = itertools.count(1)

Status = Mapping[str, Any]
Override = Mapping[str, Any]


class StackError(AssertionError):
    """The stack did not do what was asked, or not in time."""


def docker(*arguments: str, check: bool = True, given: str = "", timeout: float = COMMAND_S) -> str:
    """Run docker and return what it said on standard output; *given* is standard input."""
    return _run(["docker", *arguments], check=check, given=given, timeout=timeout).stdout


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
    _compose(["build", "--quiet"], environ=_environ(tag) | {"REVISION": REVISION}, timeout=1200)
    return time.monotonic() - started


def rebuild_images(tag: str) -> str:
    """Make images that differ from those of *tag* in a label, as the next release would; return their tag."""
    following = _follow(tag)
    for role in IMAGES:
        dockerfile = f"FROM {name_image(role, tag)}\nLABEL org.opencontainers.image.revision={following}\n"
        docker("build", "--quiet", "--tag", name_image(role, following), "-", given=dockerfile)
    return following


def remove_images(tag: str) -> None:
    """Remove what `build_images` made, and what `rebuild_images` made of it."""
    names = [name_image(role, one) for one in (_follow(tag), tag) for role in IMAGES]
    docker("image", "rm", "--force", *names, check=False)


def _follow(tag: str) -> str:
    return f"{tag}-next"


class Stack:
    """One project. Not thread-safe, but for `pilot` and `exec`."""

    def __init__(self, folder: Path, tag: str, *, override: Override | None = None) -> None:
        """Name it, and start nothing. *override* goes over docker-compose.yml; *folder* takes the file it is in."""
        self.project = f"shardhold-test-{os.getpid()}-{next(_numbers)}"
        self.tag = tag
        self._observer = f"{self.project}-observer"
        self._killer = f"{self.project}-killer"
        self._asking: StatusProgram | None = None
        self._files = ["--file", str(ROOT / "docker-compose.yml")]
        self._override = override
        if override is not None:
            self._file = folder / f"{self.project}.json"  # what compose reads as YAML
            self._file.write_text(json.dumps(override))
            self._files += ["--file", str(self._file)]

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

    def change(self, override: Override) -> None:
        """Replace the override that it was made with, and the containers that this changes."""
        if self._override is None:
            raise StackError("a stack without an override stays without one")
        before, self._override = self._override["services"], override
        self._file.write_text(json.dumps(override))
        changed = [name for name, service in override["services"].items() if service != before.get(name)]
        if changed:
            self.compose("up", "--detach", "--no-deps", *changed)

    def down(self) -> None:
        """Take all containers and networks down, as an operator does; volumes stay."""
        self._remove_helpers()
        self.compose("down", "--remove-orphans")

    def remove(self) -> None:
        """Leave nothing of it but its images."""
        self._remove_helpers()
        with contextlib.suppress(StackError):
            self.compose("--profile", "pilot", "unpause", check=False)
            self.compose("--profile", "pilot", "down", "--volumes", "--remove-orphans", "--timeout", "0")

    def _remove_helpers(self) -> None:
        """Remove the containers that are not compose's."""
        if self._asking is not None:
            self._asking.end()
        self._asking = None
        docker("rm", "--force", self._observer, self._killer, check=False)

    def restore(self) -> None:
        """Hand it back whole: ready, with a shard in every keeper. What a failed test has left is taken down for it."""
        try:
            self.wait_whole(timeout=BY_ITSELF_S)
        except StackError:
            self.compose("unpause", check=False)
            self.down()
            self.up()
            self.wait_state("recovering")
            self.unseal()
            self.wait_whole()

    def environ(self) -> dict[str, str]:
        """Return an environment in which `docker compose` is about this project."""
        files = {"COMPOSE_FILE": os.pathsep.join(self._files[1::2])} if self._override is not None else {}
        return _environ(self.tag) | {"COMPOSE_PROJECT_NAME": self.project} | files

    # What is asked

    def container(self, service: str) -> str:
        """Return the id of a service's container, which may have ended."""
        labels = {"project": self.project, "service": service, "oneoff": "False"}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        found = docker("ps", "--all", "--quiet", "--no-trunc", *filters).split()
        if len(found) != 1:
            raise StackError(f"{service} has {len(found)} containers, want one")
        return found[0]

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of a service's container."""
        return self.inspect_all(service)[service]

    def inspect_all(self, *services: str) -> dict[str, dict[str, Any]]:
        """Return what the engine knows of the containers of services, by their names."""
        return dict(zip(services, inspect(*map(self.name_container, services)), strict=True))

    def name_container(self, service: str) -> str:
        """Return the name that compose gives to the first container of a service."""
        return f"{self.project}-{service}-1"

    def is_running(self, *services: str) -> bool:
        """Return whether the containers of all these services run."""
        states = [found["State"] for found in self.inspect_all(*services).values()]
        return all(state["Running"] and not state["Restarting"] for state in states)

    def logs(self, *services: str) -> str:
        """Return what services, all by default, have logged."""
        return self.compose("logs", "--no-color", *services).stdout

    def exec(
        self, service: str, *command: str, check: bool = True, given: str | None = None, timeout: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a container that runs; *given* is standard input."""
        options = ["--interactive"] if given is not None else []
        command = ("docker", "exec", *options, self.name_container(service), *command)
        return _run(command, check=check, given=given, timeout=timeout)

    def python(self, service: str, program: str, *arguments: str) -> str:
        """Run a Python program in a container that runs, and return what it printed."""
        return self.exec(service, "python3", "-c", program, *arguments).stdout

    def pilot(self, *arguments: str, given: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run pilot as the superuser."""
        return self.observe("pilot", *arguments, given=given, check=check)

    def observe(self, *command: str, given: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a container that stays, with the superuser's identity and the recovery shares."""
        self._start_observer()
        return _run(["docker", "exec", "--interactive", self._observer, *command], given=given, check=check)

    def _start_observer(self) -> None:
        if not _runs(self._observer):
            options = ("--detach", "--rm", "--name", self._observer, "--entrypoint", "python3")
            self.compose("run", *options, "pilot", "-c", UNTIL_TERM)

    @contextlib.contextmanager
    def program(self, service: str, *command: str) -> Iterator["subprocess.Popen[str]"]:
        """Run a program in a container that runs, with pipes to its standard input and output."""
        with subprocess.Popen(
            ["docker", "exec", "--interactive", self.name_container(service), *command],
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
        if self._asking is None:
            self._start_observer()
            self._asking = StatusProgram(self._observer)
        try:
            said = self._asking.ask()
        except EOFError:
            self._asking.end()
            self._asking = None
            return {}
        status: Status = json.loads(said) if said else {}
        return status

    # Waiting

    def wait(self, what: str, condition: Callable[[], bool], *, timeout: float = WAIT_S) -> float:
        """Wait until *condition* holds; return the seconds it took.

        Raises:
            StackError: It did not within *timeout* seconds; with the end of all logs.
        """
        started = time.monotonic()
        if not wait_until(condition, seconds=timeout, pause=PAUSE_S):
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
        """Wait until the nexus is ready; return the seconds it took."""
        started = time.monotonic()
        self.wait_state("ready", timeout=timeout)
        return time.monotonic() - started

    def wait_whole(self, *, timeout: float = WAIT_S) -> Status:
        """Wait until the nexus is ready and all keepers hold their shards."""
        return self.wait_status(
            "the nexus is ready, and all keepers hold their shards",
            lambda status: status["state"] == "ready" and all(one["holds_current_set"] for one in status["keepers"]),
            timeout=timeout,
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
        """End the main processes with SIGKILL and not by the engine: its restart policy acts, as after a crash."""
        pids = self._list_pids(services)
        if 0 in pids.values():
            raise StackError(f"want {', '.join(services)} running, got pids {pids}")
        if not _runs(self._killer):
            # With their own uid, in the machine's pid namespace: inside of it, who has pid 1 cannot be killed.
            options = ("--detach", "--rm", "--name", self._killer, "--pid", "host", "--network", "none")
            docker("run", *options, "--entrypoint", "python3", name_image("pilot", self.tag), "-c", UNTIL_TERM)
        program = "import os, sys\nfor pid in sys.argv[1:]: os.kill(int(pid), 9)"
        docker("exec", self._killer, "python3", "-S", "-c", program, *map(str, pids.values()))
        self.wait("the engine notices", lambda: not set(pids.values()) & set(self._list_pids(services).values()))

    def _list_pids(self, services: Sequence[str]) -> dict[str, int]:
        """Return the pids of main processes; of one that does not run it is 0."""
        return {service: found["State"]["Pid"] for service, found in self.inspect_all(*services).items()}

    def kill(self, *services: str) -> None:
        """End containers as `docker compose kill` does: they stay down until they are started."""
        docker("kill", *map(self.name_container, services))

    def start(self, *services: str) -> None:
        """Start containers that there are, in this order and without waiting for anything."""
        docker("start", *map(self.name_container, services))

    def pause(self, *services: str) -> None:
        """Freeze all processes of containers: connections stay open, and nobody answers."""
        for service in services:
            self.wait(f"{service} is paused", functools.partial(self._try_to_pause, service))

    def _try_to_pause(self, service: str) -> bool:
        """Return whether it is paused: a busy engine may fail to freeze a container whose health is being asked."""
        return _run(["docker", "pause", self.name_container(service)], check=False).returncode == 0

    def unpause(self, *services: str) -> None:
        docker("unpause", *map(self.name_container, services))

    def cut(self, service: str, *networks: str) -> None:
        """Cut a service off a network: a keeper, by default, off its own, which connects it with the nexus."""
        for network in networks or (service,):
            docker("network", "disconnect", "--force", f"{self.project}_{network}", self.name_container(service))

    def mend(self, service: str, *networks: str) -> None:
        """Undo `cut`."""
        for network in networks or (service,):
            docker("network", "connect", "--alias", service, f"{self.project}_{network}", self.name_container(service))

    def unseal(self, numbers: Sequence[int] = (1, 2, 3)) -> None:
        """Have custodians submit their shares."""
        for number in numbers:
            self.pilot("unseal", f"@custodian-{number}.txt")


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
    command = ["docker", "compose", *arguments]
    return _run(command, environ=environ, check=check, given=given, timeout=timeout)


def _runs(container: str) -> bool:
    """Return whether a container of this name runs."""
    return bool(docker("ps", "--quiet", "--filter", f"name=^{container}$"))


def _run(
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    check: bool = True,
    given: str | None = None,
    timeout: float = COMMAND_S,
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environ,
        input=given or "",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode != 0:
        raise StackError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done
