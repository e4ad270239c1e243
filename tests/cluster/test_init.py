"""Wrong paths through init: whatever is interrupted, wrong or repeated leaves what the design says."""

import shutil
import sqlite3
from collections.abc import Iterator

import grpc
import pytest

import shardhold
from pilot.dev.directory import Plan
from tests.cluster.conftest import MakeCluster
from tests.cluster.founder import Founder, founding
from tests.kit.cluster import Cluster
from tests.kit.patience import patience
from tests.kit.refusal import Refusal, read_outcome

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def unborn(make_cluster: MakeCluster) -> Cluster:
    """Three keepers and a nexus that run and have no root key."""
    cluster = make_cluster(Plan(keepers=3, threshold=2))
    cluster.start_uninitialised()
    return cluster


@pytest.fixture
def founder(unborn: Cluster) -> Iterator[Founder]:
    """Somebody who may initialise it."""
    with founding(unborn) as superuser:
        yield superuser


def restart(cluster: Cluster) -> None:
    """Kill the nexus and start it, without waiting for more than its answer."""
    cluster.kill("nexus")
    cluster.run("nexus")


def is_serving(cluster: Cluster) -> bool:
    """Whether the superuser's own policy lets it put and get."""
    client = cluster.workload("/shardhold/pilot/role/superuser/dev")
    client.put("init/probe", {"value": b"it serves"})
    return dict(client.get("init/probe").fields) == {"value": b"it serves"}


def test_before_init_there_is_nothing(unborn: Cluster) -> None:
    """An empty store is uninitialised and says so; no secret is accepted."""
    status = unborn.status()
    assert status["state"] == "uninitialised"
    assert status["blocked_by"]
    for unknown in ("cluster_id", "genesis", "generation", "shard_threshold", "set_number", "recovery_threshold"):
        assert status[unknown] is None, unknown
    assert [keeper["name"] for keeper in status["keepers"]] == list(unborn.keepers)
    with pytest.raises(shardhold.WrongStateError):
        unborn.workload("/team/app").put("team/app", {"value": b"too early"})


def test_only_a_superuser_may_initialise(unborn: Cluster) -> None:
    """A workload, a server and people of the other roles are denied, and nothing has begun."""
    others = ["/team/app", "/shardhold/keeper/keeper-9", "/shardhold/nexus/nexus-9"]
    others += [f"/shardhold/pilot/role/{role}/dev" for role in ("operator", "recover", "auditor")]
    for path in others:
        with founding(unborn, path) as somebody, Refusal(PERMISSION_DENIED):
            somebody.begin()
    assert unborn.status()["state"] == "uninitialised"


def test_begun_is_not_initialised(unborn: Cluster, founder: Founder) -> None:
    """After BeginInit the nexus is initialising, names the operation, and accepts no secret."""
    attempt = founder.begin()
    status = unborn.status()
    assert status["state"] == "initialising"
    assert status["cluster_id"] == attempt.cluster_id.hex()
    assert status["operation"]["kind"] == "init"
    assert not [keeper for keeper in status["keepers"] if keeper["holds_current_set"]]
    with pytest.raises(shardhold.WrongStateError):
        unborn.workload("/team/app").put("team/app", {"value": b"too early"})


def test_a_nexus_killed_after_begin_voids_the_attempt(unborn: Cluster, founder: Founder) -> None:
    """The restarted nexus refuses the old answer, and the next attempt has new numbers and the same cluster id."""
    first = founder.begin()
    restart(unborn)
    status = unborn.status()
    assert status["state"] == "initialising"
    assert "void" in status["operation"]["step"]
    with Refusal(FAILED_PRECONDITION):
        founder.confirm(first)
    second = founder.begin()
    assert (second.number, second.voided) == (first.number + 1, first.number)
    assert second.cluster_id == first.cluster_id
    assert second.genesis != first.genesis
    founder.confirm(second)
    unborn.wait_ready()
    status = unborn.wait_filled()
    assert status["genesis"] == second.genesis.hex()
    assert (status["generation"], status["set_number"]) == (2, 2)  # the numbers of the void attempt are burnt


def test_a_pilot_that_went_away_leaves_an_attempt_that_the_next_one_voids(unborn: Cluster, founder: Founder) -> None:
    """After a begin that nobody confirmed `pilot init` starts over, and the first one's answer is worth nothing."""
    lost = founder.begin()
    unborn.dev.init()
    unborn.wait_ready()
    with Refusal(FAILED_PRECONDITION):
        founder.confirm(lost)
    assert is_serving(unborn)


