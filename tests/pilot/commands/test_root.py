"""`pilot root`: how the root key stands, and operations begun, awaited, hurried and taken back."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import OperationRefusedError, RecoveringError, WrongStateError
from shardhold.v1 import root_pb2
from shardhold.v1.root_pb2 import GetOperationResponse, RootOperation
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.patience import at_most
from tests.kit.played_nexus import BEGUN, PlayedNexus
from tests.kit.transcript import ROOT, run_pilot
from tests.kit.waiting import wait_until

AT = Timestamp(seconds=1_700_000_000)
TOLD_AT = "2023-11-14T22:13:20Z"
ALICE = "spiffe://example.test/shardhold/pilot/role/superuser/alice"


def running(step: int = root_pb2.STEP_PREPARED, *, waits_for: str = "", **more: Any) -> GetOperationResponse:
    """Tell an operation in progress."""
    parts: dict[str, Any] = {"operation_id": BEGUN, "depth": root_pb2.DEPTH_RESHARE, "actor": ALICE, **more}
    operation = RootOperation(
        step=step,  # type: ignore[arg-type]
        started_at=AT,
        stepped_at=AT,
        set_from=4,
        set_to=5,
        threshold=3,
        keepers=5,
        holders=["keeper-1", "keeper-2"],
        quorum=4,
        waits_for=waits_for,
        **parts,
    )
    return GetOperationResponse(generation=1, set_number=4, threshold=3, keepers=5, drawn_at=AT, operation=operation)


def ended(outcome: int = root_pb2.OUTCOME_SETTLED, detail: str = "", **more: Any) -> GetOperationResponse:
    """Tell one that has ended."""
    parts: dict[str, Any] = {"operation_id": BEGUN, "depth": root_pb2.DEPTH_RESHARE, **more}
    last = root_pb2.EndedOperation(
        outcome=outcome,  # type: ignore[arg-type]
        detail=detail,
        ended_at=AT,
        set_from=4,
        set_to=5,
        **parts,
    )
    return GetOperationResponse(generation=1, set_number=5, threshold=3, keepers=5, last=last)


@pytest.fixture
def reach(nexus: PlayedNexus, ca: Authority, tmp_path: Path) -> list[str]:
    """Return the options that lead a superuser to a nexus that has begun an operation."""
    nexus.begun = running().operation
    svid = write_svid(tmp_path / "alice", ca.issue("/shardhold/pilot/role/superuser/alice"))
    return ["--address", nexus.address, "--svid-dir", str(svid)]


def test_status_when_nothing_was_ever_begun(nexus: PlayedNexus, reach: list[str]) -> None:
    """What does not exist is null, and "none" for people."""
    nexus.tell(GetOperationResponse(generation=1, set_number=1, threshold=3, keepers=5))
    assert run_pilot("root", "status", *reach).out.splitlines() == [
        "generation  1",
        "shard set   1, 3 of 5 keepers",
        "operation   none",
    ]
    assert json.loads(run_pilot("root", "status", "-o", "json", *reach).out) == {
        "generation": 1,
        "created_at": None,
        "activated_at": None,
        "set_number": 1,
        "threshold": 3,
        "keepers": 5,
        "drawn_at": None,
        "operation": None,
        "last": None,
        "keyring_job": None,
        "keks": [],
        "next_scheduled_at": None,
        "paused": None,
        "next_scheduled": None,
        "dead_sets": 0,
    }


def test_status_during_an_operation(nexus: PlayedNexus, reach: list[str]) -> None:
    """How far it is, and what it waits for."""
    told = running(root_pb2.STEP_DISTRIBUTED, waits_for="keeper-5 to hold set 5", reason="yearly")
    told.operation.operation_id = bytes(16)
    nexus.tell(told)
    out = run_pilot("root", "status", *reach).out.splitlines()
    assert out == [
        "generation  1",
        f"shard set   4, 3 of 5 keepers, drawn {TOLD_AT}",
        "operation  reshare, set 4 → 5",
        f"step       distributed since {TOLD_AT}",
        f"began      {TOLD_AT} by {ALICE}",
        "holders    2 of 5 keepers, want 4",
        "reason     yearly",
        "waits for  keeper-5 to hold set 5",
    ]
    document = json.loads(run_pilot("root", "status", "-o", "json", *reach).out)
    assert document["last"] is None
    assert document["operation"] == {
        "id": "00" * 16,
        "depth": "reshare",
        "step": "distributed",
        "reason": "yearly",
        "actor": ALICE,
        "started_at": TOLD_AT,
        "stepped_at": TOLD_AT,
        "generation_from": 0,
        "generation_to": 0,
        "kcv": None,
        "kek_from": 0,
        "kek_to": 0,
        "set_from": 4,
        "set_to": 5,
        "threshold": 3,
        "keepers": 5,
        "holders": ["keeper-1", "keeper-2"],
        "quorum": 4,
        "waits_for": "keeper-5 to hold set 5",
    }


def test_status_after_an_operation(nexus: PlayedNexus, reach: list[str]) -> None:
    """How the last one ended, and why it was taken back."""
    told = ended(root_pb2.OUTCOME_ABORTED, "wrong day")
    told.last.operation_id = bytes(16)
    nexus.tell(told)
    out = run_pilot("root", "status", *reach).out.splitlines()
    assert out[2:] == [
        f"last operation  reshare, set 4 → 5, aborted {TOLD_AT}: wrong day",
        "operation       none",
    ]
    document = json.loads(run_pilot("root", "status", "-o", "json", *reach).out)
    assert (document["operation"], document["last"]) == (
        None,
        {
            "id": "00" * 16,
            "depth": "reshare",
            "outcome": "aborted",
            "detail": "wrong day",
            "ended_at": TOLD_AT,
            "generation_from": 0,
            "generation_to": 0,
            "set_from": 4,
            "set_to": 5,
        },
    )


def test_a_newer_nexus_may_say_what_this_pilot_does_not_know(nexus: PlayedNexus, reach: list[str]) -> None:
    """Unknown depths, steps and outcomes are said to be unknown; waiting for the end goes on."""
    told = running(77, depth=88)
    told.last.CopyFrom(ended(99).last)
    nexus.tell(told)
    document = json.loads(run_pilot("root", "status", "-o", "json", *reach).out)
    assert [document["operation"][key] for key in ("depth", "step")] == ["unknown"] * 2
    assert document["last"]["outcome"] == "unknown"
    nexus.tell(told, ended())
    shown = run_pilot("root", "reshare", "--wait", *reach)
    assert shown.code == 0
    assert shown.out.startswith("set 4 → 5  prepared ✓  distributed ✓  flipped ✓  settled ✓ (")


def test_a_reshare_begins_and_pilot_returns(nexus: PlayedNexus, reach: list[str]) -> None:
    """The nexus goes on by itself; what was asked for stands in the request."""
    told = run_pilot("root", "reshare", "--threshold", "4", "--reason", "yearly", *reach)
    assert (told.code, told.out) == (0, "set 4 → 5  prepared ✓\n")
    assert told.err == "pilot: hint: the nexus goes on by itself; 'pilot root status' says how far it is\n"
    (request,) = nexus.find(root_pb2.StartOperationRequest)
    assert (request.threshold, request.reason, request.dry_run, len(request.operation_id)) == (4, "yearly", False, 16)
    assert json.loads(run_pilot("root", "reshare", "-o", "json", *reach).out)["step"] == "prepared"


def test_each_reshare_has_an_id_of_its_own(nexus: PlayedNexus, reach: list[str]) -> None:
    """Or the second one would be taken for the first."""
    for _ in range(2):
        assert run_pilot("root", "reshare", *reach).code == 0
    assert len({request.operation_id for request in nexus.find(root_pb2.StartOperationRequest)}) == 2


def test_waiting_shows_each_step_once(nexus: PlayedNexus, reach: list[str]) -> None:
    """One line, that grows; steps that went by between two looks are shown too."""
    nexus.tell(running(), running(root_pb2.STEP_DISTRIBUTED), ended())
    told = run_pilot("root", "reshare", "--wait", *reach)
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith("set 4 → 5  prepared ✓  distributed ✓  flipped ✓  settled ✓ (")
    nexus.tell(running(), ended())
    document = json.loads(run_pilot("root", "reshare", "--wait", "-o", "json", *reach).out)
    assert (document["outcome"], document["detail"]) == ("settled", None)


def test_waiting_goes_on_through_a_restart(nexus: PlayedNexus, reach: list[str]) -> None:
    """A nexus that is away or recovering for a moment is no reason to stop."""
    nexus.tell(running(), *[RecoveringError("the nexus is recovering")] * 3, ended())
    told = run_pilot("root", "reshare", "--wait", *reach)
    assert (told.code, told.err) == (0, "")


def test_what_a_wait_is_for_is_told_once_it_lasts(nexus: PlayedNexus, reach: list[str]) -> None:
    """A moment's wait is nothing to tell; a long one is told once, on a line of its own."""
    nexus.tell(*[running(waits_for="keeper-1 to hold set 5")] * 5, ended())
    assert run_pilot("root", "reshare", "--wait", *reach).err == ""
    nexus.tell(*[running(waits_for="keeper-5 \x1b[2J to hold set 5")] * 16, ended())
    told = run_pilot("root", "reshare", "--wait", *reach)
    (hint,) = told.err.splitlines()
    assert hint.startswith("pilot: hint: ")
    assert hint.endswith("Z waits for keeper-5 \ufffd[2J to hold set 5")
    assert told.out.splitlines()[0] == "set 4 → 5  prepared ✓  "


