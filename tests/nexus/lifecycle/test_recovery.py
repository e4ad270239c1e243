"""Recovery: t true shards of n bring the root key back, whatever the other keepers do."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.clock import SystemClock
from nexus.keepers.pool import KeeperPool
from nexus.keys import records
from nexus.keys.opened import Serving
from nexus.lifecycle.recovery import KeeperRecovery
from nexus.store.protocol import Store
from tests.kit.patience import join
from tests.nexus.cluster import FoundCluster, FoundedCluster, add_set, is_wiped, members, tamper
from tests.nexus.conftest import WaitUntil
from tests.nexus.failing_store import FailingStore
from tests.nexus.played_keepers import DEADLINE_S, PlayedKeeper, make_absent


class Run:
    """A recovery on a thread of its own, as in a nexus."""

    def __init__(self, cluster: FoundedCluster, keepers: Sequence[PlayedKeeper], store: Store) -> None:
        self.keepers = {keeper.name: keeper for keeper in keepers}
        clock = SystemClock()
        self.pool = KeeperPool(
            members(len(keepers)),
            lambda member: self.keepers.get(member.name) or make_absent(member.name),
            clock=clock,
            memory=cluster.memory,
        )
        self.recovery = KeeperRecovery(store, self.pool, cluster.book(), cluster.memory, clock)
        self.serving: Serving | None = None
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self.pool.start()
        self._thread.start()

    def wait(self) -> Serving:
        """Return what the root key opened."""
        join(self._thread, DEADLINE_S)
        assert not self._thread.is_alive(), self.recovery.missing
        assert self.serving is not None
        return self.serving

    def stop(self) -> None:
        """End it, whatever it does."""
        self.stopping.set()
        for keeper in self.keepers.values():
            keeper.go.set()
        join(self._thread, DEADLINE_S)
        self.pool.stop()
        assert not self._thread.is_alive()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    @property
    def faults(self) -> dict[str, str]:
        return {seat.member.name: seat.status.fault for seat in self.pool.seats if seat.status.fault}

    def count(self, call: str) -> int:
        return sum(keeper.count(call) for keeper in self.keepers.values())

    def _run(self) -> None:
        self.serving = self.recovery.run(self.stopping)


@contextmanager
def recovering(cluster: FoundedCluster, keepers: Sequence[PlayedKeeper], store: Store | None = None) -> Iterator[Run]:
    """Run a recovery from *keepers*."""
    run = Run(cluster, keepers, store or cluster.store)
    run.start()
    try:
        yield run
    finally:
        run.stop()


@pytest.mark.parametrize(("t", "n"), [(2, 2), (3, 5), (5, 5), (2, 7)])
def test_honest_keepers_bring_the_root_key_back(found: FoundCluster, t: int, n: int) -> None:
    """No shard is sent anywhere before the key is proved."""
    cluster = found(keepers=n, threshold=t)
    with recovering(cluster, cluster.keepers()) as run:
        serving = run.wait()
        assert serving.root_key.view == cluster.root_key
        assert serving.genesis.fingerprint == cluster.genesis
        assert run.count("put_shard") == 0
    serving.release()
    assert is_wiped(cluster.memory)


def test_every_shard_follows_from_the_points_of_a_recovery(found: FoundCluster) -> None:
    """A nexus that recovered has every shard of the set, and can refill any keeper."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers[:2]:
        keeper.is_reachable = False
    with recovering(cluster, keepers) as run:
        shard_set = run.wait().shard_set
    for member in cluster.record.members:
        with cluster.memory.allocate(33) as shard:
            shard_set.derive_shard(member.x, shard)
            assert shard.view == cluster.shards[member.name]


def test_keepers_that_are_down_slow_or_empty_are_not_needed(found: FoundCluster) -> None:
    """Recovery needs no more than t of n keepers."""
    cluster = found(keepers=7, threshold=3)
    keepers = cluster.keepers()
    keepers[0].is_reachable = False
    keepers[1].go.clear()
    keepers[2].restart()
    keepers[3].accepts = False
    with recovering(cluster, keepers) as run:
        assert run.wait().root_key.view == cluster.root_key


def test_liars_are_outvoted_and_named(found: FoundCluster, wait_until: WaitUntil) -> None:
    """Their shards count for nothing; the others are not blamed."""
    cluster = found()
    keepers = cluster.keepers()
    keepers[1].lies = keepers[3].lies = True
    honest = [keepers[0], keepers[2], keepers[4]]
    for keeper in honest[1:]:
        keeper.go.clear()
    with recovering(cluster, keepers) as run:
        wait_until(lambda: len(run.faults) == 2)
        for keeper in honest:
            keeper.go.set()
        assert run.wait().root_key.view == cluster.root_key
        assert sorted(run.faults) == ["keeper-2", "keeper-4"]
        assert all("lies" in fault for fault in run.faults.values())


