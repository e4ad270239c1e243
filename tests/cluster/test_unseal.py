"""Seal and unseal on real processes: an operator shuts the door, and custodians alone open it again."""

import itertools
import os
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

import shardhold
from common.keys import words as slip39
from common.keys.words import encode_share
from pilot.dev.directory import Plan
from shardhold.v1.recovery_pb2 import UnsealSession
from tests.kit.cluster import Cluster, running
from tests.kit.patience import patience
from tests.kit.person import SealedShare
from tests.kit.refusal import Refusal

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP = "/unseal/app"
PATH, FIELDS = "unseal/secret", {"password": b"\x00\xff correct horse"}

FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three keepers, threshold two, recovery 3 of 5, and a secret."""
    with running(tmp_path_factory.mktemp("unseal") / "dev", Plan(keepers=3, threshold=2)) as cluster:
        cluster.allow(APP, ["unseal/**"], ["read", "write"])
        cluster.workload(APP).put(PATH, FIELDS)
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """A ready and filled cluster. Whatever a test leaves, the next one finds it so, by the way that people have."""
    yield shared
    shared.thaw(*(name for name in shared.dev.names if shared.dev.is_alive(name)))
    shared.dev.start(shared.dev.names)
    shared.bring_back()


@pytest.fixture
def session(cluster: Cluster) -> UnsealSession:
    """A session in a sealed cluster, started by custodian 1, that has the share of custodian 1."""
    cluster.superuser.seal()
    started = cluster.custodian(1).start_unseal()
    cluster.custodian(1).submit_words(started.session_id, cluster.words[0])
    return started


def check_secret(cluster: Cluster) -> None:
    """The workload gets exactly what it put, and may put."""
    app = cluster.workload(APP)
    assert app.get(PATH).fields == FIELDS
    app.put("unseal/later", {"value": b"still writable"})


def check_closed(cluster: Cluster) -> None:
    """Nothing is served, and keepers hold nothing."""
    with pytest.raises(shardhold.SealedError):
        cluster.workload(APP).get(PATH)
    assert [cluster.count_sets(name) for name in cluster.keepers] == [0] * 3


def test_a_seal_empties_keepers_and_outlives_restarts(cluster: Cluster) -> None:
    """Keepers hold nothing, restarts of nexus and keepers change nothing, and three custodians bring it back."""
    check_secret(cluster)
    before = cluster.status()
    sealed = cluster.person("operator", "dev").seal("the test says so")
    assert (sealed.keepers_emptied, sealed.keepers) == (3, 3)
    check_closed(cluster)
    cluster.rerun("nexus")
    assert cluster.status()["state"] == "sealed"
    cluster.rerun("nexus", *cluster.keepers)
    reached = cluster.wait_status(
        "all keepers answer", lambda status: all(keeper["reachable"] for keeper in status["keepers"])
    )
    assert reached["state"] == "sealed"
    assert reached["blocked_by"] == ["the nexus is sealed: custodians have to unseal it"]
    assert not cluster.dev.is_ready()
    assert "sealed" in cluster.fetch("nexus", "/readyz")
    check_closed(cluster)
    cluster.unseal(1, 2, 3)
    assert cluster.dev.is_ready()
    check_secret(cluster)
    after = cluster.wait_filled()
    assert after["set_number"] == before["set_number"] + 1
    unchanged = ("cluster_id", "genesis", "generation", "shard_threshold", "shard_count", "timeline")
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert after["revision"] > before["revision"]
    cluster.restart_nexus()
    check_secret(cluster)


@pytest.mark.parametrize("role", ["recover", "auditor"])
def test_only_superuser_and_operator_seal(cluster: Cluster, role: str) -> None:
    """Nobody else shuts the door."""
    with Refusal(PERMISSION_DENIED, "DENIED"):
        cluster.person(role, "dev").seal()
    check_secret(cluster)


def test_a_seal_may_be_repeated(cluster: Cluster) -> None:
    """A second seal drops again and answers the same."""
    for _ in range(2):
        assert cluster.superuser.seal().keepers_emptied == 3
    check_closed(cluster)


def test_a_keeper_that_is_away_is_emptied_when_it_comes(cluster: Cluster) -> None:
    """The seal answers without it, and drops are repeated, also by a restarted nexus."""
    cluster.freeze("keeper-2")
    sealed = cluster.superuser.seal(timeout=patience(4))
    assert (sealed.keepers_emptied, sealed.keepers) == (2, 3)
    cluster.rerun("nexus")
    cluster.thaw("keeper-2")
    cluster.wait("keeper-2 is empty", lambda: cluster.count_sets("keeper-2") == 0)
    check_closed(cluster)


def test_a_seal_does_not_wait_for_a_keeper_that_was_restarted(cluster: Cluster) -> None:
    """A keeper with another boot id has forgotten what it held: nothing is left to drop."""
    cluster.rerun("keeper-1")
    assert cluster.superuser.seal().keepers_emptied == 3
    check_closed(cluster)


def test_recovering_can_be_sealed(cluster: Cluster) -> None:
    """A nexus that waits for shards stops waiting, and keepers that come later do not bring it back."""
    cluster.freeze("keeper-2", "keeper-3")
    cluster.rerun("nexus")
    cluster.superuser.seal(timeout=patience(2))
    assert cluster.superuser.get_status().state == 4
    cluster.thaw("keeper-2", "keeper-3")
    cluster.wait("keepers are empty", lambda: not any(cluster.count_sets(name) != 0 for name in cluster.keepers))
    assert cluster.status()["state"] == "sealed"
    check_closed(cluster)


def test_nexus_and_all_keepers_killed(cluster: Cluster) -> None:
    """Three shares bring back what every process has forgotten; secrets and policies are there."""
    cluster.kill("nexus", *cluster.keepers)
    cluster.run("nexus", *cluster.keepers)
    status = cluster.wait_status("it lacks shards", lambda status: "0 of 2 shards" in " ".join(status["blocked_by"]))
    assert status["state"] == "recovering"
    with pytest.raises(shardhold.RecoveringError):
        cluster.workload(APP).get(PATH, timeout=patience(1))
    cluster.unseal(5, 2, 4)
    assert cluster.dev.is_ready()
    check_secret(cluster)
    cluster.wait_filled()
    cluster.restart_nexus()
    check_secret(cluster)


def test_ready_waits_for_no_keeper(cluster: Cluster) -> None:
    """An unseal with too few keepers is ready at once; status counts the missing, and those that come are filled."""
    number = cluster.status()["set_number"]
    cluster.kill("nexus", *cluster.keepers)
    cluster.run("nexus", "keeper-1")
    cluster.wait_status("it recovers", lambda status: status["state"] == "recovering")
    began = time.monotonic()
    cluster.unseal()
    assert cluster.dev.is_ready()
    assert time.monotonic() - began < patience(10)  # a call to a keeper may take 2 s, and a second set of them 4
    check_secret(cluster)
    status = cluster.wait_filled("keeper-1")
    assert status["state"] == "ready"
    assert status["set_number"] == number + 1
    assert [keeper["holds_current_set"] for keeper in status["keepers"]] == [True, False, False]
    assert status["keepers_short"] == 1
    assert (
        "until 1 more keeper holds its shard, a restarted nexus needs its custodians" in cluster.pilot("status").stderr
    )
    cluster.run("keeper-2", "keeper-3")
    assert cluster.wait_filled()["keepers_short"] == 0
    assert "hint" not in cluster.pilot("status").stderr
    cluster.restart_nexus()
    check_secret(cluster)


def test_an_unsealed_nexus_without_any_keeper_serves(cluster: Cluster) -> None:
    """No keeper runs at all: shares alone are enough."""
    cluster.superuser.seal()
    cluster.kill(*cluster.keepers)
    cluster.unseal()
    check_secret(cluster)


def test_killed_before_the_threshold_it_takes_shares_again(cluster: Cluster, session: UnsealSession) -> None:
    """The shares that were there are gone with the process; it says what is missing and starts over."""
    cluster.custodian(2).submit_words(session.session_id, cluster.words[1])
    assert cluster.superuser.get_status().unseal.submitted == 2
    cluster.rerun("nexus")
    progress = cluster.custodian(2).get_progress()
    assert not progress.HasField("session")
    assert (progress.recovery_threshold, progress.recovery_shares) == (3, 5)
    with Refusal(FAILED_PRECONDITION, "WRONG_STATE", says="no such session"):
        cluster.custodian(3).submit_words(session.session_id, cluster.words[2])
    cluster.unseal(3, 2, 1)
    check_secret(cluster)


def test_custodians_compare_the_genesis_with_their_cards(cluster: Cluster, session: UnsealSession) -> None:
    """Every custodian is shown the fingerprint that the cards carry, before any word is entered."""
    cards = [card.read_text() for card in cluster.directory.recovery_shares.iterdir()]
    shown = cluster.custodian(4).get_progress()
    assert all(shown.genesis.hex() in "".join(card.split()) for card in cards)
    assert all(shown.cluster_id.hex() in card for card in cards)
    assert (shown.session.submitted, shown.session.needed) == (1, 3)
    assert 0 < shown.session.expires_in.seconds <= 15 * 60


def test_others_see_counts_and_not_who_started(cluster: Cluster, session: UnsealSession) -> None:
    """Its starter, operators and superusers know who started; other custodians and auditors see how far it is."""
    names = {
        who.spiffe_id.rpartition("/")[2]: who.get_progress().session.started_by
        for who in (cluster.custodian(1), cluster.custodian(2), cluster.person("auditor", "dev"), cluster.superuser)
    }
    starter = cluster.custodian(1).spiffe_id
    assert names == {"custodian-1": starter, "custodian-2": "", "dev": starter}
    assert cluster.person("auditor", "dev").get_progress().session.started_by == ""
    assert cluster.status()["unseal"] == {"submitted": 1, "needed": 3}


def test_one_session_at_a_time(cluster: Cluster, session: UnsealSession) -> None:
    """A second start is refused and says what to do; the session and its share stay."""
    with Refusal(FAILED_PRECONDITION, "WRONG_STATE", says="join it, or have it reset"):
        cluster.custodian(2).start_unseal()
    for number in (2, 3):
        accepted = cluster.custodian(number).submit_words(session.session_id, cluster.words[number - 1])
    assert (accepted.submitted, accepted.needed, accepted.ready) == (3, 3, True)
    check_secret(cluster)


def test_a_strangers_reset_is_refused(cluster: Cluster, session: UnsealSession) -> None:
    """The starter of a session and an operator end it; another custodian, an auditor or a workload cannot."""
    strangers = [cluster.custodian(2), cluster.person("auditor", "dev"), cluster.someone(APP)]
    for stranger in strangers:
        with Refusal(PERMISSION_DENIED, "DENIED"):
            stranger.reset_unseal(session.session_id)
    assert cluster.superuser.get_status().unseal.submitted == 1
    assert cluster.custodian(1).reset_unseal(session.session_id) == 1
    with Refusal(FAILED_PRECONDITION, "WRONG_STATE"):
        cluster.custodian(2).submit_words(session.session_id, cluster.words[1])
    second = cluster.custodian(2).start_unseal()
    assert second.session_id != session.session_id
    assert cluster.person("operator", "dev").reset_unseal(second.session_id) == 0


def test_only_custodians_operators_and_superusers_take_part(cluster: Cluster, session: UnsealSession) -> None:
    """An auditor and a workload with the right words are refused before they are read."""
    for outsider in (cluster.person("auditor", "dev"), cluster.someone(APP)):
        with Refusal(PERMISSION_DENIED, "DENIED"):
            outsider.submit(SealedShare(session.session_id, bytes(32), bytes(114)))
    with Refusal(PERMISSION_DENIED, "DENIED"):
        cluster.someone(APP).get_progress()
    assert cluster.superuser.get_status().unseal.submitted == 1


def swap_two(words: str) -> bytes:
    """The wire form of a share with its 7th and 8th word swapped, as no honest pilot would send it."""
    indices = bytearray(encode_share(words))
    indices[12:14], indices[14:16] = indices[14:16], indices[12:14]
    return bytes(indices)


def other_key(threshold: int, number: int) -> bytes:
    """A share of another recovery key: another cluster's, or one of a voided attempt of this one."""
    return encode_share(slip39.split(os.urandom(32), threshold, 5)[number - 1])


