"""`pilot root rotate`: begun, awaited until rows are under the new KEK, and what is told on the way."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import SealedError
from pilot.commands.rotate import parse_moment
from pilot.errors import UsageError
from shardhold.v1 import root_pb2 as pb
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.patience import at_most
from tests.kit.played_nexus import BEGUN, PlayedNexus
from tests.kit.transcript import ROOT, run_at_terminal, run_pilot
from tests.kit.waiting import wait_until

AT = Timestamp(seconds=1_700_000_000)
TOLD_AT = "2023-11-14T22:13:20Z"
ALICE = "spiffe://example.test/shardhold/pilot/role/superuser/alice"
KCV = bytes(range(32))
SHOWN_KCV = "0001 0203 0405 0607 0809 0a0b 0c0d 0e0f 1011 1213 1415 1617 1819 1a1b 1c1d 1e1f"
STEPS = "generation 3 → 4  prepared ✓  distributed ✓  flipped ✓  settled ✓ ("
PHRASE = "generation 3 is compromised"
GOES_ON = "pilot: hint: the nexus goes on by itself; 'pilot root status' says how far it is\n"

NEW_KEK = pb.Kek(id=5, state=pb.KEK_STATE_CURRENT, generation=4)
OLD_KEK = pb.Kek(id=4, state=pb.KEK_STATE_OLD, generation=3, abandoned=2)
VERIFIED_KEK = pb.Kek(id=4, state=pb.KEK_STATE_OLD, generation=3, verified_at=AT)


def running(step: int = pb.STEP_PREPARED, **more: Any) -> pb.GetOperationResponse:
    """Tell a rotation in progress."""
    parts: dict[str, Any] = {"operation_id": BEGUN, "depth": pb.DEPTH_ROTATE, **more}
    operation = pb.RootOperation(
        step=step,  # type: ignore[arg-type]
        actor=ALICE,
        started_at=AT,
        stepped_at=AT,
        set_from=7,
        set_to=8,
        generation_from=3,
        generation_to=4,
        kek_from=4,
        kek_to=5,
        kcv=KCV,
        threshold=3,
        keepers=5,
        quorum=4,
        **parts,
    )
    return pb.GetOperationResponse(generation=3, set_number=7, threshold=3, keepers=5, operation=operation)


def ended(*keks: pb.Kek, outcome: int = pb.OUTCOME_SETTLED, **job: Any) -> pb.GetOperationResponse:
    """Tell one that has ended, and how far the keyring job after it is."""
    last = pb.EndedOperation(
        operation_id=BEGUN,
        depth=pb.DEPTH_ROTATE,
        outcome=outcome,  # type: ignore[arg-type]
        ended_at=AT,
        set_from=7,
        set_to=8,
        generation_from=3,
        generation_to=4,
    )
    return pb.GetOperationResponse(
        generation=4,
        activated_at=AT,
        set_number=8,
        threshold=3,
        keepers=5,
        last=last,
        job=pb.KeyringJob(**job) if job else None,
        keks=[NEW_KEK, *keks],
    )


def half() -> pb.GetOperationResponse:
    """Tell that about half the rows are under the new KEK."""
    rows: dict[str, Any] = {"rows_total": 1_000_000, "rows_left": 489_767, "rows_per_second": 15_100.4}
    return ended(OLD_KEK, **rows, seconds_left=32.4, quarantine=1)


@pytest.fixture
def reach(nexus: PlayedNexus, ca: Authority, tmp_path: Path) -> list[str]:
    """Return the options that lead a superuser to a nexus that has begun a rotation."""
    nexus.begun = running().operation
    svid = write_svid(tmp_path / "alice", ca.issue("/shardhold/pilot/role/superuser/alice"))
    return ["--address", nexus.address, "--svid-dir", str(svid)]


def test_a_rotation_begins_and_pilot_returns(nexus: PlayedNexus, reach: list[str]) -> None:
    """Both generations and the new key's fingerprint are shown, before it is current."""
    told = run_pilot("root", "rotate", "--reason", "yearly", *reach)
    assert (told.code, told.err) == (0, GOES_ON)
    assert told.out == f"kcv of generation 4  {SHOWN_KCV}\ngeneration 3 → 4  prepared ✓\n"
    (request,) = nexus.find(pb.StartOperationRequest)
    assert request == pb.StartOperationRequest(
        operation_id=request.operation_id, depth=pb.DEPTH_ROTATE, reason="yearly"
    )
    document = json.loads(run_pilot("root", "rotate", "-o", "json", *reach).out)
    assert {name: document[name] for name in ("depth", "generation_from", "generation_to", "kcv", "kek_to")} == {
        "depth": "rotate",
        "generation_from": 3,
        "generation_to": 4,
        "kcv": KCV.hex(),
        "kek_to": 5,
    }


