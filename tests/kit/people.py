"""Those who call a cluster: people and workloads, each with an SVID of their own."""

import contextlib
import subprocess
from collections.abc import Sequence

from pilot.custody.card import read_words
from pilot.dev.cluster import DevCluster
from pilot.dev.configuration import socket_path
from pilot.dev.identities import SUPERUSER_PATH, TRUST_DOMAIN, Identity, custodian_path, parse_workload
from shardhold import Client, WorkloadAPI
from shardhold.channel import PinnedChannel
from shardhold.v1 import policies_pb2
from tests.kit.errors import ClusterError
from tests.kit.person import Person


class People:
    """Callers of *dev*, each made when it is first asked for, and kept until `close`."""

    def __init__(self, dev: DevCluster) -> None:
        self._dev = dev
        self._clients: dict[str, Client] = {}
        self._people: dict[str, Person] = {}
        self._keepers: dict[str, PinnedChannel] = {}  # by address
        self._open = contextlib.ExitStack()  # clients and their identities

    def close(self) -> None:
        """Close all clients and forget them."""
        self._open.close()
        for known in (self._clients, self._people, self._keepers):
            known.clear()

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
            self._people[path] = Person(self._connect(self._dev.address, identity, "nexus.shardhold"), identity)
        return self._people[path]

    def workload(self, path: str) -> Client:
        """Return the SDK's client with the identity of a workload, one for each path; it ends with the cluster."""
        if path not in self._clients:
            client = Client(self._dev.address, identity=self._open_identity(parse_workload(path)))
            self._clients[path] = self._open.enter_context(client)
        return self._clients[path]

    def reach_keeper(self, name: str) -> PinnedChannel:
        """Return a channel to a keeper, with the identity of the nexus."""
        address = f"127.0.0.1:{self._dev.state.ports[name].grpc}"
        if address not in self._keepers:
            identity = WorkloadAPI(f"unix:{socket_path(self._dev.state, 'nexus')}")
            self._open.callback(identity.close)
            self._keepers[address] = self._connect(address, identity, f"{name}.keeper.shardhold")
        return self._keepers[address]

    @property
    def words(self) -> list[str]:
        """The recovery words of all custodians, in the order of their numbers."""
        return [read_words(card.read_text()) for card in sorted(self._dev.directory.recovery_shares.iterdir())]

    def unseal(self, *numbers: int) -> None:
        """Have custodians, the first three by default, submit their shares, each with an SVID of their own."""
        numbers, words = numbers or (1, 2, 3), self.words
        session = self.custodian(numbers[0]).start_unseal()
        for number in numbers:
            self.custodian(number).submit_words(session.session_id, words[number - 1])

    def allow(self, path: str, paths: Sequence[str], permissions: Sequence[str]) -> None:
        """Let the workload *path* do something, by a policy of its own."""
        policy = policies_pb2.Policy(
            name=path.strip("/").replace("/", "-"),
            spiffe_ids=[f"spiffe://{TRUST_DOMAIN}{path}"],
            paths=paths,
            permissions=[policies_pb2.Permission.Value(f"PERMISSION_{one.upper()}") for one in permissions],
        )
        self.superuser.apply_policy(policy)

    def pilot(
        self, *arguments: str, path: str = SUPERUSER_PATH, exit_code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run pilot and compare its exit code; None takes any."""
        self._dev.add_identity(Identity(path=path))
        done = self._dev.run_pilot(arguments, path=path)
        if exit_code is not None and done.returncode != exit_code:
            raise ClusterError(
                f"pilot {' '.join(arguments)}: exit code {done.returncode}, want {exit_code}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done

    def _connect(self, address: str, identity: WorkloadAPI, server_name: str) -> PinnedChannel:
        return self._open.enter_context(PinnedChannel(address, identity, server_name=server_name))

    def _open_identity(self, wanted: Identity) -> WorkloadAPI:
        identity = WorkloadAPI(f"unix:{self._dev.add_identity(wanted)}")
        self._open.callback(identity.close)
        return identity
