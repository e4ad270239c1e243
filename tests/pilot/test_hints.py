"""Hints for the common mistakes, each really made: clock, trust domain, address, agent, state."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from common.errors import RecoveringError, SealedError
from tests.kit.authority import EXPIRED, NOT_YET, Authority
from tests.kit.credentials import Credentials, certify, write_svid
from tests.kit.played_nexus import CUSTODIAN_PATH, NEXUS_PATH, PlayedNexus
from tests.kit.transcript import run_pilot

NEXUS_ID, CUSTODIAN_ID = f"spiffe://example.test{NEXUS_PATH}", f"spiffe://example.test{CUSTODIAN_PATH}"


@contextmanager
def played(ca: Authority, credentials: Credentials) -> Iterator[PlayedNexus]:
    nexus = PlayedNexus(ca, svid=credentials.parse())
    try:
        yield nexus
    finally:
        nexus.stop()


@pytest.mark.parametrize(
    ("valid", "said"),
    [
        pytest.param(EXPIRED, "by this machine's clock the server's SVID has expired", id="expired"),
        pytest.param(NOT_YET, "by this machine's clock the server's SVID is not valid yet", id="not valid yet"),
    ],
)
def test_clock_against_the_servers_svid(
    ca: Authority, svid_dir: Path, valid: tuple[timedelta, timedelta], said: str
) -> None:
    """When the server's SVID is outside its validity, the hint is that one of the clocks may be wrong."""
    with played(ca, certify(ca, uris=[NEXUS_ID], dns=["nexus.shardhold"], valid=valid)) as nexus:
        told = run_pilot("status", "--address", nexus.address, "--svid-dir", svid_dir)
    assert told.code == 5
    assert f"pilot: hint: {said}" in told.err


def test_clock_against_the_own_svid(ca: Authority, nexus: PlayedNexus, tmp_path: Path) -> None:
    """The nexus silently refuses an SVID from the future; pilot notices, and gives both times."""
    folder = write_svid(tmp_path / "future", certify(ca, uris=[CUSTODIAN_ID], valid=NOT_YET))
    told = run_pilot("status", "--address", nexus.address, "--svid-dir", folder)
    assert told.code == 5
    assert "pilot: hint: your SVID is valid from " in told.err
    assert "by this machine's clock it is " in told.err


def test_own_svid_expired(ca: Authority, nexus: PlayedNexus, tmp_path: Path) -> None:
    """An expired SVID is not even tried."""
    folder = write_svid(tmp_path / "old", certify(ca, uris=[CUSTODIAN_ID], valid=EXPIRED))
    told = run_pilot("status", "--address", nexus.address, "--svid-dir", folder)
    assert told.code == 5
    assert f"pilot: error: the SVID of {CUSTODIAN_ID} expired at " in told.err
    assert "has given no newer one; by this machine's clock it is " in told.err
    assert not nexus.requests


def test_wrong_trust_domain(nexus: PlayedNexus, tmp_path: Path) -> None:
    """When a custodian's trust domain does not know the nexus's authority, the hint says so."""
    other = write_svid(tmp_path / "other", Authority("other.test").issue(CUSTODIAN_PATH))
    told = run_pilot("unseal", "status", "--address", nexus.address, "--svid-dir", other)
    assert told.code == 5
    assert "pilot: hint: the server's SVID is of another trust domain than this one" in told.err


def test_another_server(ca: Authority, svid_dir: Path) -> None:
    """When the address is a keeper's, the hint says that it is not a nexus."""
    with played(ca, certify(ca, uris=[NEXUS_ID], dns=["k1.keeper.shardhold"])) as nexus:
        told = run_pilot("status", "--address", nexus.address, "--svid-dir", svid_dir)
    assert (told.code, "the server there is no nexus" in told.err) == (5, True)


def test_nobody_there(svid_dir: Path) -> None:
    """A port where nothing listens is named as such."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    told = run_pilot("status", "--address", f"127.0.0.1:{port}", "--svid-dir", svid_dir)
    assert (told.code, "pilot: hint: nothing listens there" in told.err) == (5, True)


def test_no_agent(nexus: PlayedNexus, tmp_path: Path) -> None:
    """Without a Workload API socket the hint asks for the agent, and names the files to use instead."""
    environ = {"SPIFFE_ENDPOINT_SOCKET": f"unix:{tmp_path}/agent.sock"}
    told = run_pilot("unseal", "--address", nexus.address, environ=environ)
    assert told.code == 5
    assert "pilot: hint: does the SPIRE agent" in told.err
    assert "pilot: hint: SVID files are named with --svid-dir" in told.err


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        pytest.param(SealedError("the nexus is sealed"), "'pilot unseal'", id="sealed"),
        pytest.param(RecoveringError("the nexus recovers"), "'pilot status' says what it waits for", id="recovering"),
    ],
)
def test_states(nexus: PlayedNexus, svid_dir: Path, error: SealedError | RecoveringError, hint: str) -> None:
    """A nexus that does not serve says why, and the hint names the command that helps."""
    nexus.errors["Seal"] = error
    told = run_pilot("seal", "--yes", "--address", nexus.address, "--svid-dir", svid_dir)
    assert (told.code, hint in told.err) == (5, True), told.err


def test_status_names_the_next_command(nexus: PlayedNexus, svid_dir: Path) -> None:
    """`pilot status` of a sealed nexus ends with what to do, on stderr; its JSON stays a document."""
    told = run_pilot("status", "--address", nexus.address, "--svid-dir", svid_dir)
    assert (told.code, told.err) == (0, "pilot: hint: custodians bring it back: 'pilot unseal'\n")
    assert run_pilot("status", "-o", "json", "--address", nexus.address, "--svid-dir", svid_dir).err == ""


def test_status_as_an_exit_code(nexus: PlayedNexus, svid_dir: Path) -> None:
    """A sealed nexus is 6 for whoever asks for an exit code, also in JSON."""
    reach = ("--address", nexus.address, "--svid-dir", svid_dir)
    assert run_pilot("status", "--exit-code", *reach).code == 6
    assert run_pilot("status", "--exit-code", "-o", "json", *reach).code == 6


def test_an_error_of_the_nexus_for_programs(nexus: PlayedNexus, svid_dir: Path) -> None:
    """It is JSON with the nexus's own reason."""
    nexus.errors["Seal"] = SealedError("the nexus is sealed")
    told = run_pilot("seal", "--yes", "-o", "json", "--address", nexus.address, "--svid-dir", svid_dir)
    error = json.loads(told.err)["error"]
    assert (told.code, told.out, error["reason"], error["exit_code"]) == (5, "", SealedError.reason, 5)
    assert error["message"] == "the nexus is sealed"
    assert "'pilot unseal'" in error["hint"]
