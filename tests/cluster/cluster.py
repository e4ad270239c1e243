"""A real cluster for tests: the processes of `pilot dev`, and what a test does to them and asks of them.

Every wait has a deadline. What goes wrong is shown together with the end of every log.
"""

import contextlib
import functools
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc

from common.forms.mark import Mark, SignedMark, verify_mark
from keeper.v1.keeper_pb2 import GetMarkRequest
from keeper.v1.keeper_pb2_grpc import KeeperServiceStub
from pilot.commands.status import to_document
from pilot.custody.card import read_words
from pilot.dev.cluster import DevCluster
from pilot.dev.configuration import socket_path
from pilot.dev.directory import DevDirectory, Plan
from pilot.dev.identities import SUPERUSER_PATH, TRUST_DOMAIN, Identity, custodian_path, parse_workload
from pilot.dev.probes import wait_until
from pilot.dev.spawn import Spawn
from shardhold import Client, IdentityUnavailableError, WorkloadAPI
from shardhold.channel import PinnedChannel
from shardhold.v1 import policies_pb2
from tests.cluster.person import Person
from tests.kit.ports import find_port_range
from tests.kit.spawn import choose_spawn

WAIT_S = 30.0  # seconds; far more than anything takes, so that a busy machine fails no test
LYING_KEEPER = Path(__file__).with_name("lying_keeper.py")
Status = Mapping[str, Any]
C = TypeVar("C", bound="Cluster")


class ClusterError(AssertionError):
    """The cluster did not do in time what was waited for."""