def test_one_that_is_taken_back_fails(nexus: PlayedNexus, reach: list[str]) -> None:
    """Why is told, and controls no terminal."""
    nexus.tell(running(), ended(root_pb2.OUTCOME_ABORTED, "alice: \x1b[31mwrong day"))
    told = run_pilot("root", "reshare", "--wait", *reach)
    assert told.code == 1
    assert told.err == "pilot: error: the operation was taken back: alice: \ufffd[31mwrong day\n"
    assert "aborted (" in told.out


def test_an_operation_that_the_nexus_does_not_know_any_more(nexus: PlayedNexus, reach: list[str]) -> None:
    """Another one came meanwhile: its end is not this one's."""
    nexus.tell(running(), ended(operation_id=bytes(16)))
    told = run_pilot("root", "reshare", "--wait", *reach)
    assert told.code == 1
    assert "does not know the operation any more\npilot: hint: 'pilot audit tail' says what happened\n" in told.err


def test_ctrl_c_says_that_the_nexus_goes_on(nexus: PlayedNexus, reach: list[str]) -> None:
    """Waiting is all that ends."""
    nexus.tell(running())
    process = subprocess.Popen(
        [sys.executable, "-c", _WITH_SIGINT, "root", "reshare", "--wait", *reach],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(at_most(30), process.kill)
    watchdog.start()
    try:
        wait_until(lambda: nexus.find(root_pb2.GetOperationRequest))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=at_most(10))
    finally:
        watchdog.cancel()
    assert (process.returncode, out) == (130, "set 4 → 5  prepared ✓  \n")
    assert err == (
        "pilot: error: interrupted\npilot: hint: the nexus goes on by itself; 'pilot root status' says how far it is\n"
    )
    assert not nexus.find(root_pb2.AbortOperationRequest)


