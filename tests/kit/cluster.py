"""A real cluster for tests: the processes of `pilot dev`, and what a test does to them and asks of them.

Every wait has a deadline. What goes wrong is shown together with the end of every log.
"""

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pilot.dev.cluster import DevCluster
from pilot.dev.directory import DevDirectory, Plan
from pilot.dev.spawn import Spawn
from tests.kit.people import People
from tests.kit.person import Person
from tests.kit.ports import find_port_range
from tests.kit.probes import Probes
from tests.kit.processes import ClusterProcesses
from tests.kit.spawn import choose_spawn
from tests.kit.store import ClusterStore

LYING_KEEPER = Path(__file__).with_name("lying_keeper.py")
C = TypeVar("C", bound="Cluster")


class Cluster:
    """One cluster in *root*, a directory of its own. Not thread-safe, but for the clients that it makes.

    Its parts are `processes`, `people`, `store` and `probes`. What tests call most, they call on the cluster itself.
    """

    def __init__(self, root: Path, plan: Plan | None = None, *, spawn: Spawn | None = None) -> None:
        """Prepare it; *spawn* starts its processes, by default as the whole run does."""
        self.directory = DevDirectory(root)
        dev = DevCluster.create(
            self.directory, plan or Plan(), spawn=spawn or choose_spawn(), port_range=find_port_range()
        )
        self.use(dev)

    def use(self, dev: DevCluster) -> None:
        """Make the parts, and have them all go through *dev*, which has started nothing yet."""
        self.dev = dev
        self.processes = processes = ClusterProcesses(dev)
        self.people = people = People(dev)
        self.store = ClusterStore(dev)
        self.probes = probes = Probes(dev, people)

        self.kill, self.stop, self.run, self.rerun = processes.kill, processes.stop, processes.run, processes.rerun
        self.freeze, self.thaw = processes.freeze, processes.thaw
        self.person, self.custodian, self.someone = people.person, people.custodian, people.someone
        self.workload, self.allow, self.pilot, self.unseal = people.workload, people.allow, people.pilot, people.unseal
        self.wait, self.fetch, self.status, self.wait_status = (
            probes.wait,
            probes.fetch,
            probes.status,
            probes.wait_status,
        )
        self.wait_ready, self.wait_filled, self.wait_settled = (
            probes.wait_ready,
            probes.wait_filled,
            probes.wait_settled,
        )
        self.wait_marked, self.fetch_mark, self.count_sets = probes.wait_marked, probes.fetch_mark, probes.count_sets

    @property
    def plan(self) -> Plan:
        return self.dev.state.plan

    @property
    def keepers(self) -> tuple[str, ...]:
        """Names of all keepers."""
        return self.plan.servers[1:]

    @property
    def superuser(self) -> Person:
        """The person who initialised it."""
        return self.people.superuser

    @property
    def words(self) -> list[str]:
        """The recovery words of all custodians, in the order of their numbers."""
        return self.people.words

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
        self.processes.run_by(command)
        self.wait("all live", lambda: all(self.fetch(name, "/livez") == "live\n" for name in self.plan.servers))

    def close(self) -> None:
        """End everything. The directory stays, for whoever looks for what went wrong."""
        self.people.close()
        self.processes.close()

    def restore(self) -> None:
        """Make it whole again: only true processes, all of them running and filled."""
        self.processes.make_true()
        self.wait_ready()
        self.wait_filled()

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
        config = str(self.directory.config(name))
        self.processes.replace(name, [sys.executable, str(LYING_KEEPER), "--config", config, "--lie", lie])
        address = ("127.0.0.1", self.dev.state.ports[name].grpc)
        self.wait(f"{name} ({lie}) listens", lambda: _is_listening(address))

    def bring_back(self) -> None:
        """Make the nexus ready, and the keepers full, by what the documents say: its keepers, else three custodians."""
        if self.wait_settled() != "ready":
            progress = self.superuser.get_progress()
            if progress.HasField("session"):
                self.superuser.reset_unseal(progress.session.session_id)
            self.unseal()
        self.wait_ready()
        self.wait_filled()

    def logs(self, lines: int = 25) -> str:
        """Return the end of every log."""
        return "\n\n".join(self.dev.log_tail(name, lines) for name in self.dev.names)


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


def _is_listening(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False