def test_what_a_superuser_takes_upon_themselves(nexus: PlayedNexus, reach: list[str]) -> None:
    """Stands in the request."""
    given = ("--force", "--without-backup", "none yet", "--reason", "audit", "--dry-run")
    assert run_pilot("root", "rotate", *given, *reach).code == 0
    (request,) = nexus.find(pb.StartOperationRequest)
    assert (request.force, request.without_backup, request.reason, request.dry_run) == (True, "none yet", "audit", True)


def test_waiting_goes_on_until_rows_are_under_the_new_kek(nexus: PlayedNexus, reach: list[str]) -> None:
    """Each step, how far the rows are, and a last line; without a terminal they are plain lines."""
    nexus.tell(running(), running(pb.STEP_FLIPPED), ended(OLD_KEK), half(), ended(VERIFIED_KEK))
    told = run_pilot("root", "rotate", "--wait", *reach)
    assert (told.code, told.err) == (0, "")
    first, second, *lines = told.out.splitlines()
    assert first == f"kcv of generation 4  {SHOWN_KCV}"
    assert second.startswith(STEPS)
    assert lines[0] == (
        "re-wrapping  ██████████▏           51 %  510,233 of 1,000,000  15,100 /s  33 s left  quarantine 1"
    )
    assert lines[1].startswith("re-wrapped ✓ 1,000,000 rows (")
    assert len(lines) == 2


def test_a_job_that_has_not_looked_yet_is_waited_for(nexus: PlayedNexus, reach: list[str]) -> None:
    """Right after the flip there is no job to see, but the keyring has a KEK that nobody has verified."""
    nexus.tell(*[ended(OLD_KEK)] * 3, ended())
    assert run_pilot("root", "rotate", "--wait", *reach).code == 0
    assert len(nexus.find(pb.GetOperationRequest)) >= 4


def test_waiting_for_rows_goes_on_through_a_restart(nexus: PlayedNexus, reach: list[str]) -> None:
    """Keys may be away for a while."""
    nexus.tell(ended(OLD_KEK), half(), *[SealedError("the nexus is sealed")] * 2, ended())
    assert run_pilot("root", "rotate", "--wait", *reach).code == 0


def test_for_programs_one_document_comes_at_the_end(nexus: PlayedNexus, reach: list[str]) -> None:
    """With the fingerprint, and what is left of the job."""
    nexus.tell(running(), half(), ended(VERIFIED_KEK, rows_total=9, waits_for="backup"))
    told = run_pilot("root", "rotate", "--wait", "-o", "json", *reach)
    assert told.code == 0
    assert told.err == "pilot: hint: older KEKs are kept; the keyring job waits for: backup\n"
    document = json.loads(told.out)
    assert (document["outcome"], document["kcv"], document["generation_to"]) == ("settled", KCV.hex(), 4)
    assert document["keyring_job"] == {
        "rows_total": 9,
        "rows_left": 0,
        "rows_per_second": 0.0,
        "seconds_left": None,
        "quarantine": 0,
        "waits_for": "backup",
        "paused": None,
    }


def test_versions_in_quarantine_fail_the_wait(nexus: PlayedNexus, reach: list[str]) -> None:
    """Not every row is under the new KEK, and a script has to notice."""
    nexus.tell(ended(VERIFIED_KEK, rows_total=9, quarantine=2, waits_for="quarantine"))
    told = run_pilot("root", "rotate", "--wait", *reach)
    assert told.code == 1
    last = told.out.splitlines()[-1]
    assert (last.startswith("re-wrapped 9 rows ("), last.endswith("  quarantine 2")) == (True, True)
    assert told.err == (
        "pilot: error: 2 versions did not open: in quarantine\npilot: hint: 'pilot root quarantine list' says which\n"
    )


def test_one_that_is_taken_back_waits_for_no_rows(nexus: PlayedNexus, reach: list[str]) -> None:
    """There is no new KEK."""
    nexus.tell(running(), ended(OLD_KEK, outcome=pb.OUTCOME_ABORTED))
    told = run_pilot("root", "rotate", "--wait", *reach)
    assert (told.code, "the operation was taken back" in told.err) == (1, True)
    assert "re-wrapped" not in told.out