# Tests that a shell runs in the background ignore SIGINT, and pilot would inherit that.
_WITH_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.executable, [sys.executable, "-m", "pilot", *sys.argv[1:]])
"""

CHECKS = [
    root_pb2.Check(name="keepers", detail="3 of 5 reachable, want 4", refusal="KEEPERS_SHORT"),
    root_pb2.Check(name="disk", detail="9 bytes \x1b[2J free"),
]


def test_a_dry_run_that_is_refused(nexus: PlayedNexus, reach: list[str]) -> None:
    """Every check is shown, the exit code is that of a failure, and nothing was begun."""
    nexus.checks = CHECKS
    told = run_pilot("root", "reshare", "--dry-run", *reach)
    assert (told.code, told.err) == (1, "pilot: error: it would be refused: 1 of 2 checks\n")
    lines = [line.split() for line in told.out.splitlines() if line.strip()]
    assert lines[-2:] == [
        ["refused", "keepers", "3", "of", "5", "reachable,", "want", "4", "KEEPERS_SHORT"],
        ["ok", "disk", "9", "bytes", "\ufffd[2J", "free"],
    ]
    told = run_pilot("root", "reshare", "--dry-run", "-o", "json", *reach)
    assert (told.code, json.loads(told.out)) == (
        1,
        [
            {"name": "keepers", "detail": "3 of 5 reachable, want 4", "refusal": "KEEPERS_SHORT"},
            {"name": "disk", "detail": "9 bytes \x1b[2J free", "refusal": None},
        ],
    )
    assert all(request.dry_run for request in nexus.find(root_pb2.StartOperationRequest))


def test_a_dry_run_that_passes(nexus: PlayedNexus, reach: list[str]) -> None:
    """With --wait too: there is nothing to wait for."""
    nexus.checks = CHECKS[1:]
    assert run_pilot("root", "reshare", "--dry-run", "--wait", *reach).code == 0


def test_a_reshare_that_is_refused(nexus: PlayedNexus, reach: list[str]) -> None:
    """The nexus's sentence is shown, and the name of the rule."""
    nexus.errors["StartOperation"] = OperationRefusedError("keepers: 3 of 5 reachable", reason="KEEPERS_SHORT")
    told = run_pilot("root", "reshare", *reach)
    assert (told.code, told.err) == (1, "pilot: error: keepers: 3 of 5 reachable (KEEPERS_SHORT)\n")


