"""`pilot keeper`: who the keepers are and what they hold, and changes of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from shardhold.v1 import cluster_pb2
from shardhold.v1.root_pb2 import DEPTH_RESHARE, STEP_PREPARED, NewKeeper, RootOperation, StartOperationRequest
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.played_nexus import PlayedNexus
from tests.kit.transcript import run_pilot

SPIFFE_ID = "spiffe://example.test/shardhold/keeper/keeper-6"
NEW = NewKeeper(name="keeper-6", address="k6:8443", spiffe_id=SPIFFE_ID)


@pytest.fixture
def reach(nexus: PlayedNexus, ca: Authority, tmp_path: Path) -> list[str]:
    """Return the options that lead an operator to the nexus."""
    nexus.begun = RootOperation(depth=DEPTH_RESHARE, step=STEP_PREPARED, set_from=1, set_to=2)
    svid = write_svid(tmp_path / "bob", ca.issue("/shardhold/pilot/role/operator/bob"))
    return ["--address", nexus.address, "--svid-dir", str(svid)]


def make_info(number: int, **more: Any) -> cluster_pb2.KeeperInfo:
    """Tell a keeper that holds its shard."""
    name = f"keeper-{number}"
    status = cluster_pb2.KeeperStatus(name=name, address=f"{name}:8443", reachable=True, holds_current_set=True)
    return cluster_pb2.KeeperInfo(
        status=status, spiffe_id=f"spiffe://example.test/{name}", x=number, version="1.2", memory_protection=3, **more
    )


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        pytest.param(("add", "keeper-6", "k6:8443", SPIFFE_ID), {"add": [NEW]}, id="add"),
        pytest.param(
            ("add", "keeper-6", "k6:8443", SPIFFE_ID, "--threshold", "4", "--reason", "more"),
            {"add": [NEW], "threshold": 4, "reason": "more"},
            id="add, and raise the threshold",
        ),
        pytest.param(("remove", "keeper-1"), {"remove": ["keeper-1"]}, id="remove"),
        pytest.param(
            ("remove", "keeper-1", "--lost"), {"remove": ["keeper-1"], "lost": ["keeper-1"]}, id="remove a lost one"
        ),
        pytest.param(
            ("replace", "keeper-1", "keeper-6", "k6:8443", SPIFFE_ID),
            {"add": [NEW], "remove": ["keeper-1"]},
            id="replace",
        ),
        pytest.param(
            ("replace", "keeper-1", "keeper-6", "k6:8443", SPIFFE_ID, "--lost"),
            {"add": [NEW], "remove": ["keeper-1"], "lost": ["keeper-1"]},
            id="replace a lost one",
        ),
    ],
)
def test_each_change_of_the_keepers_is_a_reshare(
    nexus: PlayedNexus, reach: list[str], command: tuple[str, ...], wanted: dict[str, Any]
) -> None:
    """What was asked for stands in the request, and nothing else."""
    told = run_pilot("keeper", *command, *reach)
    assert (told.code, told.out) == (0, "set 1 → 2  prepared ✓\n")
    (request,) = nexus.find(StartOperationRequest)
    assert request == StartOperationRequest(operation_id=request.operation_id, depth=DEPTH_RESHARE, **wanted)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        pytest.param(("add", "keeper-6", "k6:8443"), "Missing argument 'SPIFFE_ID'", id="no SPIFFE ID"),
        pytest.param(("remove",), "Missing argument 'NAME'", id="no name"),
        pytest.param(("replace", "keeper-1"), "Missing argument 'NEW'", id="no new one"),
    ],
)
def test_a_wrong_command_line_asks_the_nexus_nothing(
    nexus: PlayedNexus, reach: list[str], command: tuple[str, ...], message: str
) -> None:
    """It is a usage error."""
    told = run_pilot("keeper", *command, *reach)
    assert (told.code, message.lower() in told.err.lower()) == (2, True), told.err
    assert nexus.requests == []


def test_a_list_of_keepers(nexus: PlayedNexus, reach: list[str]) -> None:
    """What is not known is null."""
    nexus.keepers = [make_info(1), cluster_pb2.KeeperInfo(status=cluster_pb2.KeeperStatus(name="keeper-2"))]
    first, second = json.loads(run_pilot("keeper", "list", "-o", "json", *reach).out)
    assert (first["name"], first["holds_current_set"], first["x"], first["version"]) == ("keeper-1", True, 1, "1.2")
    assert [second[key] for key in ("x", "version", "memory_protection", "fault")] == [None] * 4


def test_a_keeper_that_holds_more_than_the_current_set(nexus: PlayedNexus, reach: list[str]) -> None:
    """Sets of which it is not rid yet are named; that it holds the current one alone is nothing to tell."""
    nexus.keepers = [make_info(1, sets=[4]), make_info(2, sets=[3, 4]), make_info(3, sets=[3])]
    nexus.keepers[2].status.holds_current_set = False
    lines = [line.split("  ") for line in run_pilot("keeper", "list", *reach).out.splitlines()]
    shown = [[cell.strip() for cell in line if cell.strip()][2] for line in lines if line[0].startswith("keeper-")]
    assert shown == ["held", "held (sets: 3, 4)", "not held (sets: 3)"]
    documents = json.loads(run_pilot("keeper", "list", "-o", "json", *reach).out)
    assert [document["sets"] for document in documents] == [[4], [3, 4], [3]]