class Cluster:
    """One cluster in *root*, a directory of its own. Not thread-safe, but for the clients that it makes."""

    def __init__(self, root: Path, plan: Plan | None = None, *, spawn: Spawn | None = None) -> None:
        """Prepare it; *spawn* starts its processes, by default as the whole run does."""
        self.directory = DevDirectory(root)
        self.dev = DevCluster.create(
            self.directory, plan or Plan(), spawn=spawn or choose_spawn(), port_range=find_port_range()
        )
        self._clients: dict[str, Client] = {}
        self._people: dict[str, Person] = {}
        self._keepers: dict[str, KeeperServiceStub] = {}
        self._open = contextlib.ExitStack()  # clients and their identities
        self._replaced: set[str] = set()
        self._frozen: set[str] = set()

    @property
    def plan(self) -> Plan:
        return self.dev.state.plan

    @property
    def keepers(self) -> tuple[str, ...]:
        """Names of all keepers."""
        return self.plan.servers[1:]

    def start(self) -> None:
        """Start everything, initialise, and wait until the nexus is ready."""
        self.start_uninitialised()
        self.dev.init()
        self.wait_ready()

    def start_uninitialised(self) -> None:
        """Start everything and leave it without a root key."""
        self.dev.start()

    def start_by(self, command: Callable[[str], Sequence[str]]) -> None:
        """Start everything, each server by what *command* gives for its name, and leave it without a root key."""
        self.dev.start(())  # the identity provider alone
        for name in reversed(self.plan.servers):
            self.dev.start_instead(name, command(name))
        self.wait("all live", lambda: all(self.fetch(name, "/livez") == "live\n" for name in self.plan.servers))

    def close(self) -> None:
        """End everything. The directory stays, for whoever looks for what went wrong."""
        self._open.close()
        for known in (self._clients, self._people, self._keepers):
            known.clear()
        self.thaw(*(name for name in self._frozen if self.dev.is_alive(name)))
        self.dev.stop()

    def kill(self, *names: str) -> None:
        """Kill processes with SIGKILL; each must have run."""
        for name in names:
            assert self.dev.kill(name), f"{name} did not run"

    def stop(self, *names: str) -> None:
        """End processes as an operator does, with SIGTERM; each must end in time."""
        killed = self.dev.stop(names)
        assert not killed, f"{killed} did not end after SIGTERM"

    def run(self, *names: str) -> None:
        """Start processes that do not run, and wait until each answers."""
        self.dev.start(names)

    def freeze(self, *names: str) -> None:
        """Stop processes with SIGSTOP: their ports stay open and nobody answers."""
        self._send(names, signal.SIGSTOP)
        self._frozen.update(names)

    def thaw(self, *names: str) -> None:
        """Let frozen processes go on."""
        self._send(names, signal.SIGCONT)

    def restore(self) -> None:
        """Make it whole again: only true processes, all of them running and filled."""
        for name in self._replaced:
            self.dev.kill(name)
        self._replaced.clear()
        self.thaw(*(name for name in self.dev.names if self.dev.is_alive(name)))
        self.dev.start(self.dev.names)
        self.wait_ready()
        self.wait_filled()

    def rerun(self, *names: str) -> None:
        """Kill processes with -9 and start them, without waiting for more than their answers."""
        self.kill(*names)
        self.run(*names)

    def restart_nexus(self) -> float:
        """Kill the nexus with -9 and start it; return the seconds from its start until it was ready."""
        self.kill("nexus")
        return self.start_nexus()

    def start_nexus(self) -> float:
        """Start a nexus that does not run; return the seconds until it was ready."""
        started = time.monotonic()
        self.run("nexus")
        self.wait_ready()
        return time.monotonic() - started

    def replace_keeper(self, name: str, lie: str) -> None:
        """Put a keeper of another kind in the place of a true one: its identity, its port, and a *lie* to tell.

        The kinds are those of `lying_keeper.py`.
        """
        if self.dev.is_alive(name):
            self.kill(name)
        command = [sys.executable, str(LYING_KEEPER), "--config", str(self.directory.config(name)), "--lie", lie]
        self.dev.start_instead(name, command)
        self._replaced.add(name)
        address = ("127.0.0.1", self.dev.state.ports[name].grpc)
        self.wait(f"{name} ({lie}) listens", lambda: self._is_listening(address))

    def wait(self, what: str, condition: Callable[[], bool], *, timeout: float = WAIT_S) -> float:
        """Wait until *condition* holds; return the seconds it took.

        Raises:
            ClusterError: It did not within *timeout* seconds.
        """
        started = time.monotonic()
        if not wait_until(condition, timeout=timeout):
            raise ClusterError(f"not within {timeout:g} s: {what}")
        return time.monotonic() - started

    def wait_ready(self, *, timeout: float = WAIT_S) -> float:
        """Wait until the nexus is ready; return the seconds it took."""
        return self.wait("the nexus is ready", self.dev.is_ready, timeout=timeout)

    def status(self) -> Status:
        """Return what `pilot status -o json` says, without pilot."""
        return to_document(self.superuser.get_status())

    def wait_status(self, what: str, condition: Callable[[Status], bool], *, timeout: float = WAIT_S) -> Status:
        """Wait for a status that fulfils *condition*, and return it. Asks the nexus itself, many times a second."""
        last: Status = {}

        def look() -> bool:
            nonlocal last
            with contextlib.suppress(grpc.RpcError, IdentityUnavailableError):
                last = to_document(self.superuser.get_status())
                return condition(last)
            return False

        try:
            self.wait(what, look, timeout=timeout)
        except ClusterError as exc:
            raise ClusterError(f"{exc}\n\nlast status: {json.dumps(last, indent=2)}") from exc
        return last

    def wait_filled(self, *names: str, timeout: float = WAIT_S) -> Status:
        """Wait until keepers, all by default, hold their shards."""
        wanted = set(names or self.keepers)
        # The keepers are asked too: the nexus may not have noticed yet that one of them is a new process.
        return self.wait_status(
            f"{', '.join(sorted(wanted))} hold their shards",
            lambda status: (
                wanted <= {keeper["name"] for keeper in status["keepers"] if keeper["holds_current_set"]}
                and all(self.count_sets(name) for name in wanted)
            ),
            timeout=timeout,
        )

    def count_sets(self, name: str) -> int | None:
        """Return how many shard sets a keeper says that it holds, by its own metric; None when it does not answer."""
        for line in self.fetch(name, "/metrics").splitlines():
            if line.startswith("shardhold_keeper_sets "):
                return int(float(line.split()[1]))
        return None

    def fetch(self, name: str, path: str) -> str:
        """Return what the HTTP server of a process answers, whatever its status; empty when it does not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.dev.state.ports[name].http, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()

    @property
    def words(self) -> list[str]:
        """The recovery words of all custodians, in the order of their numbers."""
        return [read_words(card.read_text()) for card in sorted(self.directory.recovery_shares.iterdir())]

    @property
    def superuser(self) -> Person:
        """The person who initialised it."""
        return self.person("superuser", "dev")

    def person(self, role: str, name: str) -> Person:
        """Return somebody with a role, always the same for the same name."""
        return self.someone(f"/shardhold/pilot/role/{role}/{name}")

    def custodian(self, number: int) -> Person:
        """Return the custodian with this number, who may do nothing but submit a share."""
        return self.someone(custodian_path(number))

    def someone(self, path: str) -> Person:
        """Return whoever has this SPIFFE-ID path."""
        if path not in self._people:
            identity = self._open_identity(parse_workload(path))
            self._people[path] = Person(self._connect(self.dev.address, identity, "nexus.shardhold"), identity)
        return self._people[path]

    def unseal(self, *numbers: int) -> None:
        """Have custodians, the first three by default, submit their shares, each with an SVID of their own."""
        numbers, words = numbers or (1, 2, 3), self.words
        session = self.custodian(numbers[0]).start_unseal()
        for number in numbers:
            self.custodian(number).submit_words(session.session_id, words[number - 1])

    def wait_settled(self) -> str:
        """Wait until the nexus stays in its state unless somebody does something, and return that state."""
        return str(self.wait_status("it has settled", _is_settled)["state"])

    def bring_back(self) -> None:
        """Make the nexus ready, and the keepers full, by what the documents say: its keepers, else three custodians."""
        if self.wait_settled() != "ready":
            progress = self.superuser.get_progress()
            if progress.HasField("session"):
                self.superuser.reset_unseal(progress.session.session_id)
            self.unseal()
        self.wait_ready()
        self.wait_filled()

    def fetch_mark(self, name: str) -> Mark | None:
        """Ask a keeper, as the nexus, for its rollback mark, and verify it; None when it has none or is not there."""
        if name not in self._keepers:
            identity = WorkloadAPI(f"unix:{socket_path(self.dev.state, 'nexus')}")
            self._open.callback(identity.close)
            address = f"127.0.0.1:{self.dev.state.ports[name].grpc}"
            self._keepers[name] = KeeperServiceStub(self._connect(address, identity, f"{name}.keeper.shardhold"))
        progress = self._genesis
        with contextlib.suppress(grpc.RpcError):
            mark = self._keepers[name].GetMark(GetMarkRequest(cluster_id=progress[0]), timeout=5).mark
            signed = SignedMark(mark.mark, mark.signature, tuple(mark.chain))
            return verify_mark(signed, cluster_id=progress[0], genesis=progress[1])
        return None

    def wait_marked(self, *names: str) -> tuple[int, int]:
        """Wait until keepers, all by default, know how far the store of the ready nexus has come; return that."""
        status = self.superuser.get_status()
        position = status.timeline, status.revision
        for name in names or self.keepers:
            self.wait(f"{name} marks {position}", functools.partial(self._is_marked, name, position))
        return position

    def copy_store(self, name: str) -> Path:
        """Copy the store of a nexus that does not run, and return where to."""
        assert not self.dev.is_alive("nexus"), "the nexus runs"
        return Path(shutil.copytree(self.directory.data, self.directory.root / f"copy-{name}"))

    def put_store_back(self, copy: Path) -> None:
        """Put a copy in the place of the store of a nexus that does not run."""
        assert not self.dev.is_alive("nexus"), "the nexus runs"
        shutil.rmtree(self.directory.data)
        shutil.copytree(copy, self.directory.data)

    def workload(self, path: str) -> Client:
        """Return the SDK's client with the identity of a workload, one for each path; it ends with the cluster."""
        if path not in self._clients:
            client = Client(self.dev.address, identity=self._open_identity(parse_workload(path)))
            self._clients[path] = self._open.enter_context(client)
        return self._clients[path]

    def allow(self, path: str, paths: Sequence[str], permissions: Sequence[str]) -> None:
        """Let the workload *path* do something, by a policy of its own."""
        policy = policies_pb2.Policy(
            name=path.strip("/").replace("/", "-"),
            spiffe_ids=[f"spiffe://{TRUST_DOMAIN}{path}"],
            paths=paths,
            permissions=[policies_pb2.Permission.Value(f"PERMISSION_{one.upper()}") for one in permissions],
        )
        self.superuser.apply_policy(policy)

    def list_audit(self, actor: str) -> list[Status]:
        """Return the audit's entries of one caller; those of changes come a moment later than the others."""
        files = sorted(self.directory.audit.glob("*.jsonl"))
        lines = (json.loads(line) for file in files for line in file.read_text().splitlines())
        return [line["entry"] for line in lines if line.get("entry", {}).get("actor") == actor]

    def pilot(
        self, *arguments: str, path: str = SUPERUSER_PATH, exit_code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run pilot and compare its exit code; None takes any."""
        self.dev.add_identity(Identity(path=path))
        done = self.dev.run_pilot(arguments, path=path)
        if exit_code is not None and done.returncode != exit_code:
            raise ClusterError(
                f"pilot {' '.join(arguments)}: exit code {done.returncode}, want {exit_code}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done

    def logs(self, lines: int = 25) -> str:
        """Return the end of every log."""
        return "\n\n".join(self.dev.log_tail(name, lines) for name in self.dev.names)

    def _connect(self, address: str, identity: WorkloadAPI, server_name: str) -> PinnedChannel:
        return self._open.enter_context(PinnedChannel(address, identity, server_name=server_name))

    def _open_identity(self, wanted: Identity) -> WorkloadAPI:
        identity = WorkloadAPI(f"unix:{self.dev.add_identity(wanted)}")
        self._open.callback(identity.close)
        return identity

    @functools.cached_property
    def _genesis(self) -> tuple[bytes, bytes]:
        """Cluster id and fingerprint, as they were when the cluster was ready."""
        status = self.superuser.get_status()
        assert status.genesis, "the nexus is not ready"
        return status.cluster_id, status.genesis

    def _is_marked(self, name: str, position: tuple[int, int]) -> bool:
        mark = self.fetch_mark(name)
        return mark is not None and mark.order == position

    def _send(self, names: Sequence[str], signum: signal.Signals) -> None:
        for name in names:
            assert self.dev.processes.send_signal(self.dev.state.processes[name], signum), f"{name} does not run"

    def _is_listening(self, address: tuple[str, int]) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return True
        return False


def _is_settled(status: Status) -> bool:
    """Whether it is in the end of its way: recovering is while keepers are still to be asked, or give enough."""
    if status["state"] != "recovering":
        return True
    said = " ".join(status["blocked_by"])
    if (short := re.search(r"(\d+) of (\d+) shards", said)) is None:
        return "older than a rollback mark" in said
    return int(short[1]) < int(short[2]) and " yet" not in said


def running(
    root: Path, plan: Plan | None = None, *, spawn: Spawn | None = None
) -> contextlib.AbstractContextManager[Cluster]:
    """A cluster that is ready, and that ends with the block."""
    return started(Cluster(root, plan, spawn=spawn))


@contextlib.contextmanager
def started(cluster: C) -> Iterator[C]:
    """Start a new cluster, initialise it, and end it with the block."""
    try:
        cluster.start()
        yield cluster
    except Exception as exc:
        exc.add_note(cluster.logs())
        raise
    finally:
        cluster.close()
