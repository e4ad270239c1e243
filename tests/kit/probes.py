"""What a cluster says of itself: status, probes, metrics and rollback marks, asked until it is what a test wants."""

import contextlib
import functools
import http.client
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from common.forms.mark import Mark, SignedMark, verify_mark
from keeper.v1.keeper_pb2 import GetMarkRequest
from keeper.v1.keeper_pb2_grpc import KeeperServiceStub
from pilot.commands.status import to_document
from pilot.dev.cluster import DevCluster
from shardhold import IdentityUnavailableError
from tests.kit.errors import ClusterError
from tests.kit.patience import patience, wait_until
from tests.kit.people import People
from tests.kit.waiting import WAIT_S

Status = Mapping[str, Any]


class Probes:
    """Looks at *dev* from outside, where people are to be asked as its superuser."""

    def __init__(self, dev: DevCluster, people: People) -> None:
        self._dev = dev
        self._people = people

    def wait(self, what: str, condition: Callable[[], bool], *, timeout: float = WAIT_S) -> float:
        """Wait until *condition* holds; return the seconds it took.

        Raises:
            ClusterError: It did not within *timeout* seconds.
        """
        started = time.monotonic()
        if not wait_until(condition, seconds=timeout):
            raise ClusterError(f"not within {timeout:g} s: {what}")
        return time.monotonic() - started

    def wait_ready(self, *, timeout: float = WAIT_S) -> float:
        """Wait until the nexus is ready; return the seconds it took."""
        return self.wait("the nexus is ready", self._dev.is_ready, timeout=timeout)

    def status(self) -> Status:
        """Return what `pilot status -o json` says, without pilot."""
        return to_document(self._people.superuser.get_status())

    def wait_status(self, what: str, condition: Callable[[Status], bool], *, timeout: float = WAIT_S) -> Status:
        """Wait for a status that fulfils *condition*, and return it. Asks the nexus itself, many times a second."""
        last: Status = {}

        def look() -> bool:
            nonlocal last
            with contextlib.suppress(grpc.RpcError, IdentityUnavailableError):
                last = to_document(self._people.superuser.get_status())
                return condition(last)
            return False

        try:
            self.wait(what, look, timeout=timeout)
        except ClusterError as exc:
            raise ClusterError(f"{exc}\n\nlast status: {json.dumps(last, indent=2)}") from exc
        return last

    def wait_settled(self) -> str:
        """Wait until the nexus stays in its state unless somebody does something, and return that state."""
        return str(self.wait_status("it has settled", _is_settled)["state"])

    def wait_filled(self, *names: str, timeout: float = WAIT_S) -> Status:
        """Wait until keepers, all by default, hold their shards."""
        wanted = set(names or self._dev.state.plan.servers[1:])
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
        connection = http.client.HTTPConnection("127.0.0.1", self._dev.state.ports[name].http, timeout=patience(2))
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()

    def fetch_mark(self, name: str) -> Mark | None:
        """Ask a keeper, as the nexus, for its rollback mark, and verify it; None when it has none or is not there."""
        keeper = KeeperServiceStub(self._people.reach_keeper(name))
        cluster_id, genesis = self._genesis
        with contextlib.suppress(grpc.RpcError):
            mark = keeper.GetMark(GetMarkRequest(cluster_id=cluster_id), timeout=patience(5)).mark
            signed = SignedMark(mark.mark, mark.signature, tuple(mark.chain))
            return verify_mark(signed, cluster_id=cluster_id, genesis=genesis)
        return None

    def wait_marked(self, *names: str) -> tuple[int, int]:
        """Wait until keepers, all by default, know how far the store of the ready nexus has come; return that.

        A nexus that has just replaced its shard set goes on by itself, until its keepers have dropped the one before.
        """
        self.wait("dead sets are forgotten", self._has_forgotten)
        status = self._people.superuser.get_status()
        position = status.timeline, status.revision
        for name in names or self._dev.state.plan.servers[1:]:
            self.wait(f"{name} marks {position}", functools.partial(self._is_marked, name, position))
        return position

    @functools.cached_property
    def _genesis(self) -> tuple[bytes, bytes]:
        """Cluster id and fingerprint, as they were when the cluster was ready."""
        status = self._people.superuser.get_status()
        assert status.genesis, "the nexus is not ready"
        return status.cluster_id, status.genesis

    def _is_marked(self, name: str, position: tuple[int, int]) -> bool:
        mark = self.fetch_mark(name)
        return mark is not None and mark.position >= position

    def _has_forgotten(self) -> bool:
        """Whether no dead set is left that every keeper could have dropped."""
        superuser = self._people.superuser
        is_complete = all(keeper.reachable for keeper in superuser.get_status().keepers)
        return not is_complete or not superuser.count_dead_sets()


def _is_settled(status: Status) -> bool:
    """Whether it is in the end of its way: recovering is while keepers are still to be asked, or give enough."""
    if status["state"] != "recovering":
        return True
    said = " ".join(status["blocked_by"])
    if (short := re.search(r"(\d+) of (\d+) shards", said)) is None:
        return "older than a rollback mark" in said
    return int(short[1]) < int(short[2]) and " yet" not in said