NOT_OURS = "no share of this cluster's recovery key"


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        pytest.param(lambda _: other_key(3, 2), (INVALID_ARGUMENT, "WORDS", NOT_OURS), id="of another cluster"),
        pytest.param(lambda _: other_key(2, 2), (INVALID_ARGUMENT, "WORDS", NOT_OURS), id="of a 2-of-5 set"),
        pytest.param(lambda words: swap_two(words[1]), (INVALID_ARGUMENT, "WORDS", NOT_OURS), id="two words swapped"),
        pytest.param(lambda _: bytes(66), (INVALID_ARGUMENT, "WORDS", NOT_OURS), id="one word 33 times"),
        pytest.param(lambda _: b"\xff" * 66, (INVALID_ARGUMENT, "WORDS", NOT_OURS), id="words that do not exist"),
        pytest.param(
            lambda words: encode_share(words[0]),
            (FAILED_PRECONDITION, "WRONG_STATE", "share 1 was submitted before"),
            id="the same share twice",
        ),
        pytest.param(
            lambda words: encode_share(words[1])[:-2], (INVALID_ARGUMENT, "INVALID_ARGUMENT", ""), id="a word too few"
        ),
        pytest.param(
            lambda words: encode_share(words[1]) + b"\0\0",
            (INVALID_ARGUMENT, "INVALID_ARGUMENT", ""),
            id="one too many",
        ),
    ],
)
def test_a_wrong_share_is_refused_and_the_rest_kept(
    cluster: Cluster,
    session: UnsealSession,
    make: Callable[[list[str]], bytes],
    refusal: tuple[grpc.StatusCode, str, str],
) -> None:
    """It is named, nothing of it is said, the session goes on, and three right shares still open."""
    code, reason, says = refusal
    custodian = cluster.custodian(2)
    wrong = make(cluster.words)
    with Refusal(code, reason, says=says) as refused:
        custodian.submit(custodian.seal_share(session.session_id, wrong))
    told = refused.details + cluster.directory.log("nexus").read_text()
    assert not [pair for pair in itertools.pairwise(cluster.words[1].split()) if " ".join(pair) in told]
    assert cluster.superuser.get_status().unseal.submitted == 1
    for number in (2, 3):
        cluster.custodian(number).submit_words(session.session_id, cluster.words[number - 1])
    check_secret(cluster)


