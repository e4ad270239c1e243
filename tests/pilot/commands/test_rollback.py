"""`pilot accept-older-store`: it says what is lost, from which revision to which, and takes only the exact words."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import ConflictError
from pilot.commands.accept_older_store import check, describe_loss
from pilot.errors import PilotError
from shardhold.v1 import cluster_pb2
from tests.kit.played_nexus import CLUSTER_ID, PlayedNexus
from tests.kit.transcript import run_at_terminal, run_pilot

MADE_AT = Timestamp(seconds=int(datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp()))
STATUS = cluster_pb2.GetStatusResponse(
    state=cluster_pb2.STATE_RECOVERING,
    cluster_id=CLUSTER_ID,
    timeline=1,
    revision=17,
    newer_mark=cluster_pb2.NewerMark(timeline=1, revision=42, made_at=MADE_AT, keepers=["keeper-1", "keeper-4"]),
)
COMMAND = ["accept-older-store", "--timeline", "1", "--revision", "17"]
QUESTION = "type: lose everything after 17: "


@pytest.fixture
def reach(nexus: PlayedNexus, svid_dir: Path) -> list[str]:
    """Return the options that lead to a nexus that a newer mark blocks."""
    nexus.status.CopyFrom(STATUS)
    return ["--address", nexus.address, "--svid-dir", str(svid_dir)]


def test_confirmed_at_a_terminal(nexus: PlayedNexus, reach: list[str]) -> None:
    """Pilot shows what is lost, since when, and who remembers it; then the timeline that began."""
    told = run_at_terminal(*COMMAND, *reach, script=[(QUESTION, "lose everything after 17")])
    assert told.code == 0, told
    for part in ("revisions 18 to 42 (25 of them)", "2026-02-03T04:05:06Z", "keeper-1, keeper-4", CLUSTER_ID.hex()):
        assert part in told.err
    assert told.out == "accepted  timeline 1, revision 17\ntimeline  2 began\n"
    assert nexus.find(cluster_pb2.AcceptOlderStoreRequest) == [
        cluster_pb2.AcceptOlderStoreRequest(timeline=1, revision=17)
    ]


@pytest.mark.parametrize("answer", ["", "yes", "17", "lose everything after 18"])
def test_not_confirmed(nexus: PlayedNexus, reach: list[str], answer: str) -> None:
    """Any answer but the exact words accepts nothing."""
    told = run_at_terminal(*COMMAND, *reach, script=[(QUESTION, answer)])
    assert (told.code, "not confirmed: nothing was accepted" in told.err) == (1, True)
    assert not nexus.find(cluster_pb2.AcceptOlderStoreRequest)


def test_without_a_terminal(nexus: PlayedNexus, reach: list[str]) -> None:
    """Without a terminal only --yes accepts the store."""
    assert run_pilot(*COMMAND, *reach).code == 2
    assert not nexus.find(cluster_pb2.AcceptOlderStoreRequest)
    assert json.loads(run_pilot(*COMMAND, "--yes", "-o", "json", *reach).out) == {"timeline": 2}


def test_the_store_moved_meanwhile(nexus: PlayedNexus, reach: list[str]) -> None:
    """The nexus compares once more, and pilot reports its refusal."""
    nexus.errors["AcceptOlderStore"] = ConflictError("the store is at timeline 1, revision 19; got 1 and 17")
    told = run_pilot(*COMMAND, "--yes", *reach)
    assert (told.code, "the store is at timeline 1, revision 19" in told.err) == (1, True)


def test_which_store_has_to_be_named() -> None:
    """Timeline and revision are required: they have no default."""
    for left_out in (COMMAND[:3], [COMMAND[0], *COMMAND[3:]]):
        assert run_pilot(*left_out).code == 2


@pytest.mark.parametrize(
    ("status", "timeline", "revision", "said"),
    [
        pytest.param(STATUS, 1, 16, "is at timeline 1, revision 17; got 1 and 16", id="another revision"),
        pytest.param(STATUS, 2, 17, "is at timeline 1, revision 17; got 2 and 17", id="another timeline"),
        pytest.param(STATUS, 1, 42, "revision 17; got 1 and 42", id="the mark's revision instead of the store's"),
        pytest.param(
            cluster_pb2.GetStatusResponse(timeline=1, revision=17), 1, 17, "there is nothing to accept", id="no mark"
        ),
    ],
)
def test_only_what_was_looked_at_is_accepted(
    status: cluster_pb2.GetStatusResponse, timeline: int, revision: int, said: str
) -> None:
    """When the store is another one or no mark is newer, pilot refuses before anyone is asked."""
    with pytest.raises(PilotError, match=said):
        check(status, timeline=timeline, revision=revision)


def test_loss_across_timelines() -> None:
    """When the mark is of a later timeline, pilot does not count the revisions."""
    status = cluster_pb2.GetStatusResponse()
    status.CopyFrom(STATUS)
    status.newer_mark.timeline, status.newer_mark.revision = 3, 5
    said = describe_loss(status)
    assert "what came after revision 17, up to timeline 3, revision 5" in said
    assert "revisions" not in said


def test_names_of_keepers_cannot_steer_the_terminal() -> None:
    """Control characters in keepers' names, which come from the database, are replaced."""
    status = cluster_pb2.GetStatusResponse()
    status.CopyFrom(STATUS)
    status.newer_mark.keepers[:] = ["k\x1b[2J"]
    assert "\x1b" not in describe_loss(status)


def test_a_loss_that_no_revision_shows_is_told_in_words() -> None:
    """Whoever writes the database can raise the revision of what was put back: a negative count says nothing."""
    status = cluster_pb2.GetStatusResponse()
    status.CopyFrom(STATUS)
    status.newer_mark.revision = 17
    said = describe_loss(status)
    assert "what its policies, settings or seal had come to of timeline 1" in said
    assert "revisions" not in said