def test_a_pause_is_told_once_it_lasts(nexus: PlayedNexus, reach: list[str]) -> None:
    """Or somebody would wait without knowing for whom."""
    paused = ended(OLD_KEK, rows_total=9, rows_left=9, paused="bob: a busy \x1b[2Jweek")
    nexus.tell(*[paused] * 9, ended())
    (hint,) = run_pilot("root", "rotate", "--wait", *reach).err.splitlines()
    assert hint.endswith("Z it is paused: bob: a busy \ufffd[2Jweek")


def test_ctrl_c_ends_the_waiting_for_rows_only(nexus: PlayedNexus, reach: list[str]) -> None:
    """The rotation goes on, and pilot says so."""
    nexus.tell(half())
    process = subprocess.Popen(
        [sys.executable, "-c", _WITH_SIGINT, "root", "rotate", "--wait", *reach],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(at_most(30), process.kill)
    watchdog.start()
    try:
        wait_until(lambda: len(nexus.find(pb.GetOperationRequest)) > 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=at_most(10))
    finally:
        watchdog.cancel()
    assert (process.returncode, err) == (130, f"pilot: error: interrupted\n{GOES_ON}")
    assert "re-wrapping" in out
    assert not nexus.find(pb.AbortOperationRequest)


# Tests that a shell runs in the background ignore SIGINT, and pilot would inherit that.
_WITH_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.executable, [sys.executable, "-m", "pilot", *sys.argv[1:]])
"""


def test_status_between_old_and_new(nexus: PlayedNexus, reach: list[str]) -> None:
    """The generation, the job and every KEK."""
    nexus.tell(half())
    lines = run_pilot("root", "status", *reach).out.splitlines()
    assert lines[:5] == [
        f"generation      4, current since {TOLD_AT}",
        "shard set       8, 3 of 5 keepers",
        f"last operation  rotate, generation 3 → 4, set 7 → 8, settled {TOLD_AT}",
        "operation       none",
        "re-wrapping     ██████████▏           51 %  510,233 of 1,000,000  15,100 /s  33 s left  quarantine 1",
    ]
    assert [line.split() for line in lines[8:]] == [["5", "current", "4"], ["4", "old", "3", "2"]]
    document = json.loads(run_pilot("root", "status", "-o", "json", *reach).out)
    assert document["keyring_job"] == {
        "rows_total": 1_000_000,
        "rows_left": 489_767,
        "rows_per_second": 15_100.4,
        "seconds_left": 32.4,
        "quarantine": 1,
        "waits_for": None,
        "paused": None,
    }
    assert document["keks"][1] == {
        "id": 4,
        "state": "old",
        "generation": 3,
        "verified_at": None,
        "abandoned": 2,
    }


def test_status_says_what_begins_by_itself(nexus: PlayedNexus, reach: list[str]) -> None:
    """And when."""
    told = ended()
    told.next_scheduled_at.CopyFrom(AT)
    told.next_scheduled = pb.DEPTH_ROTATE
    told.paused = "freeze (alice)"
    nexus.tell(told)
    shown = run_pilot("root", "status", *reach).out
    assert f"\npaused          freeze (alice)\nnext            rotate {TOLD_AT}, by schedule\n" in shown
    document = json.loads(run_pilot("root", "status", "-o", "json", *reach).out)
    assert (document["next_scheduled"], document["next_scheduled_at"]) == ("rotate", TOLD_AT)
    assert document["paused"] == "freeze (alice)"


def test_status_shows_the_fingerprint_and_what_the_job_waits_for(nexus: PlayedNexus, reach: list[str]) -> None:
    """Before the flip people can compare it, and afterwards nobody wonders why an older KEK stays."""
    told = running()
    told.job.CopyFrom(pb.KeyringJob(waits_for="operation"))
    nexus.tell(told)
    out = run_pilot("root", "status", *reach).out
    assert f"\nkcv        {SHOWN_KCV}\n" in out
    assert "\nkeyring job  waits for: operation\n" in out


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_speed_that_is_no_number(nexus: PlayedNexus, reach: list[str], number: float) -> None:
    """The document stays one that every program can read."""
    nexus.tell(ended(rows_total=9, rows_left=9, rows_per_second=number, seconds_left=number))
    out = run_pilot("root", "status", "-o", "json", *reach).out
    job = json.loads(out, parse_constant=pytest.fail)["keyring_job"]
    assert (job["rows_per_second"], job["seconds_left"]) == (None, None)


def test_an_abort_says_which_root_key_stays(nexus: PlayedNexus, reach: list[str]) -> None:
    """The new one was never current."""
    nexus.tell(running())
    assert run_pilot("root", "abort", *reach).out.splitlines() == [
        "aborted   set 8 is dead, set 7 stays",
        "root key  generation 4 is given up, 3 stays",
    ]


EMERGENCY = ("root", "rotate", "--emergency", "--reason", "a laptop was lost")


def test_an_emergency_is_confirmed_at_a_terminal(nexus: PlayedNexus, reach: list[str]) -> None:
    """By words that name the generation, after what it means was shown."""
    nexus.tell(running())
    since = ("--suspected-since", "2026-11-30T08:00:00Z")
    told = run_at_terminal(*EMERGENCY, *since, *reach, script=[(f"type: {PHRASE}: ", PHRASE)])
    assert told.code == 0, told
    assert "It takes nothing back" in told.err
    (request,) = nexus.find(pb.StartOperationRequest)
    assert (request.depth, request.reason) == (pb.DEPTH_EMERGENCY, "a laptop was lost")
    assert request.suspected_since.ToDatetime(UTC) == datetime(2026, 11, 30, 8, tzinfo=UTC)


@pytest.mark.parametrize("answer", ["yes", "generation 4 is compromised"])
def test_an_emergency_that_is_not_confirmed(nexus: PlayedNexus, reach: list[str], answer: str) -> None:
    """Any other answer begins nothing."""
    nexus.tell(running())
    told = run_at_terminal(*EMERGENCY, *reach, script=[(f"type: {PHRASE}: ", answer)])
    assert (told.code, "not confirmed: nothing was begun" in told.err) == (1, True)
    assert not nexus.find(pb.StartOperationRequest)


def test_an_emergency_without_a_terminal(nexus: PlayedNexus, reach: list[str]) -> None:
    """Only --yes begins it; a dry run needs no word."""
    told = run_pilot(*EMERGENCY, *reach)
    assert (told.code, "there is no terminal to ask on" in told.err) == (2, True)
    assert not nexus.requests
    assert run_pilot("root", "rotate", "--emergency", "--dry-run", *reach).code == 0
    assert run_pilot(*EMERGENCY, "--yes", *reach).code == 0
    dry, begun = nexus.find(pb.StartOperationRequest)
    assert (dry.dry_run, begun.dry_run, begun.HasField("suspected_since")) == (True, False, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(("--emergency",), "--emergency: wants a --reason", id="an emergency for no reason"),
        pytest.param(("--force",), "--force: wants a --reason", id="forced for no reason"),
        pytest.param(("--emergency", "--force"), "--force: an emergency needs none", id="a forced emergency"),
        pytest.param(
            ("--suspected-since", "2026-11-30"), "--suspected-since: goes with --emergency only", id="no emergency"
        ),
        pytest.param(
            ("--emergency", "--reason", "x", "--suspected-since", "now"), "--suspected-since: got 'now'", id="no time"
        ),
    ],
)
def test_a_wrong_command_line_asks_the_nexus_nothing(
    nexus: PlayedNexus, reach: list[str], options: tuple[str, ...], message: str
) -> None:
    """It is a usage error, and says what is wanted."""
    told = run_pilot("root", "rotate", *options, *reach)
    assert (told.code, message in told.err) == (2, True), told.err
    assert nexus.requests == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("2026-11-30T08:00:00Z", datetime(2026, 11, 30, 8, tzinfo=UTC), id="UTC"),
        pytest.param("2026-11-30T08:00:00+02:00", datetime(2026, 11, 30, 6, tzinfo=UTC), id="another offset"),
        pytest.param("2026-11-30 08:00", datetime(2026, 11, 30, 8, tzinfo=UTC), id="no offset: UTC"),
        pytest.param("2026-11-30", datetime(2026, 11, 30, tzinfo=UTC), id="a day"),
    ],
)
def test_moments(text: str, wanted: datetime) -> None:
    """As pilot shows them, or any that ISO 8601 has."""
    assert parse_moment(text).ToDatetime(UTC) == wanted


@pytest.mark.parametrize("text", ["", "yesterday", "30.11.2026", "9999-12-31T23:59:59-10:00", "0001-01-01T00:00+10:00"])
def test_no_moments(text: str) -> None:
    """Nor those that UTC's calendar does not have."""
    with pytest.raises(UsageError, match="want a time as"):
        parse_moment(text)