def replace_part(right: SealedShare, *, sealed: bytes | None = None, digest: bytes | None = None) -> SealedShare:
    return SealedShare(
        right.session_id,
        right.statement_digest if digest is None else digest,
        right.sealed if sealed is None else sealed,
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(
            lambda right: replace_part(right, sealed=bytes([right.sealed[0] ^ 1]) + right.sealed[1:]),
            "INVALID_ARGUMENT",
            id="a bit flipped in the encapsulated key",
        ),
        pytest.param(
            lambda right: replace_part(right, sealed=right.sealed[:-1] + bytes([right.sealed[-1] ^ 1])),
            "INVALID_ARGUMENT",
            id="a bit flipped in the ciphertext",
        ),
        pytest.param(lambda right: replace_part(right, sealed=b""), "INVALID_ARGUMENT", id="nothing sealed"),
        pytest.param(lambda right: replace_part(right, digest=os.urandom(32)), "STATEMENT", id="no such statement"),
        pytest.param(lambda right: replace_part(right, digest=b""), "STATEMENT", id="no statement"),
    ],
)
def test_a_changed_message_is_refused(
    cluster: Cluster, session: UnsealSession, spoil: Callable[[SealedShare], SealedShare], reason: str
) -> None:
    """What does not open as it was sealed counts for nothing."""
    custodian = cluster.custodian(2)
    right = custodian.seal_share(session.session_id, encode_share(cluster.words[1]))
    with Refusal(FAILED_PRECONDITION if reason == "STATEMENT" else INVALID_ARGUMENT, reason):
        custodian.submit(spoil(right))
    assert cluster.superuser.get_status().unseal.submitted == 1


