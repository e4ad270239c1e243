"""Kill -9 at each step of seal, unseal and accept: the state is one of the two neighbours, and the next command works.

A call that is in flight is killed at several distances from its sending, so that some kills come before its commit,
some after it, and some after the answer. What was acknowledged before is there afterwards.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from common.keys.words import encode_share
from pilot.dev.directory import Plan
from tests.cluster.operations import Operations
from tests.kit.cluster import Cluster, running
from tests.kit.patience import at_most, patience, patiently

pytestmark = [pytest.mark.cluster, pytest.mark.destructive, pytest.mark.final]

APP = "/interrupted/app"
Delay = float | None  # seconds from the sending of a call to the kill; None: until it is answered
SEAL_DELAYS: tuple[Delay, ...] = (0.0, 0.002, 0.005, 0.01, 0.02, None)  # its commit comes after some 5 ms
SHARE_DELAYS: tuple[Delay, ...] = (0.0, 0.1, 0.15, 0.2, 0.25, 0.35, None)  # the opener takes some 200 ms
ACCEPT_DELAYS: tuple[Delay, ...] = (0.0, 0.005, 0.01, 0.02, None)


class Acknowledged:
    """A workload that puts now and then, and knows what was acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        cluster.allow(APP, ["interrupted/**"], ["read", "write"])
        self._client = cluster.workload(APP)
        self._count = 0
        self.put()

    def put(self) -> None:
        self._count += 1
        self._client.put(f"interrupted/{self._count}", {"value": b"%d" % self._count})

    def check(self) -> None:
        """Everything is there, and one more can be put."""
        for number in range(1, self._count + 1):
            assert self._client.get(f"interrupted/{number}").fields == {"value": b"%d" % number}
        self.put()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three keepers, threshold two."""
    with running(tmp_path_factory.mktemp("interrupted") / "dev", Plan(keepers=3, threshold=2)) as cluster:
        cluster.wait_filled()
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """A ready and filled cluster. Whatever a test leaves, the next one finds it so, by the way that people have."""
    yield shared
    shared.thaw(*(name for name in shared.dev.names if shared.dev.is_alive(name)))
    shared.dev.start(shared.dev.names)
    shared.bring_back()


@pytest.fixture
def acknowledged(cluster: Cluster) -> Acknowledged:
    return Acknowledged(cluster)


def kill_in_flight(cluster: Cluster, call: Callable[[], object], delay: Delay, *victims: str) -> bool:
    """Send *call*, kill the nexus and others after *delay*, start them; return whether it was answered."""
    sent = threading.Event()

    def send() -> bool:
        sent.set()
        try:
            call()
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return True

    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(send)
        assert patiently(sent.wait, 5)
        if delay is None:
            assert answered.result(timeout=at_most(30))
        else:
            threading.Event().wait(delay)  # not until something: the moment of the kill is what differs
        cluster.kill("nexus", *victims)
        was_answered = answered.result(timeout=at_most(30))
    cluster.run("nexus", *victims)
    return was_answered


@pytest.mark.parametrize("victims", [pytest.param((), id="nexus"), pytest.param(("keeper-2",), id="and a keeper")])
def test_seal(cluster: Cluster, acknowledged: Acknowledged, victims: tuple[str, ...]) -> None:
    """Sealed or ready, nothing between; what was answered is sealed, and a seal can be repeated."""
    for delay in SEAL_DELAYS:
        was_answered = kill_in_flight(cluster, cluster.superuser.seal, delay, *victims)
        state = cluster.wait_settled()
        assert state == "sealed" or (state == "ready" and not was_answered)
        if state == "ready":
            acknowledged.check()
            cluster.wait_filled()
        assert cluster.superuser.seal().keepers_emptied == 3
        assert [cluster.count_sets(name) for name in cluster.keepers] == [0] * 3
        cluster.unseal()
        acknowledged.check()
        cluster.wait_filled()


def test_a_killed_seal_goes_on_to_empty_keepers(cluster: Cluster, acknowledged: Acknowledged) -> None:
    """Committed and killed before a keeper had dropped its set: the restarted nexus empties it, whoever asks for it."""
    cluster.freeze(*cluster.keepers)
    assert cluster.superuser.seal(timeout=patience(2)).keepers_emptied == 0
    cluster.rerun("nexus")
    cluster.thaw(*cluster.keepers)
    cluster.wait("keepers are empty", lambda: [cluster.count_sets(name) for name in cluster.keepers] == [0] * 3)
    assert cluster.status()["state"] == "sealed"
    cluster.unseal()
    acknowledged.check()


STEPS = ("before the start", "started", "one share", "two shares")


@pytest.mark.parametrize("from_state", ["sealed", "recovering"])
def test_unseal_before_the_last_share(cluster: Cluster, acknowledged: Acknowledged, from_state: str) -> None:
    """The state is as before; the session is gone and says so, and a new one takes the same shares."""
    for done in range(len(STEPS)):
        shut(cluster, from_state)
        if done:
            session = cluster.custodian(1).start_unseal()
            for number in range(1, done):
                cluster.custodian(number).submit_words(session.session_id, cluster.words[number - 1])
        cluster.rerun("nexus")
        assert cluster.wait_settled() == from_state, STEPS[done]
        assert not cluster.custodian(1).get_progress().HasField("session")
        cluster.unseal()
        acknowledged.check()
        cluster.wait_filled()


def shut(cluster: Cluster, state: str) -> None:
    """Take a ready cluster to *state*, with keepers that run and hold nothing."""
    if state == "sealed":
        cluster.superuser.seal()
    else:
        cluster.rerun("nexus", *cluster.keepers)
    assert cluster.wait_settled() == state


@pytest.mark.parametrize(
    ("from_state", "victims"),
    [
        pytest.param("sealed", (), id="sealed"),
        pytest.param("sealed", ("keeper-1", "keeper-3"), id="sealed, keepers as well"),
        pytest.param("recovering", (), id="recovering"),
    ],
)
def test_unseal_with_the_last_share_in_flight(
    cluster: Cluster, acknowledged: Acknowledged, from_state: str, victims: tuple[str, ...]
) -> None:
    """An interrupted unseal changed nothing, or is committed: then filled keepers or the same shares bring it back."""
    for delay in SHARE_DELAYS if from_state == "sealed" else SHARE_DELAYS[::2]:
        shut(cluster, from_state)
        session = cluster.custodian(1).start_unseal()
        for number in (1, 2):
            cluster.custodian(number).submit_words(session.session_id, cluster.words[number - 1])
        last = cluster.custodian(3).seal_share(session.session_id, encode_share(cluster.words[2]))
        was_answered = kill_in_flight(cluster, functools.partial(cluster.custodian(3).submit, last), delay, *victims)
        state = cluster.wait_settled()
        assert state in (from_state, "recovering", "ready")
        assert (state, was_answered) != ("sealed", True)
        cluster.bring_back()
        acknowledged.check()


def test_unseal_and_killed_at_once(cluster: Cluster, acknowledged: Acknowledged) -> None:
    """A nexus killed right after the answer, before keepers have shards, is not sealed, and the shares work again."""
    for _ in range(3):
        cluster.superuser.seal()
        cluster.freeze(*cluster.keepers)
        cluster.unseal()
        acknowledged.put()
        cluster.kill("nexus")
        cluster.thaw(*cluster.keepers)
        cluster.run("nexus")
        assert cluster.wait_settled() == "recovering"
        cluster.bring_back()
        acknowledged.check()


def test_accept(cluster: Cluster, acknowledged: Acknowledged) -> None:
    """Blocked as before, or accepted once: never two timelines further, and never ready without an accept."""
    acknowledged.put()
    for delay in ACCEPT_DELAYS:
        Operations(cluster).wait_rest()  # each acceptance has a new root key, and rows to bring under it
        cluster.wait_marked()
        before = cluster.superuser.get_status()
        cluster.kill("nexus")
        older = cluster.store.copy(f"{delay}")
        cluster.run("nexus")
        cluster.wait_ready()
        cluster.workload(APP).put("interrupted/lost", {"value": b"lost"})
        cluster.wait_marked()
        cluster.kill("nexus")
        cluster.store.put_back(older)
        cluster.run("nexus")
        blocked = wait_blocked(cluster)
        assert (blocked["timeline"], blocked["revision"]) == (before.timeline, before.revision)
        accept = functools.partial(cluster.superuser.accept_older_store, before.timeline, before.revision)
        was_answered = kill_in_flight(cluster, accept, delay)
        timeline = cluster.superuser.get_status().timeline
        assert timeline in (before.timeline, before.timeline + 1)
        assert timeline == before.timeline + 1 or not was_answered
        if timeline == before.timeline:
            wait_blocked(cluster)
            assert accept() == before.timeline + 1
        cluster.bring_back()
        assert cluster.status()["timeline"] == before.timeline + 1
        acknowledged.check()


def wait_blocked(cluster: Cluster) -> dict[str, object]:
    """Wait until the nexus has its key and only the mark stands in the way."""
    return dict(
        cluster.wait_status(
            "blocked by a mark",
            lambda status: len(status["blocked_by"]) == 1 and "older than a rollback mark" in status["blocked_by"][0],
        )
    )