@pytest.mark.parametrize(
    ("rpc", "command"),
    [
        ("AbortOperation", ("abort",)),
        ("ContinueOperation", ("continue", "--with-threshold")),
        ("PauseRotation", ("pause", "--reason", "x")),
        ("ResumeRotation", ("resume",)),
        ("RetryQuarantined", ("quarantine", "retry", "a/b", "1", "--incarnation", "00")),
        ("AbandonQuarantined", ("quarantine", "abandon", "a/b", "1", "--incarnation", "00", "--reason", "x")),
    ],
)
def test_every_refusal_names_its_rule(nexus: PlayedNexus, reach: list[str], rpc: str, command: tuple[str, ...]) -> None:
    """Which stands in the documentation."""
    nexus.tell(running())
    nexus.errors[rpc] = OperationRefusedError("it is too late", reason="OPERATION_FLIPPED")
    told = run_pilot("root", *command, *reach)
    assert (told.code, told.err) == (1, "pilot: error: it is too late (OPERATION_FLIPPED)\n")


def test_a_wrong_state_is_no_rule(nexus: PlayedNexus, reach: list[str]) -> None:
    """Its general reason says nothing to a person."""
    nexus.errors["StartOperation"] = WrongStateError("the operation has ended: it is settled")
    told = run_pilot("root", "reshare", *reach)
    assert told.err.splitlines()[0] == "pilot: error: the operation has ended: it is settled"


def test_an_abort_names_the_operation_that_was_looked_at(nexus: PlayedNexus, reach: list[str]) -> None:
    """Another one that began meanwhile stays."""
    nexus.tell(running(operation_id=bytes(16)))
    told = run_pilot("root", "abort", "--reason", "wrong day", *reach)
    assert (told.code, told.out) == (0, "aborted  set 5 is dead, set 4 stays\n")
    (request,) = nexus.find(root_pb2.AbortOperationRequest)
    assert request == root_pb2.AbortOperationRequest(operation_id=bytes(16), reason="wrong day")
    told = run_pilot("root", "abort", "-o", "json", *reach)
    assert json.loads(told.out) == {"id": "00" * 16, "outcome": "aborted"}


@pytest.mark.parametrize("command", [("abort",), ("continue", "--with-threshold"), ("continue", "--without-proof")])
def test_without_an_operation_there_is_nothing_to_end(
    nexus: PlayedNexus, reach: list[str], command: tuple[str, ...]
) -> None:
    """The nexus is asked for nothing."""
    nexus.tell(ended())
    told = run_pilot("root", *command, *reach)
    assert (told.code, told.err) == (1, "pilot: error: no operation is in progress\n")
    assert not nexus.find(root_pb2.AbortOperationRequest) + nexus.find(root_pb2.ContinueOperationRequest)


def test_an_operation_goes_on_with_the_threshold(nexus: PlayedNexus, reach: list[str]) -> None:
    """What is asked for stands in the request, and how far it is comes back."""
    nexus.tell(running(operation_id=bytes(16)))
    told = run_pilot("root", "continue", "--with-threshold", "--lost", "keeper-5", *reach)
    assert (told.code, told.out.splitlines()[0]) == (0, "operation  reshare, set 4 → 5")
    assert nexus.find(root_pb2.ContinueOperationRequest) == [
        root_pb2.ContinueOperationRequest(operation_id=bytes(16), with_threshold=True, lost=["keeper-5"])
    ]


def test_a_keeper_is_given_up_also_after_the_operation(nexus: PlayedNexus, reach: list[str]) -> None:
    """One that left may hold a shard yet when the operation has long ended."""
    nexus.tell(ended())
    told = run_pilot("root", "continue", "--lost", "keeper-4", "--lost", "keeper-5", *reach)
    assert (told.code, told.out) == (0, "given up  keeper-4, keeper-5\n")
    assert nexus.find(root_pb2.ContinueOperationRequest) == [
        root_pb2.ContinueOperationRequest(lost=["keeper-4", "keeper-5"])
    ]
    assert json.loads(run_pilot("root", "continue", "--lost", "keeper-5", "-o", "json", *reach).out) is None


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param(("reshare", "--threshold", "1"), "--threshold: got 1, want 2 or more", id="threshold of one"),
        pytest.param(("reshare", "--threshold", "256"), "less than or equal to 255", id="threshold above 255"),
        pytest.param(
            ("continue",), "give --with-threshold, --without-proof or --lost NAME", id="go on without nothing"
        ),
        pytest.param(("abort", "now"), "unexpected extra argument", id="an argument too many"),
    ],
)
def test_a_wrong_command_line_asks_the_nexus_nothing(
    nexus: PlayedNexus, reach: list[str], command: tuple[str, ...], message: str
) -> None:
    """It is a usage error, and says what is wanted."""
    told = run_pilot("root", *command, *reach)
    assert (told.code, message in told.err) == (2, True), told.err
    assert nexus.requests == []