def test_a_share_is_bound_to_session_statement_and_custodian(cluster: Cluster, session: UnsealSession) -> None:
    """Sealed for another session, sent twice, or by another than it was stated for, it is refused."""
    second, third = cluster.custodian(2), cluster.custodian(3)
    wire = encode_share(cluster.words[1])
    with Refusal(INVALID_ARGUMENT, says="sealed for something else"):
        second.submit(second.seal_share(session.session_id, wire, bound_to=os.urandom(16)))
    with Refusal(FAILED_PRECONDITION, "STATEMENT", says="another caller"):
        third.submit(second.seal_share(session.session_id, wire))
    assert cluster.superuser.get_status().unseal.submitted == 1
    right = second.seal_share(session.session_id, wire)
    assert second.submit(right).submitted == 2
    with Refusal(FAILED_PRECONDITION, "STATEMENT", says="used"):
        second.submit(right)
    assert cluster.superuser.get_status().unseal.submitted == 2


def test_keepers_that_come_back_make_an_unseal_needless(cluster: Cluster) -> None:
    """The nexus is ready by its keepers, and what custodians submitted is forgotten."""
    cluster.freeze("keeper-2", "keeper-3")
    cluster.rerun("nexus")
    session = cluster.custodian(1).start_unseal()
    cluster.custodian(1).submit_words(session.session_id, cluster.words[0])
    cluster.thaw("keeper-2", "keeper-3")
    cluster.wait_ready()
    check_secret(cluster)
    cluster.wait_status("no session is left", lambda status: status["unseal"] is None, timeout=10)
    cluster.superuser.seal()
    assert not cluster.custodian(2).get_progress().HasField("session")
    with Refusal(FAILED_PRECONDITION, "WRONG_STATE"):
        cluster.custodian(2).submit_words(session.session_id, cluster.words[1])


