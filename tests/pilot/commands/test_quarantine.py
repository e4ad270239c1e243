"""`pilot root quarantine`, `history`, `pause` and `resume`."""

import json
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from shardhold.v1 import root_pb2 as pb
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.played_nexus import PlayedNexus
from tests.kit.transcript import run_pilot

AT = Timestamp(seconds=1_700_000_000)
TOLD_AT = "2023-11-14T22:13:20Z"
ALICE = "spiffe://example.test/shardhold/pilot/role/superuser/alice"


def quarantined(path: str, version: int, incarnation: bytes = bytes(16), by: str = "") -> pb.QuarantinedVersion:
    """Tell a version that did not open."""
    return pb.QuarantinedVersion(
        key=pb.VersionKey(path=path, incarnation=incarnation, version=version),
        kek_id=4,
        reason="its wrap does not open",
        found_at=AT,
        abandoned_by=by,
    )


ROWS = [
    quarantined("team/db", 1, by=ALICE),
    quarantined("team/db", 2),
    quarantined("team/db", 2, b"\x01" * 16),
    quarantined("team/web", -7, b""),
]


@pytest.fixture
def reach(nexus: PlayedNexus, ca: Authority, tmp_path: Path) -> list[str]:
    """Return the options that lead a superuser to a nexus with a quarantine."""
    nexus.quarantine = ROWS
    svid = write_svid(tmp_path / "alice", ca.issue("/shardhold/pilot/role/superuser/alice"))
    return ["--address", nexus.address, "--svid-dir", str(svid)]


def test_the_whole_quarantine_is_listed(nexus: PlayedNexus, reach: list[str]) -> None:
    """However many pages it has."""
    documents = json.loads(run_pilot("root", "quarantine", "list", "-o", "json", *reach).out)
    assert [(one["path"], one["version"]) for one in documents] == [(row.key.path, row.key.version) for row in ROWS]
    assert documents[0] == {
        "path": "team/db",
        "incarnation": "00" * 16,
        "version": 1,
        "kek_id": 4,
        "reason": "its wrap does not open",
        "found_at": TOLD_AT,
        "abandoned_by": ALICE,
    }
    assert documents[1]["abandoned_by"] is None
    lines = run_pilot("root", "quarantine", "list", *reach).out.splitlines()
    assert lines[2].split() == ["team/db", "1", "00" * 16, "4", TOLD_AT, "its", "wrap", "does", "not", "open", ALICE]
    assert len(lines) == 6


def test_an_empty_quarantine(nexus: PlayedNexus, reach: list[str]) -> None:
    """Is a list as well."""
    nexus.quarantine = []
    assert json.loads(run_pilot("root", "quarantine", "list", "-o", "json", *reach).out) == []


def test_a_version_is_tried_again(nexus: PlayedNexus, reach: list[str]) -> None:
    """Its incarnation is looked up, since people know a path and a version."""
    told = run_pilot("root", "quarantine", "retry", "team/db", "1", *reach)
    assert (told.code, told.out) == (0, "tried again  version 1 of team/db\n")
    assert nexus.find(pb.RetryQuarantinedRequest) == [pb.RetryQuarantinedRequest(key=ROWS[0].key)]


def test_a_version_is_given_up(nexus: PlayedNexus, reach: list[str]) -> None:
    """With a reason; a damaged row can be named too."""
    given = ("--reason", "its host is gone", "-o", "json")
    told = run_pilot("root", "quarantine", "abandon", *given, *reach, "team/web", "--", "-7")
    assert (told.code, json.loads(told.out)) == (0, {"path": "team/web", "incarnation": "", "version": -7})
    assert nexus.find(pb.AbandonQuarantinedRequest) == [
        pb.AbandonQuarantinedRequest(key=ROWS[3].key, reason="its host is gone")
    ]


