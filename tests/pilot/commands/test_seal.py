"""`pilot seal`: typed confirmation, and what it says about keepers, stores and lost answers."""

import json
from pathlib import Path

import grpc
import pytest

from common.errors import StoreUnavailableError, WrongStateError
from pilot.commands.seal import explain
from shardhold._errors import DeadlineError, UnavailableError
from shardhold.v1 import cluster_pb2
from tests.kit.played_nexus import CLUSTER_ID, PlayedNexus
from tests.kit.transcript import run_at_terminal, run_pilot

QUESTION = f"type {CLUSTER_ID.hex()[:8]}, or the word seal: "


@pytest.fixture
def reach(nexus: PlayedNexus, svid_dir: Path) -> list[str]:
    """Return the options that lead to the nexus."""
    nexus.status.state = cluster_pb2.STATE_READY
    return ["--address", nexus.address, "--svid-dir", str(svid_dir)]


@pytest.mark.parametrize("answer", [CLUSTER_ID.hex()[:8], "seal", " SEAL "])
def test_confirmed_at_a_terminal(nexus: PlayedNexus, reach: list[str], answer: str) -> None:
    """Pilot names the cluster and what brings it back; the cluster's first digits or the word confirm."""
    told = run_at_terminal("seal", "--reason", "moving house", *reach, script=[(QUESTION, answer)])
    assert told.code == 0, told
    assert f"Sealing cluster {CLUSTER_ID.hex()}" in told.err
    assert "only 2 of its 3 custodians can" in told.err
    assert told.out.splitlines() == [
        "state          sealed",
        "keepers        4 of 5 hold no shard any more; the nexus goes on until the others have dropped theirs or were "
        "restarted",
        "bring it back  pilot unseal, by each custodian",
    ]
    assert nexus.find(cluster_pb2.SealRequest) == [cluster_pb2.SealRequest(reason="moving house")]


@pytest.mark.parametrize("answer", ["", "yes", "sea", CLUSTER_ID.hex()])
def test_not_confirmed(nexus: PlayedNexus, reach: list[str], answer: str) -> None:
    """Any answer but the digits or the word seals nothing."""
    told = run_at_terminal("seal", *reach, script=[(QUESTION, answer)])
    assert (told.code, "pilot: error: not confirmed: nothing was sealed" in told.err) == (1, True)
    assert not nexus.find(cluster_pb2.SealRequest)


def test_without_a_terminal(nexus: PlayedNexus, reach: list[str]) -> None:
    """Without a terminal only --yes seals the cluster."""
    told = run_pilot("seal", *reach)
    assert (told.code, "pilot: hint: --yes confirms without a terminal" in told.err) == (2, True)
    assert not nexus.find(cluster_pb2.SealRequest)
    told = run_pilot("seal", "--yes", "-o", "json", *reach)
    assert json.loads(told.out) == {"keepers_emptied": 4, "keepers": 5}


def test_a_nexus_that_says_little(nexus: PlayedNexus, reach: list[str]) -> None:
    """When the status names no cluster, the word confirms."""
    nexus.status.Clear()
    told = run_at_terminal("seal", *reach, script=[("type the word seal: ", "seal")])
    assert told.code == 0
    assert "only its custodians can" in told.err


def test_a_store_that_cannot_commit(nexus: PlayedNexus, reach: list[str]) -> None:
    """When the nexus has wiped its keys but a restart would not be sealed, the hint says what to do."""
    nexus.errors["Seal"] = StoreUnavailableError("the seal was not committed")
    told = run_pilot("seal", "--yes", *reach)
    assert told.code == 5
    assert "pilot: error: the seal was not committed\npilot: hint: the nexus has wiped its keys" in told.err


def test_an_uninitialised_nexus(nexus: PlayedNexus, reach: list[str]) -> None:
    """A refusal of the nexus is reported in its own words."""
    nexus.errors["Seal"] = WrongStateError("Seal is not served in the state uninitialised")
    told = run_pilot("seal", "--yes", *reach)
    assert (told.code, "not served in the state uninitialised" in told.err) == (1, True)


@pytest.mark.parametrize(
    "error", [DeadlineError("late"), UnavailableError("gone", grpc.StatusCode.UNAVAILABLE)], ids=["late", "gone"]
)
def test_a_lost_answer(error: DeadlineError | UnavailableError) -> None:
    """When it is unknown whether the cluster is sealed, the hint says how to see, and that repeating does no harm."""
    explained = explain(error)
    assert explained.exit_code == 5
    assert "'pilot status' shows whether it is sealed" in explained.hints[0]