def test_a_seal_ends_a_session(cluster: Cluster) -> None:
    """Sealed from recovering, the shares that were there are forgotten with everything else."""
    cluster.freeze("keeper-2", "keeper-3")
    cluster.rerun("nexus")
    session = cluster.custodian(1).start_unseal()
    cluster.custodian(1).submit_words(session.session_id, cluster.words[0])
    cluster.superuser.seal(timeout=patience(2))
    assert not cluster.custodian(1).get_progress().HasField("session")


def test_a_custodian_who_takes_all_keys_blocks_nobody(cluster: Cluster, session: UnsealSession) -> None:
    """They lose their own keys only; an operator excludes them, and honest custodians bring the cluster back."""
    rogue = cluster.custodian(5)
    honest = cluster.custodian(2).seal_share(session.session_id, encode_share(cluster.words[1]))
    for _ in range(64):
        rogue.ask_statement(session.session_id)
    assert cluster.custodian(2).submit(honest).submitted == 2
    shown = cluster.pilot("unseal", "exclude", rogue.spiffe_id).stdout
    assert shown.splitlines()[-1].split() == ["excluded", rogue.spiffe_id]
    with Refusal(PERMISSION_DENIED, "DENIED", says="excluded from this session"):
        rogue.ask_statement(session.session_id)
    assert list(rogue.get_progress().session.excluded) == [rogue.spiffe_id]
    assert cluster.custodian(3).submit_words(session.session_id, cluster.words[2]).ready
    check_secret(cluster)


def test_a_starter_does_not_reset_what_others_submitted(cluster: Cluster, session: UnsealSession) -> None:
    """After the share of another custodian only an operator or a superuser ends the session."""
    cluster.custodian(2).submit_words(session.session_id, cluster.words[1])
    with Refusal(PERMISSION_DENIED, "DENIED"):
        cluster.custodian(1).reset_unseal(session.session_id)
    assert cluster.superuser.get_status().unseal.submitted == 2
    assert cluster.person("operator", "dev").reset_unseal(session.session_id) == 2
