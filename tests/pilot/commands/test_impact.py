"""`pilot root impact`."""

import json
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import NotFoundError
from shardhold.v1 import root_pb2 as pb
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.played_nexus import PlayedNexus
from tests.kit.transcript import run_pilot

AT = Timestamp(seconds=1_700_000_000)
TOLD_AT = "2023-11-14T22:13:20Z"
COMMAND = ("root", "impact", "--generation", "3")


def tell(path: str, versions: int, newest: int, *, is_current: bool) -> pb.ExposedSecret:
    """Tell a secret with versions that could be read."""
    return pb.ExposedSecret(path=path, versions=versions, newest_version=newest, written_at=AT, is_current=is_current)


PAGES = [
    pb.ListImpactResponse(secrets=[tell("team/db", 2, 2, is_current=True)], next="team/db"),
    pb.ListImpactResponse(next="team/m"),
    pb.ListImpactResponse(
        state=pb.GENERATION_STATE_COMPROMISED,
        until=AT,
        until_revision=812,
        secrets=[tell("team/old", 1200, 1300, is_current=False), tell("team/web", 1, 1, is_current=True)],
    ),
]


@pytest.fixture
def reach(nexus: PlayedNexus, ca: Authority, tmp_path: Path) -> list[str]:
    """Return the options that lead an auditor to a nexus with three pages."""
    nexus.impact = PAGES
    svid = write_svid(tmp_path / "ann", ca.issue("/shardhold/pilot/role/auditor/ann"))
    return ["--address", nexus.address, "--svid-dir", str(svid)]


def test_every_page_is_in_the_document(nexus: PlayedNexus, reach: list[str]) -> None:
    """An empty one leads on; the last one knows when another root key became current."""
    document = json.loads(run_pilot(*COMMAND, "-o", "json", *reach).out)
    secrets = document.pop("secrets")
    assert document == {
        "generation": 3,
        "state": "compromised",
        "until": TOLD_AT,
        "until_revision": 812,
        "total": {"secrets": 3, "versions": 1203, "current": 2},
    }
    assert [one["path"] for one in secrets] == ["team/db", "team/old", "team/web"]
    assert secrets[0] == {
        "path": "team/db",
        "versions": 2,
        "newest_version": 2,
        "is_current": True,
        "written_at": TOLD_AT,
    }
    assert [request.after for request in nexus.find(pb.ListImpactRequest)] == ["", "team/db", "team/m"]
    assert {request.generation for request in nexus.find(pb.ListImpactRequest)} == {3}


def test_people_see_what_is_to_be_changed(reach: list[str]) -> None:
    """Secrets by path, and the totals at the end."""
    lines = run_pilot(*COMMAND, *reach).out.splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["team/db", "2", "2", TOLD_AT, "yes"],
        ["team/old", "1,200", "1300", TOLD_AT],
        ["team/web", "1", "1", TOLD_AT, "yes"],
    ]
    assert lines[5:] == [
        "",
        "root key       generation 3, compromised",
        f"could be read  1,203 versions of 3 secrets, written before {TOLD_AT} (revision 812)",
        "still current  2 secrets, to be changed at the source",
    ]


def test_only_what_is_still_current(reach: list[str]) -> None:
    """The totals stay those of all."""
    document = json.loads(run_pilot(*COMMAND, "--current", "-o", "json", *reach).out)
    assert [one["path"] for one in document["secrets"]] == ["team/db", "team/web"]
    assert document["total"]["secrets"] == 3


def test_nothing_could_be_read(nexus: PlayedNexus, reach: list[str]) -> None:
    """The root key has no end yet, or its row says nothing."""
    nexus.impact = [pb.ListImpactResponse()]
    document = json.loads(run_pilot(*COMMAND, "-o", "json", *reach).out)
    assert (document["state"], document["until"], document["until_revision"], document["secrets"]) == (None,) * 3 + (
        [],
    )
    assert run_pilot(*COMMAND, *reach).out.splitlines() == [
        "root key       generation 3, whose row does not verify",
        "could be read  0 versions of 0 secrets, which is all: no later root key became current",
        "still current  0 secrets, to be changed at the source",
    ]


def test_a_generation_that_was_never_made(nexus: PlayedNexus, reach: list[str]) -> None:
    """Is not found; a number is wanted."""
    nexus.errors["ListImpact"] = NotFoundError("no generation 3: the last one made is 2")
    told = run_pilot(*COMMAND, *reach)
    assert (told.code, told.out) == (3, "")
    assert "no generation 3" in told.err
    assert run_pilot("root", "impact", *reach).code == 2
    assert run_pilot("root", "impact", "--generation", "0", *reach).code == 2


def test_pages_that_do_not_lead_on(nexus: PlayedNexus, reach: list[str]) -> None:
    """A nexus that goes round in circles is left."""
    nexus.impact = [pb.ListImpactResponse(next="team/m"), pb.ListImpactResponse(next="team/db")]
    told = run_pilot(*COMMAND, *reach)
    assert (told.code, told.err) == (1, "pilot: error: the nexus answers with the same page again\n")