def test_too_few_wait_and_say_what_is_missing(found: FoundCluster, wait_until: WaitUntil) -> None:
    """In words, keeper by keeper; and a keeper that comes later completes it."""
    cluster = found()
    keepers = cluster.keepers()
    keepers[0].is_reachable = False
    keepers[1].lies = True
    keepers[2].restart()
    with recovering(cluster, keepers) as run:
        wait_until(lambda: "2 of 3 shards of set 1, generation 1" in run.recovery.missing)
        for said in ("keeper-1 does not answer", "keeper-2 lies", "keeper-3 is empty"):
            wait_until(lambda said=said: said in run.recovery.missing)
        assert "keeper-4" not in run.recovery.missing
        assert run.recovery.lacking == 1
        assert run.is_running
        assert run.count("put_shard") == 0
        keepers[0].is_reachable = True
        assert run.wait().root_key.view == cluster.root_key


@pytest.mark.parametrize("gathered", [0, 2])
def test_it_ends_when_the_nexus_stops(found: FoundCluster, wait_until: WaitUntil, gathered: int) -> None:
    """A recovery that is stopped returns no key and wipes what it gathered."""
    cluster = found()
    keepers = cluster.keepers()
    for keeper in keepers[gathered:]:
        keeper.is_reachable = False
    with recovering(cluster, keepers) as run:
        wait_until(lambda: f"{gathered} of 3 shards" in run.recovery.missing)
        run.stop()
    assert run.serving is None
    assert is_wiped(cluster.memory)


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        pytest.param("UPDATE control SET body = x'7b7d' WHERE kind = 'canary'", "canary", id="canary edited"),
        pytest.param("DELETE FROM control WHERE kind = 'keyring'", "keyring", id="keyring removed"),
        pytest.param("DELETE FROM control WHERE kind = 'generation'", "generation/1", id="generation removed"),
        pytest.param("UPDATE control SET digest = zeroblob(32) WHERE kind = 'manifest'", "manifest", id="manifest"),
        pytest.param("UPDATE meta SET timeline = 9", "timeline", id="another timeline"),
    ],
)
def test_a_key_that_fails_its_proof_is_never_handed_out(
    found: FoundCluster, wait_until: WaitUntil, tmp_path: Path, sql: str, why: str
) -> None:
    """It is wiped, the reason said, and the keepers asked again; empty ones get nothing."""
    cluster = found()
    keepers = cluster.keepers()
    keepers[4].restart()
    tamper(tmp_path, sql)
    with recovering(cluster, keepers) as run:
        wait_until(lambda: why in run.recovery.missing and "does not prove" in run.recovery.missing)
        assert run.serving is None
        assert run.is_running
        assert run.count("put_shard") == 0
        assert keepers[4].sets == {}
    assert is_wiped(cluster.memory)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"threshold": 2}, id="a lower threshold"),
        pytest.param({"threshold": 4}, id="a higher threshold"),
        pytest.param({"set_number": 2}, id="another number"),
        pytest.param({"generation": 2}, id="another generation"),
    ],
)
def test_an_edited_set_row_gives_no_key(
    found: FoundCluster, wait_until: WaitUntil, tmp_path: Path, changes: dict[str, int]
) -> None:
    """The manifest does not list it so, and no keeper is asked for it."""
    cluster = found()
    record = cluster.record
    for name, value in changes.items():
        record = records.ShardSetRecord(**{**{f: getattr(record, f) for f in record.__struct_fields__}, name: value})
    tamper(tmp_path, "UPDATE control SET body = ? WHERE kind = 'shard-set'", records.encode(record))
    with recovering(cluster, cluster.keepers()) as run:
        wait_until(lambda: "does not verify: shard-set/1" in run.recovery.missing)
        assert run.serving is None
        assert run.count("put_shard") == 0
    assert is_wiped(cluster.memory)


def test_a_second_current_set_stands_in_nobodys_way(found: FoundCluster, tmp_path: Path) -> None:
    """The row that the manifest does not list is refused alone, whatever it says."""
    cluster = found()
    add_set(tmp_path, cluster, set_number=2)
    with recovering(cluster, cluster.keepers()) as run:
        assert run.wait().shard_set.record == cluster.record


def test_a_store_that_cannot_be_read_is_tried_again(found: FoundCluster, wait_until: WaitUntil) -> None:
    """The recovery goes on for ever; it does not end with its thread."""
    cluster = found()
    store = FailingStore(cluster.store)
    store.cannot_read = True
    with recovering(cluster, cluster.keepers(), store) as run:
        wait_until(lambda: "SQLITE_IOERR" in run.recovery.missing)
        assert run.is_running
        store.cannot_read = False
        assert run.wait().root_key.view == cluster.root_key