def test_two_secrets_of_one_path(nexus: PlayedNexus, reach: list[str]) -> None:
    """None is guessed; with the incarnation it is clear, and nothing is looked up."""
    command = ("root", "quarantine", "retry", "team/db", "2")
    told = run_pilot(*command, *reach)
    assert (told.code, nexus.find(pb.RetryQuarantinedRequest)) == (2, [])
    assert told.err == (
        "pilot: error: version 2 of team/db is in quarantine 2 times\n"
        f"pilot: hint: --incarnation: {'00' * 16}, {'01' * 16}\n"
    )
    nexus.requests.clear()
    assert run_pilot(*command, "--incarnation", "01" * 16, *reach).code == 0
    assert nexus.requests == [pb.RetryQuarantinedRequest(key=ROWS[2].key)]


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        pytest.param(("retry", "team/db", "3"), 3, "version 3 of team/db is not in quarantine", id="another version"),
        pytest.param(("retry", "team", "1"), 3, "version 1 of team is not in quarantine", id="another path"),
        pytest.param(("retry", "team/db", "1", "--incarnation", "xyz"), 2, "--incarnation: want hex", id="no hex"),
        pytest.param(("retry", "team/db", str(2**63)), 2, "should be less than or equal to", id="too large a version"),
        pytest.param(("abandon", "team/db", "1"), 2, "--reason", id="given up for no reason"),
    ],
)
def test_what_is_not_there_is_asked_for_in_vain(
    nexus: PlayedNexus, reach: list[str], command: tuple[str, ...], code: int, message: str
) -> None:
    """Nothing is changed."""
    told = run_pilot("root", "quarantine", *command, *reach)
    assert (told.code, message in told.err) == (code, True), told
    assert not nexus.find(pb.RetryQuarantinedRequest) + nexus.find(pb.AbandonQuarantinedRequest)


def test_a_pause_and_its_end(nexus: PlayedNexus, reach: list[str]) -> None:
    """A pause wants a reason."""
    assert run_pilot("root", "pause", *reach).code == 2
    assert run_pilot("root", "pause", "--reason", "a busy week", *reach).out == "paused  a busy week\n"
    assert run_pilot("root", "resume", *reach).out == "resumed  the keyring job and the schedule\n"
    assert json.loads(run_pilot("root", "resume", "-o", "json", *reach).out) == {"paused": None}
    assert nexus.find(pb.PauseRotationRequest) == [pb.PauseRotationRequest(reason="a busy week")]


def test_the_history(nexus: PlayedNexus, reach: list[str]) -> None:
    """Every generation with its fingerprint, and what was unusual."""
    nexus.history = [
        pb.Generation(generation=1, state=pb.GENERATION_STATE_COMPROMISED, kcv=bytes(32), found_at=AT, suspected_at=AT),
        pb.Generation(
            generation=2,
            state=pb.GENERATION_STATE_ACTIVE,
            kcv=b"\x01" * 32,
            created_at=AT,
            activated_at=AT,
            actor=ALICE,
            reason="lost",
            is_emergency=True,
            without_backup="none yet",
        ),
        pb.Generation(generation=3, state=77),  # type: ignore[arg-type]
    ]
    lines = run_pilot("root", "history", *reach).out.splitlines()
    assert lines[2].split() == (
        f"1 compromised {'00' * 8} found compromised {TOLD_AT}; suspected since {TOLD_AT}".split()
    )
    assert lines[3].split() == (
        f"2 active {'01' * 8} {TOLD_AT} {TOLD_AT} {ALICE} lost made in an emergency; without a backup: none yet".split()
    )
    documents = json.loads(run_pilot("root", "history", "-o", "json", *reach).out)
    assert documents[1] == {
        "generation": 2,
        "state": "active",
        "kcv": "01" * 32,
        "created_at": TOLD_AT,
        "activated_at": TOLD_AT,
        "retired_at": None,
        "suspected_at": None,
        "found_at": None,
        "actor": ALICE,
        "reason": "lost",
        "is_emergency": True,
        "without_backup": "none yet",
    }
    assert documents[2]["state"] == "unknown"
