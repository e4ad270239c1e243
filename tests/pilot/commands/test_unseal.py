"""`pilot unseal` as its users see it: commands, prompts, files and output, over real mTLS."""

import json
from datetime import date
from pathlib import Path

import pytest

from common.errors import WrongStateError
from common.keys.words import split
from pilot.commands.unseal import parse_genesis
from pilot.custody.card import Card
from pilot.errors import UsageError
from shardhold.v1 import cluster_pb2, recovery_pb2
from tests.kit.played_nexus import CLUSTER_ID, GENESIS, SESSION_ID, PlayedNexus
from tests.kit.transcript import Transcript, run_at_terminal, run_pilot

SHARES = split(bytes(32), 2, 3)
FINGERPRINT = GENESIS.hex()


def write_card(folder: Path, number: int, genesis: bytes = GENESIS) -> Path:
    path = folder / f"custodian-{number}.txt"
    card = Card(
        number=number,
        count=3,
        threshold=2,
        words=SHARES[number - 1],
        cluster_id=CLUSTER_ID,
        genesis=genesis,
        attempt=1,
        made_on=date(2026, 2, 3),
    )
    path.write_text(card.format())
    return path


@pytest.fixture
def reach(nexus: PlayedNexus, svid_dir: Path) -> list[str]:
    """Return the options that lead to the nexus."""
    return ["--address", nexus.address, "--svid-dir", str(svid_dir)]


def test_two_custodians_with_their_cards(nexus: PlayedNexus, reach: list[str], tmp_path: Path) -> None:
    """The first custodian opens the session, the second completes it; each gives a card and is told what is missing."""
    first = run_pilot("unseal", f"@{write_card(tmp_path, 1)}", *reach)
    assert first == Transcript(
        0,
        "accepted  share of custodian 1\nshares    1 of 2\nnexus     waits for 1 more custodian\n",
        f"pilot: cluster {CLUSTER_ID.hex()}: its genesis fingerprint is that of the card\n"
        "pilot: 0 of 2 shares submitted; the session ends within 15 minutes\n",
    )
    second = run_pilot("unseal", "submit", "-", "-o", "json", *reach, stdin=write_card(tmp_path, 3).read_text())
    assert json.loads(second.out) == {"number": 3, "submitted": 2, "needed": 2, "missing": 0, "ready": True}
    assert nexus.shares == [SHARES[0], SHARES[2]]


def test_a_custodian_at_a_terminal(nexus: PlayedNexus, reach: list[str]) -> None:
    """Plain `pilot unseal` asks to compare, takes the words hidden, and shows none of them."""
    words = SHARES[1].split()
    told = run_at_terminal(
        "unseal",
        *reach,
        script=[
            ("Are they the same? Type yes or no: ", "yes"),
            ("0 of 33 words: ", "nope"),
            ("word 1 is not in the list: type it again", " ".join(words)),
        ],
    )
    assert told.code == 0, told
    assert told.out == "accepted  share of custodian 2\nshares    1 of 2\nnexus     waits for 1 more custodian\n"
    assert "0001 0203 0405 0607 0809 0a0b 0c0d 0e0f" in told.err
    assert SHARES[1].split(maxsplit=1)[1] not in told.err
    assert nexus.shares == [SHARES[1]]


def test_ctrl_c_at_the_prompt(nexus: PlayedNexus, reach: list[str]) -> None:
    """A Ctrl-C at the prompt ends pilot with 130, and nothing is submitted."""
    told = run_at_terminal("unseal", *reach, script=[("Type yes or no: ", "yes"), ("0 of 33 words: ", "academic \x03")])
    assert told.code == 130
    assert told.err.endswith("\npilot: error: interrupted\n")
    assert nexus.shares == []


def test_ctrl_c_for_programs(nexus: PlayedNexus, reach: list[str]) -> None:
    """It is an error in JSON as any other."""
    told = run_at_terminal("unseal", "-o", "json", *reach, script=[("Type yes or no: ", "\x03")])
    assert told.code == 130
    assert '{"error": {"message": "interrupted", "hint": null, "reason": null, "exit_code": 130}}\n' in told.err


def test_another_genesis_than_the_cards(nexus: PlayedNexus, reach: list[str], tmp_path: Path) -> None:
    """A card of another cluster is not submitted, and no session is opened for it."""
    told = run_pilot("unseal", f"@{write_card(tmp_path, 1, b'x' * 32)}", *reach)
    assert told.code == 1
    assert told.err.startswith("pilot: error: the genesis of this nexus is 0001 0203 0405")
    assert "pilot: hint: this is another cluster, or someone replaced the database of this one" in told.err
    assert not nexus.find(recovery_pb2.StartUnsealRequest)
    assert not nexus.find(recovery_pb2.SubmitShareRequest)


def test_words_without_a_card_need_the_genesis(nexus: PlayedNexus, reach: list[str]) -> None:
    """Words without a card and without a terminal need --genesis, which says what was compared."""
    told = run_pilot("unseal", "-", *reach, stdin=SHARES[0])
    assert told.code == 2
    assert "pilot: hint: --genesis HEX, as printed on the card" in told.err
    assert run_pilot("unseal", "-", "--genesis", FINGERPRINT, *reach, stdin=SHARES[0]).code == 0
    assert nexus.shares == [SHARES[0]]