def test_an_init_that_may_be_repeated_sets_older_cards_aside(unborn: Cluster) -> None:
    """`init --if-needed` makes the cluster, once, and keeps the cards that lay there: they may be of another one."""
    shares = unborn.directory.recovery_shares
    shares.mkdir()
    (shares / "custodian-1.txt").write_text("of another cluster")
    for _ in range(2):
        unborn.pilot("init", "--if-needed", "--shares-dir", str(shares))
    assert (shares / "earlier-1" / "custodian-1.txt").read_text() == "of another cluster"
    assert {card.name for card in shares.glob("*.txt")} == {f"custodian-{number}.txt" for number in range(1, 6)}
    unborn.wait_ready()
    assert is_serving(unborn)


def test_a_second_begin_voids_the_first(founder: Founder, unborn: Cluster) -> None:
    """Only the newest attempt can be confirmed."""
    first, second = founder.begin(), founder.begin()
    assert second.voided == first.number
    with Refusal(FAILED_PRECONDITION):
        founder.confirm(first)
    assert founder.confirm(second).keepers_filled >= 2
    assert is_serving(unborn)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda answer: bytes([answer[0] ^ 1]) + answer[1:], id="one flipped bit"),
        pytest.param(lambda answer: bytes(32), id="zeros"),
        pytest.param(lambda answer: answer[:-1], id="too short"),
        pytest.param(lambda answer: b"", id="empty"),
    ],
)
def test_a_wrong_answer_leaves_the_attempt(unborn: Cluster, founder: Founder, spoil: object) -> None:
    """It is refused, nothing is committed, and the right answer still works."""
    assert callable(spoil)
    attempt = founder.begin()
    with Refusal(INVALID_ARGUMENT):
        founder.confirm(attempt, answer=spoil(attempt.answer))
    assert unborn.status()["state"] == "initialising"
    founder.confirm(attempt)
    assert is_serving(unborn)


def test_an_aborted_attempt_is_void(unborn: Cluster, founder: Founder) -> None:
    """AbortInit forgets the key: the answer is refused, an abort again too, and a new attempt goes through."""
    attempt = founder.begin()
    founder.abort(attempt)
    with Refusal(FAILED_PRECONDITION):
        founder.confirm(attempt)
    with Refusal(FAILED_PRECONDITION):
        founder.abort(attempt)
    assert unborn.status()["state"] == "initialising"
    founder.confirm(founder.begin())
    assert is_serving(unborn)


def test_confirm_may_be_sent_again(unborn: Cluster, founder: Founder) -> None:
    """The same answer again gets the same result, another one is refused, and there is one root key."""
    attempt = founder.begin()
    founder.confirm(attempt)
    unborn.wait_filled()
    genesis = unborn.status()["genesis"]
    assert founder.confirm(attempt).keepers_filled == 3
    with Refusal(FAILED_PRECONDITION):
        founder.confirm(attempt, answer=bytes(32))
    status = unborn.status()
    assert (status["genesis"], status["generation"]) == (genesis, 1)


def test_a_nexus_killed_after_confirm_is_initialised(unborn: Cluster, founder: Founder) -> None:
    """It recovers from its keepers; no new attempt may begin."""
    founder.confirm(founder.begin())
    assert is_serving(unborn)
    genesis = unborn.status()["genesis"]
    restart(unborn)
    unborn.wait_ready()
    assert unborn.status()["genesis"] == genesis
    assert is_serving(unborn)
    with Refusal(FAILED_PRECONDITION):
        founder.begin()


def test_confirm_does_not_wait_for_ever_for_keepers(unborn: Cluster, founder: Founder) -> None:
    """A cluster with no keeper in reach is initialised all the same, and keepers are filled as they come."""
    attempt = founder.begin()
    unborn.freeze(*unborn.keepers)
    confirmed = founder.confirm(attempt, timeout=patience(3))
    assert (confirmed.keepers_filled, confirmed.keepers_wanted) == (0, 3)
    assert is_serving(unborn)
    unborn.thaw(*unborn.keepers)
    unborn.wait_filled()
    restart(unborn)
    unborn.wait_ready()
    assert is_serving(unborn)


def test_init_twice(unborn: Cluster) -> None:
    """A second `pilot init` is refused by name, writes no shares, and leaves key and secrets as they are."""
    unborn.dev.init()
    unborn.wait_ready()
    assert is_serving(unborn)
    genesis = unborn.status()["genesis"]
    shares = unborn.directory.root / "more-shares"
    refused = unborn.pilot("init", "--shares-dir", str(shares), "--recovery", "2/3", exit_code=None)
    assert refused.returncode == 1
    assert "pilot: error: " in refused.stderr
    assert "in state ready" in refused.stderr
    assert not list(shares.glob("*"))
    assert unborn.status()["genesis"] == genesis
    assert is_serving(unborn)


