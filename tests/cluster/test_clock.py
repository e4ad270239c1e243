"""A nexus whose wall clock jumps an hour either way: nothing breaks, it says so, and all works when it is right again.

Certificates look expired, or not valid yet, for as long as the clock is wrong, so that most calls fail meanwhile. What
expires in memory goes by the monotonic clock, which does not jump.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardhold
from common.keys.words import encode_share
from pilot.dev.cluster import server_command
from pilot.dev.directory import Plan
from pilot.dev.identities import SUPERUSER_PATH, Identity
from tests.kit.cluster import Cluster, started
from tests.kit.fake_clock import FakeClock
from tests.kit.patience import at_most, patience

pytestmark = [pytest.mark.cluster, pytest.mark.destructive, pytest.mark.needs("faketime")]

APP = "/clock/app"
PATH, FIELDS = "clock/secret", {"value": b"what time is it"}
HOUR = 3600  # seconds
JUMPS = pytest.mark.parametrize("jump", [pytest.param(HOUR, id="ahead"), pytest.param(-HOUR, id="behind")])


class ClockedCluster(Cluster):
    """A cluster whose nexus goes by a clock that the test sets."""

    def __init__(self, root: Path, plan: Plan) -> None:
        super().__init__(root, plan)
        self.clock = FakeClock(self.directory.root / "clock")

    def start_clocked(self) -> None:
        """Start the nexus by the clock, as it is now, without waiting for more than its first log line."""
        told = len(self.list_events("listening"))
        self.processes.start_instead("nexus", self.clock.wrap(server_command(self.directory, "nexus")))
        self.wait("the nexus listens", lambda: len(self.list_events("listening")) > told)

    def jump(self, seconds: int) -> None:
        """Set the clock, and wait until the nexus has said that it was set."""
        told = len(self.list_events("clock was set"))
        self.clock.set(seconds)
        self.wait("it says so", lambda: len(self.list_events("clock was set")) > told)
        assert self.list_events("clock was set")[-1]["level"] == "warning"

    def list_events(self, event: str) -> list[dict[str, object]]:
        """Return what the nexus logged under a name that begins so."""
        lines = self.directory.log("nexus").read_text().splitlines()
        return [line for line in map(json.loads, lines) if str(line["event"]).startswith(event)]


@pytest.fixture(scope="module")
def plan() -> Plan:
    """SVIDs that outlive the test; the jumps are longer than they live."""
    return Plan(keepers=3, threshold=2)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Iterator[ClockedCluster]:
    """Three keepers, threshold two, and a secret."""
    with started(ClockedCluster(tmp_path_factory.mktemp("clock") / "dev", plan)) as cluster:
        cluster.allow(APP, ["clock/**"], ["read", "write"])
        cluster.workload(APP).put(PATH, FIELDS)
        cluster.wait_filled()
        yield cluster


@pytest.fixture
def cluster(shared: ClockedCluster) -> Iterator[ClockedCluster]:
    """A ready cluster whose nexus runs by a clock of its own, which is right; a test leaves its keepers as it likes."""
    shared.kill("nexus")
    shared.start_clocked()
    shared.wait_ready()
    yield shared
    shared.clock.set(0)
    shared.dev.kill("nexus")
    shared.thaw(*(name for name in shared.keepers if shared.dev.is_alive(name)))
    shared.dev.start(shared.dev.names)
    shared.bring_back()


def check_all(cluster: ClockedCluster) -> None:
    """With the right clock everything works: reads, writes, keepers that are filled, a recovery."""
    pid = cluster.dev.state.processes["nexus"].pid
    cluster.wait("the secret is served again", lambda: is_served(cluster))
    cluster.workload(APP).put("clock/later", {"value": b"after the jump"})
    assert cluster.dev.state.processes["nexus"].pid == pid, "it had to be started again"
    assert cluster.dev.is_alive("nexus")
    cluster.rerun("keeper-2")
    cluster.wait_filled()
    cluster.restart_nexus()
    assert cluster.workload(APP).get(PATH).fields == FIELDS


def is_served(cluster: ClockedCluster) -> bool:
    try:
        return cluster.workload(APP).get(PATH, timeout=1).fields == FIELDS
    except shardhold.Error:
        return False


@JUMPS
def test_while_ready(cluster: ClockedCluster, jump: int) -> None:
    """A jump while it serves, and back: the process and its key are the same afterwards."""
    cluster.jump(jump)
    assert 'shardhold_nexus_state{state="ready"} 1.0' in cluster.fetch("nexus", "/metrics")
    assert cluster.dev.is_ready() == (jump < 0), "what looks expired serves nobody"
    cluster.jump(0)
    check_all(cluster)


@pytest.mark.parametrize("jump", [pytest.param(60, id="ahead"), pytest.param(-8, id="behind")])
def test_a_small_jump_is_not_felt(cluster: ClockedCluster, jump: int) -> None:
    """Within the life of the certificates, which begin 10 s before they are issued, no call fails."""
    cluster.jump(jump)
    for _ in range(20):
        assert cluster.workload(APP).get(PATH).fields == FIELDS
    cluster.jump(0)
    for _ in range(20):
        assert cluster.workload(APP).get(PATH).fields == FIELDS


@JUMPS
def test_during_a_recovery(cluster: ClockedCluster, jump: int) -> None:
    """Short of one shard when the clock jumps, it goes on asking, and is ready soon after the clock is right."""
    cluster.freeze("keeper-2", "keeper-3")
    cluster.kill("nexus")
    cluster.start_clocked()
    cluster.wait_status("one shard is there", lambda status: "1 of 2 shards" in " ".join(status["blocked_by"]))
    cluster.jump(jump)
    cluster.thaw("keeper-2", "keeper-3")
    cluster.jump(0)
    cluster.wait_ready()
    check_all(cluster)


@JUMPS
def test_started_with_a_wrong_clock(cluster: ClockedCluster, jump: int) -> None:
    """It starts, or waits for an SVID that is valid by its clock, says why, and is ready when the clock is right."""
    cluster.kill("nexus")
    cluster.clock.set(jump)
    before = len(cluster.directory.log("nexus").read_text())
    cluster.processes.start_instead("nexus", cluster.clock.wrap(server_command(cluster.directory, "nexus")))

    def read_new() -> str:
        return cluster.directory.log("nexus").read_text()[before:]

    reason = " expired at " if jump > 0 else "svid is not valid yet: check the clock"
    cluster.wait(f"it says {reason!r}", lambda: reason in read_new())
    cluster.clock.set(0)
    cluster.wait_ready()
    assert cluster.dev.is_alive("nexus")
    check_all(cluster)


@JUMPS
def test_during_an_unseal(cluster: ClockedCluster, jump: int) -> None:
    """Session, share and statement outlive the jump: their time goes by the monotonic clock."""
    cluster.superuser.seal()
    session = cluster.custodian(1).start_unseal()
    cluster.custodian(1).submit_words(session.session_id, cluster.words[0])
    stated = cluster.custodian(2).seal_share(session.session_id, encode_share(cluster.words[1]))
    cluster.jump(jump)
    cluster.jump(0)
    progress = cluster.custodian(1).get_progress()
    assert progress.session.session_id == session.session_id
    assert progress.session.submitted == 1
    assert progress.session.expires_in.seconds > 13 * 60
    assert cluster.custodian(2).submit(stated).submitted == 2
    assert cluster.custodian(3).submit_words(session.session_id, cluster.words[2]).ready
    check_all(cluster)


@pytest.mark.parametrize("plan", [Plan(keepers=3, threshold=2, lifetime_s=5.0)], ids=["SVIDs of 5 s"], scope="module")
@JUMPS
def test_during_svid_rotation(cluster: ClockedCluster, jump: int) -> None:
    """SVIDs that come while the clock is wrong look expired or not valid yet; they are taken when it is right."""
    log = cluster.directory.log("nexus")
    told = log.read_text().count("keeper fault")
    cluster.jump(jump)
    if jump > 0:
        cluster.wait("keepers are lost", lambda: log.read_text().count("keeper fault") > told)
    cluster.jump(0)
    check_all(cluster)


@JUMPS
def test_a_seal_with_a_wrong_clock_is_made_good(cluster: ClockedCluster, jump: int) -> None:
    """Keepers that could not be told to drop their sets while the clock was wrong are told when it is right."""
    cluster.superuser.seal(timeout=patience(3))
    cluster.jump(jump)
    cluster.rerun(*cluster.keepers)
    cluster.jump(0)
    assert cluster.status()["state"] == "sealed"
    assert [cluster.count_sets(name) for name in cluster.keepers] == [0] * 3
    cluster.unseal()
    check_all(cluster)


@JUMPS
def test_pilot_with_a_wrong_clock_names_it(cluster: ClockedCluster, jump: int) -> None:
    """The clock of the person's machine is off: pilot fails, and its hint says where to look."""
    clock = FakeClock(cluster.directory.root / "clock-of-pilot")
    clock.set(jump)
    environ = cluster.dev.environ(Identity(path=SUPERUSER_PATH)) | clock.variables
    command = [sys.executable, "-P", "-m", "pilot", "--timeout", "5", "status"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=at_most(60), check=False)
    assert done.returncode != 0
    assert "by this machine's clock it is" in done.stderr
    clock.set(0)
    assert subprocess.run(command, env=environ, capture_output=True, timeout=at_most(60), check=False).returncode == 0
