"""What follows a secret, on real processes: both kinds of `Cached`, and `pilot run`, through all that a nexus meets.

Each test disturbs the cluster, and then a change has to arrive everywhere. Nothing that follows is started anew, and
the program of `pilot run` is started once for each change.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import shardhold
from pilot.dev.directory import Plan
from pilot.dev.identities import parse_workload
from shardhold import AsyncCached, Cached, Client, WorkloadAPI
from tests.client.bridge import LoopThread
from tests.kit.cluster import Cluster, running
from tests.kit.pilot_run import PilotRun, pilot_run
from tests.kit.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP = "/follow/app"
PATH = "follow/db"
LIFETIME_S = 8.0  # of SVIDs
OPTIONS: Any = {"interval": 0.5, "start_timeout": 60}
ECHO = "echo $NUMBER; exec sleep 600"


class Followers:
    """The three that follow the secret, which counts up from 1."""

    def __init__(self, client: Client, cached: Cached, async_cached: AsyncCached, pilot: PilotRun) -> None:
        self.both = (cached, async_cached)
        self.pilot = pilot
        self._client = client
        self._number = 1

    def check_served(self) -> None:
        """Check that both kinds serve the last number, and that the program was not started again."""
        assert [one.current.fields["number"] for one in self.both] == [str(self._number).encode()] * 2
        assert self._list_seen() == list(range(1, self._number + 1))

    def wait_disturbed(self, kind: type[shardhold.Error], warning: str) -> None:
        """Wait until all three have noticed, and check that they serve."""
        wait_until(lambda: all(isinstance(one.error, kind) for one in self.both), what="both have the error")
        wait_until(lambda: warning in self.pilot.err.read_text(), what="pilot warns")
        self.check_served()

    def follow_change(self) -> None:
        """Write the next number, and wait until all three have it."""
        self._client.put(PATH, {"number": str(self._number + 1)}, timeout=60)
        self._number += 1
        wait_until(
            lambda: all(one.current.fields["number"] == str(self._number).encode() for one in self.both),
            what="both have the change",
        )
        wait_until(lambda: self._list_seen()[-1:] == [self._number], what="the program has the change")
        assert all(one.error is None for one in self.both)
        self.check_served()

    def _list_seen(self) -> list[int]:
        return [int(line) for line in self.pilot.out.read_text().split()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two keepers, threshold two, and a workload that may read and write the secret."""
    plan = Plan(keepers=2, threshold=2, lifetime_s=LIFETIME_S)
    with running(tmp_path_factory.mktemp("followers") / "dev", plan) as cluster:
        cluster.allow(APP, ["follow/**"], ["read", "write"])
        yield cluster


@pytest.fixture(scope="module")
def followers(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followers]:
    """Start all three."""
    identity = WorkloadAPI(f"unix:{cluster.dev.add_identity(parse_workload(APP))}")
    environ = cluster.dev.environ(parse_workload(APP))
    options = ["--env", f"NUMBER={PATH}#number", "--on-change", "restart", "--refresh", "0.5", "--timeout", "2"]
    folder: Path = tmp_path_factory.mktemp("run")
    with LoopThread() as loop, Client(cluster.dev.address, identity, timeout=2) as client:
        client.put(PATH, {"number": "1"}, timeout=60)
        async_client: Any = loop.make_client(cluster.dev.address, identity, timeout=2)
        async_cached = AsyncCached(async_client._client, PATH, **OPTIONS)
        loop.run(async_cached.start())
        with (
            Cached(client, PATH, **OPTIONS) as cached,
            pilot_run(folder, *options, "--", "sh", "-c", ECHO, environ=environ) as pilot,
        ):
            pilot.wait_out("1\n")
            yield Followers(client, cached, async_cached, pilot)
            assert pilot.end() == 143
        loop.run(async_cached.close())
        async_client.close()
    identity.close()


def test_a_nexus_that_is_killed(cluster: Cluster, followers: Followers) -> None:
    """While there is no nexus the last value is served, and the program runs; the next nexus is found."""
    cluster.kill("nexus")
    followers.wait_disturbed(shardhold.UnavailableError, f"{PATH}: not refreshed, the last value stays: ")
    cluster.run("nexus")
    cluster.wait_ready()
    followers.follow_change()


def test_a_seal(cluster: Cluster, followers: Followers) -> None:
    """A seal, which no retry ends, is survived as long as it lasts; after the unseal all goes on."""
    cluster.superuser.seal("followers")
    followers.wait_disturbed(shardhold.SealedError, "sealed")
    cluster.unseal()
    cluster.wait_ready()
    followers.follow_change()


def test_svids_that_rotate(cluster: Cluster, followers: Followers) -> None:
    """No SVID that anybody had at the start is valid any more, and the change arrives."""
    with contextlib.closing(WorkloadAPI(f"unix:{cluster.dev.add_identity(parse_workload(APP))}")) as identity:
        expires_at = identity.current().expires_at
    wait_until(lambda: datetime.now(UTC) > expires_at, what="the SVIDs of before have expired")
    followers.follow_change()
