"""A whole development cluster: an identity provider, keepers and a nexus as processes, started and ended together.

Rules: the processes belong to the directory, not to the command that started them; every command finds them again in
the state file. Ports are chosen once. A keeper that ends forgets its shard, so a cluster whose processes have all ended
needs its recovery shares, which lie in the directory: starting it brings back the processes, `unseal` the root key.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pilot.dev.configuration import socket_path, write_config
from pilot.dev.directory import DevDirectory, DevError, Plan, Ports
from pilot.dev.identities import (
    SUPERUSER_PATH,
    Identity,
    add_identities,
    custodian_path,
    is_answering,
    list_people,
    server_identity,
)
from pilot.dev.ports import HOST, RANGE, choose_ports, is_free
from pilot.dev.probes import says_yes, wait_until
from pilot.dev.processes import Processes, ProcessRecord
from pilot.dev.spawn import Spawn, exec_program, run_captured
from pilot.errors import UNAVAILABLE, USAGE
from pilot.terminal.report import read_message

IDENTITY = "identity"  # the provider's name among the processes
START_TIMEOUT_S = 30.0  # a start takes a second; on a busy machine many
STOP_GRACE_S = 10.0  # the nexus drains for 5 s
PORT_ATTEMPTS = 4
LOG_LINES = 15
RECOVERY_THRESHOLD = 3
SUBMITTED = " was submitted before"  # what the nexus says of a share that it has already
RECOVERY = f"{RECOVERY_THRESHOLD}/5"


class DevCluster:
    """One development cluster. Methods change the state file: call them under `directory.locked()`."""

    def __init__(self, directory: DevDirectory, *, spawn: Spawn = exec_program, port_range: range = RANGE) -> None:
        self.directory = directory
        self.state = directory.load()
        self.spawn = spawn
        self.port_range = port_range
        self.processes = Processes(spawn)

    @classmethod
    def create(
        cls, directory: DevDirectory, plan: Plan, *, spawn: Spawn = exec_program, port_range: range = RANGE
    ) -> "DevCluster":
        """Prepare a new cluster in an empty or missing directory.

        Raises:
            DevError: The directory holds something else.
        """
        state = directory.create(plan)
        ports = choose_ports(2 * len(plan.servers), within=port_range)
        state.ports = {name: Ports(grpc=ports.pop(), http=ports.pop()) for name in plan.servers}
        directory.save(state)
        return cls(directory, spawn=spawn, port_range=port_range)

    @property
    def address(self) -> str:
        """host:port of the nexus."""
        return f"{HOST}:{self.state.ports['nexus'].grpc}"

    @property
    def names(self) -> tuple[str, ...]:
        """All processes, in the order of their start."""
        return (IDENTITY, *reversed(self.state.plan.servers))

    def reload(self) -> None:
        """Read the state again, since another command may have changed it."""
        self.state = self.directory.load()

    def is_alive(self, name: str) -> bool:
        record = self.state.processes.get(name)
        return record is not None and self.processes.is_alive(record)

    def check_name(self, name: str) -> None:
        """Raise `DevError` unless *name* is the nexus or a keeper of this cluster."""
        servers = self.state.plan.servers
        if name not in servers:
            raise DevError(f"got {name!r}, want {servers[0]} or {servers[1]} to {servers[-1]}", exit_code=USAGE)

    def start(self, names: Iterable[str] | None = None) -> None:
        """Start the named processes that do not run, by default all, and wait until each answers.

        A port that another program took is replaced, but only when all processes are started: else others rely on it.

        Raises:
            DevError: A process does not start; its last log lines are the hint.
        """
        if not self.is_alive(IDENTITY):
            self._start_provider()
        wanted = self.names if names is None else tuple(names)
        servers = [name for name in wanted if name != IDENTITY and not self.is_alive(name)]
        for attempt in range(PORT_ATTEMPTS):
            for name in servers:
                write_config(self.directory, self.state, name)
                self._launch(name, server_command(self.directory, name))
            servers = self._wait_live(servers, may_move=names is None and attempt < PORT_ATTEMPTS - 1)
            if not servers:
                return

    def stop(self, names: Iterable[str] | None = None) -> list[str]:
        """End processes, by default all: the nexus, then the keepers, then the identity provider.

        Returns the names of those that had to be killed.
        """
        wanted = set(self.names if names is None else names)
        running = {name: record for name, record in self.state.processes.items() if name in wanted}
        killed: set[ProcessRecord] = set()
        for stage in (["nexus"], self.state.plan.servers[1:], [IDENTITY]):
            killed.update(
                self.processes.stop(*(running[name] for name in stage if name in running), grace=STOP_GRACE_S)
            )
        for name in running:
            del self.state.processes[name]
        if not self.state.processes and self.state.sockets:
            self.directory.remove_sockets(Path(self.state.sockets))
            self.state.sockets = ""
        if self.directory.exists:  # it may have been removed by hand
            self.directory.save(self.state)
        return [name for name, record in running.items() if record in killed]

    def kill(self, name: str) -> bool:
        """End one process with SIGKILL; return whether it ran."""
        record = self.state.processes.get(name)
        if record is None:
            return False
        ran = self.processes.kill(record)
        del self.state.processes[name]
        self.directory.save(self.state)
        return ran

    def init(self) -> Path | None:
        """Initialise the cluster with the real command, as the superuser; return where earlier shares went, if any.

        Raises:
            DevError: The command fails; its output is the hint.
        """
        plan, shares = self.state.plan, self.directory.recovery_shares
        aside = self.directory.set_shares_aside()
        command = [
            "init",
            "--shares-dir",
            str(shares),
            "--keeper-threshold",
            str(plan.threshold),
            "--recovery",
            RECOVERY,
        ]
        done = self.run_pilot(command)
        if done.returncode != 0:
            raise DevError("pilot init failed", hint=f"{done.stdout}{done.stderr}".strip())
        return aside

    def unseal(self, needed: int) -> None:
        """Submit the first *needed* recovery shares with the real command, each as its custodian.

        Those that were submitted before, by a command that was interrupted, count.

        Raises:
            DevError: A share is not there, and then none is submitted; or the command fails: its output is the hint.
        """
        cards = {number: self.directory.recovery_share(number) for number in range(1, needed + 1)}
        for card in cards.values():
            if not card.is_file():
                raise DevError(f"{card} is not there")
        for number, card in cards.items():
            path = custodian_path(number)
            self.add_identity(Identity(path=path))
            done = self.run_pilot(["unseal", f"@{card}"], path=path)
            if done.returncode != 0 and SUBMITTED not in done.stderr:
                raise DevError(f"custodian {number} could not unseal", hint=f"{done.stdout}{done.stderr}".strip())

    def run_pilot(self, arguments: Sequence[str], *, path: str = SUPERUSER_PATH) -> subprocess.CompletedProcess[str]:
        """Run pilot against this cluster, with the identity *path*."""
        command = [sys.executable, "-P", "-m", "pilot", *arguments]
        return run_captured(self.spawn, command, environ=self.environ(Identity(path=path)), timeout=120)

    def load_status(self) -> dict[str, Any]:
        """Return what `pilot status -o json` says.

        Raises:
            DevError: The nexus does not answer.
        """
        done = self.run_pilot(["status", "-o", "json"])
        if done.returncode != 0:
            raise DevError("pilot status failed", hint=read_message(done.stderr), exit_code=UNAVAILABLE)
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def add_identity(self, identity: Identity) -> Path:
        """Make the provider hand out an identity, and return its socket once the provider answers there.

        Raises:
            DevError: The provider does not run, or does not hand it out.
        """
        add_identities(self.directory, identity)
        path = Path(self.state.sockets) / identity.socket_name
        if not self.is_alive(IDENTITY):
            raise DevError(
                "the identity provider does not run", hint="start the cluster: pilot dev up", exit_code=UNAVAILABLE
            )
        if not wait_until(lambda: is_answering(path), timeout=START_TIMEOUT_S):
            raise DevError(
                f"the identity provider does not hand out {identity.spiffe_id}", hint=self.log_tail(IDENTITY)
            )
        return path

    def variables(self, identity: Identity) -> dict[str, str]:
        """Return the environment variables that make pilot and the SDK talk to this cluster as *identity*."""
        return {
            "SHARDHOLD_ADDRESS": self.address,
            "SPIFFE_ENDPOINT_SOCKET": f"unix:{Path(self.state.sockets) / identity.socket_name}",
        }

    def environ(self, identity: Identity) -> dict[str, str]:
        """Return the environment for a client of this cluster."""
        return clean_environ() | self.variables(identity)

    def is_ready(self, name: str = "nexus") -> bool:
        """Return whether the server answers /readyz with yes."""
        return self._probe(name, "/readyz")

    def wait_ready(self, *, timeout: float) -> float | None:
        """Wait until the nexus is ready; return the seconds it took, None when *timeout* or the nexus ended first."""
        started = time.monotonic()
        wait_until(lambda: self.is_ready() or not self.is_alive("nexus"), timeout=timeout)
        return time.monotonic() - started if self.is_ready() else None

    def log_tail(self, name: str, lines: int = LOG_LINES) -> str:
        """Return the last lines of a process's log."""
        log = self.directory.log(name)
        text = log.read_text(errors="replace") if log.is_file() else ""
        return "\n".join([f"the end of {log}:", *text.splitlines()[-lines:]])

    def _start_provider(self) -> None:
        if not self.state.sockets or not Path(self.state.sockets).is_dir():
            self.state.sockets = str(self.directory.make_sockets())
            self.directory.save(self.state)
        servers = [server_identity(name) for name in self.state.plan.servers]
        add_identities(self.directory, *servers, *list_people())
        command = [sys.executable, "-P", "-m", "pilot", "dev", "identity", "--dir", str(self.directory.root)]
        self._launch(IDENTITY, [*command, "--lifetime", f"{self.state.plan.lifetime_s:g}"])
        sockets = [socket_path(self.state, name) for name in self.state.plan.servers]
        self._wait(IDENTITY, lambda: all(is_answering(path) for path in sockets))

    def _launch(self, name: str, command: Sequence[str]) -> None:
        self.state.processes[name] = self.processes.start(
            command, log=self.directory.log(name), environ=clean_environ(), directory=self.directory.root
        )
        self.directory.save(self.state)

    def _wait_live(self, names: Sequence[str], *, may_move: bool) -> list[str]:
        """Wait until the servers answer /livez; return those to restart because a port was taken meanwhile.

        The nexus is among them when a keeper moved, since its configuration has the keepers' addresses.
        """
        moved = []
        for name in names:
            try:
                self._wait(name, functools.partial(self._probe, name, "/livez"))
            except DevError:
                ports = self.state.ports[name]
                if not may_move or self.is_alive(name) or (is_free(ports.grpc) and is_free(ports.http)):
                    raise
                taken = {port for pair in self.state.ports.values() for port in (pair.grpc, pair.http)}
                grpc, http_port = choose_ports(2, taken=taken, within=self.port_range)
                self.state.ports[name] = Ports(grpc=grpc, http=http_port)
                moved.append(name)
        if moved and "nexus" not in moved:
            self.stop(["nexus"])
            moved.append("nexus")
        return moved

    def _wait(self, name: str, answers: Callable[[], bool]) -> None:
        if not wait_until(lambda: answers() or not self.is_alive(name), timeout=START_TIMEOUT_S):
            raise DevError(f"{name} does not answer after {START_TIMEOUT_S:g} s", hint=self.log_tail(name))
        if not self.is_alive(name):
            code = self.processes.find_exit_code(self.state.processes[name])
            raise DevError(f"{name} ended with exit code {code}", hint=self.log_tail(name))

    def _probe(self, name: str, path: str) -> bool:
        return says_yes(self.state.ports[name].http, path)


def server_command(directory: DevDirectory, name: str) -> list[str]:
    """Return the command line of the server *name*."""
    program = "nexus" if name == "nexus" else "keeper"
    # -P: no folder in the working directory is taken for a package.
    return [sys.executable, "-P", "-m", program, "--config", str(directory.config(name))]


def clean_environ() -> dict[str, str]:
    """Return this process's environment without Shardhold's own variables, and with no proxy for loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SHARDHOLD_", "SPIFFE_"))}
    return kept | {
        "no_proxy": ",".join(filter(None, (kept.get("no_proxy"), HOST, "localhost"))),
        "PYTHONUNBUFFERED": "1",
    }