def test_start_status_and_reset(nexus: PlayedNexus, reach: list[str], tmp_path: Path) -> None:
    """A session is opened, shown and reset; without one there is nothing to submit to or to reset."""
    assert "pilot: error: no session is open" in run_pilot("unseal", "reset", *reach).err
    told = run_pilot("unseal", "submit", f"@{write_card(tmp_path, 1)}", *reach)
    assert (told.code, "pilot: hint: 'pilot unseal start' opens one" in told.err) == (1, True)
    assert run_pilot("unseal", "start", *reach).out == (
        f"cluster     {CLUSTER_ID.hex()}\n"
        "genesis     0001 0203 0405 0607 0809 0a0b 0c0d 0e0f 1011 1213 1415 1617 1819 1a1b 1c1d 1e1f\n"
        "recovery    any 2 of 3 custodians\nsession     0 of 2 shares submitted\nends in     900 s\n"
        "started by  another\n"
    )
    assert run_pilot("unseal", "submit", f"@{write_card(tmp_path, 1)}", *reach).code == 0
    assert json.loads(run_pilot("-o", "json", "unseal", "status", *reach).out) == {
        "cluster_id": CLUSTER_ID.hex(),
        "genesis": FINGERPRINT,
        "recovery_threshold": 2,
        "recovery_shares": 3,
        "session": {
            "session_id": SESSION_ID.hex(),
            "started_by": None,
            "expires_in_s": 900,
            "submitted": 1,
            "needed": 2,
            "excluded": [],
        },
    }
    assert json.loads(run_pilot("unseal", "reset", "-o", "json", *reach).out) == {"forgotten": 1}
    assert json.loads(run_pilot("unseal", "status", "-o", "json", *reach).out)["session"] is None


def test_a_caller_is_excluded_by_name(nexus: PlayedNexus, reach: list[str]) -> None:
    """Whoever is excluded is shown with the session; without a session there is nobody to exclude."""
    eve = "spiffe://example.test/shardhold/pilot/role/recover/eve"
    assert "there is nothing to exclude anybody from" in run_pilot("unseal", "exclude", eve, *reach).err
    assert run_pilot("unseal", "start", *reach).code == 0
    told = run_pilot("unseal", "exclude", eve, *reach)
    assert (told.code, told.out.splitlines()[-1]) == (0, f"excluded    {eve}")
    (request,) = nexus.find(recovery_pb2.ExcludeSubmitterRequest)
    assert (request.session_id, request.spiffe_id) == (SESSION_ID, eve)
    shown = json.loads(run_pilot("unseal", "status", "-o", "json", *reach).out)
    assert shown["session"]["excluded"] == [eve]


def test_unsealed_and_blocked(nexus: PlayedNexus, reach: list[str], tmp_path: Path) -> None:
    """When all shares are submitted but a newer mark blocks the nexus, pilot says where to look."""
    nexus.status.newer_mark.revision = 9
    run_pilot("unseal", f"@{write_card(tmp_path, 1)}", *reach)
    told = run_pilot("unseal", f"@{write_card(tmp_path, 2)}", *reach)
    assert (told.code, told.out.splitlines()[-1]) == (0, "nexus     blocked")
    assert "pilot: the root key is proved, but the nexus is blocked: 'pilot status'" in told.err


def test_a_nexus_that_is_ready(nexus: PlayedNexus, reach: list[str]) -> None:
    """A nexus that is ready has nothing to unseal, and pilot says so instead of the code."""
    nexus.status.state = cluster_pb2.STATE_READY
    nexus.errors["GetProgress"] = WrongStateError("GetProgress is not served in the state ready")
    told = run_pilot("unseal", "status", *reach)
    assert (told.code, told.err) == (1, "pilot: error: the nexus is ready: there is nothing to unseal\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["unseal", "academic", "acid"], "words on the command line", id="words on the command line"),
        pytest.param(["unseal", "submit", "academic"], "words on the command line", id="and behind submit"),
        pytest.param(["unseal", "@/nonexistent"], "/nonexistent: No such file", id="no such file"),
        pytest.param(["unseal", "--genesis", "00", "-"], "--genesis: got '00'", id="a short genesis"),
        pytest.param(["unseal", "--timeout", "3", "status"], "options go before", id="options in the middle"),
    ],
)
def test_usage(arguments: list[str], said: str) -> None:
    """A wrong command line is named before anything is asked or called, and no word is repeated."""
    told = run_pilot(*arguments)
    assert told.code == 2
    assert said in told.err
    assert "academic" not in told.err


def test_genesis_as_it_stands_on_the_card() -> None:
    """A genesis in groups, in capitals or in one piece is the same; anything else is refused."""
    groups = " ".join(FINGERPRINT[at : at + 4] for at in range(0, 64, 4))
    assert parse_genesis(groups) == parse_genesis(FINGERPRINT.upper()) == GENESIS
    assert parse_genesis(None) is None
    for wrong in ("", "0001 0203 …", FINGERPRINT[:-2], FINGERPRINT + "00"):
        with pytest.raises(UsageError, match="--genesis"):
            parse_genesis(wrong)