def test_a_nexus_killed_before_any_shard_was_sent_never_makes_another_key(unborn: Cluster, founder: Founder) -> None:
    """Committed and lost before a keeper had a shard: it waits for shards and refuses a new init."""
    attempt = founder.begin()
    unborn.kill(*unborn.keepers)
    founder.confirm(attempt, timeout=patience(3))
    restart(unborn)
    unborn.run(*unborn.keepers)
    status = unborn.wait_status(
        "it says what is missing", lambda status: any("0 of 2 shards" in line for line in status["blocked_by"])
    )
    assert status["state"] == "recovering"
    with Refusal(FAILED_PRECONDITION):
        founder.begin()
    assert unborn.status()["state"] == "recovering"


def test_a_keeper_killed_during_init_is_filled_later(unborn: Cluster, founder: Founder) -> None:
    """Init needs the quorum, not every keeper."""
    attempt = founder.begin()
    unborn.kill("keeper-2")
    confirmed = founder.confirm(attempt, timeout=patience(5))
    assert confirmed.keepers_filled == 2
    unborn.run("keeper-2")
    unborn.wait_filled()
    assert is_serving(unborn)


def test_keepers_that_were_all_away_at_begin_are_no_obstacle(unborn: Cluster, founder: Founder) -> None:
    """Begin needs no keeper at all."""
    unborn.kill(*unborn.keepers)
    attempt = founder.begin()
    unborn.run(*unborn.keepers)
    assert founder.confirm(attempt).keepers_filled == 3


def test_a_store_that_is_not_empty_never_gets_a_new_root_key(unborn: Cluster, founder: Founder) -> None:
    """Init is refused and nothing is lost, although somebody made the store say that it was never initialised."""
    founder.confirm(founder.begin())
    assert is_serving(unborn)
    unborn.stop("nexus")
    before = edit_store(unborn, "UPDATE meta SET phase = 'empty', cluster_id = x''")
    unborn.run("nexus")
    with Refusal(FAILED_PRECONDITION) as refusal:
        founder.begin()
    assert "not empty" in refusal.details
    unborn.stop("nexus")
    edit_store(unborn, f"UPDATE meta SET phase = '{before[0]}', cluster_id = x'{before[1].hex()}'")
    unborn.run("nexus")
    unborn.wait_ready()
    assert is_serving(unborn)


def test_a_lost_store_gets_no_new_root_key_while_keepers_remember(unborn: Cluster) -> None:
    """One that is gone is not made anew: init is refused by name, and the copy that is put back serves."""
    unborn.dev.init()
    unborn.wait_filled()
    assert is_serving(unborn)
    cluster_id = unborn.status()["cluster_id"]
    unborn.stop("nexus")
    copy = unborn.store.copy("lost")
    shutil.rmtree(unborn.directory.data)
    unborn.directory.data.mkdir(mode=0o700)
    unborn.run("nexus")
    serving = f"keeper-1, keeper-2, keeper-3 of the keepers serve cluster {cluster_id}"
    unborn.wait_status("it says so", lambda status: any(serving in line for line in status["blocked_by"]))
    assert serving in unborn.fetch("nexus", "/readyz")
    unborn.wait("the log says so", lambda: serving in unborn.directory.log("nexus").read_text())
    words = unborn.words
    refused = unborn.pilot("init", "--if-needed", "--shares-dir", str(unborn.directory.recovery_shares), exit_code=1)
    assert serving in refused.stderr
    assert unborn.words == words
    assert unborn.status()["state"] == "uninitialised"
    unborn.stop("nexus")
    unborn.store.put_back(copy)
    unborn.run("nexus")
    unborn.wait_ready()
    assert is_serving(unborn)


def test_a_lost_store_gets_a_new_root_key_once_keepers_forgot(unborn: Cluster, founder: Founder) -> None:
    """An operator without a copy of the store restarts the keepers and initialises a new cluster."""
    founder.confirm(founder.begin())
    unborn.stop("nexus")
    shutil.rmtree(unborn.directory.data)
    unborn.directory.data.mkdir(mode=0o700)
    unborn.run("nexus")
    with Refusal(FAILED_PRECONDITION) as refusal:
        founder.begin()
    assert "start these keepers anew" in refusal.details
    unborn.rerun(*unborn.keepers)
    unborn.wait("the nexus sees it", lambda: read_outcome(founder.begin).code is grpc.StatusCode.OK)
    founder.confirm(founder.begin())
    unborn.wait_filled()
    assert is_serving(unborn)


def edit_store(cluster: Cluster, statement: str) -> tuple[str, bytes]:
    """Change the store while no nexus runs on it; return phase and cluster id as they were."""
    store = sqlite3.connect(cluster.directory.data / "nexus.db", isolation_level=None)
    try:
        phase, cluster_id = store.execute("SELECT phase, cluster_id FROM meta").fetchone()
        store.execute(statement)
    finally:
        store.close()
    return str(phase), bytes(cluster_id)
