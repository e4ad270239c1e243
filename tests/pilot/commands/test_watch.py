"""`pilot watch`: what the screen says at any width, what is known while the nexus is silent, and how it ends."""

import io
import itertools
import json
import re
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from pilot.commands.vitals import vitals_document
from pilot.commands.watch_screen import find_seconds, render_screen, render_sparks
from pilot.commands.watching import Sight, Watcher
from pilot.errors import DENIED, PilotError
from shardhold import DeniedError, UnavailableError
from shardhold.v1 import cluster_pb2 as pb
from shardhold.v1.root_pb2 import DEPTH_ROTATE, KeyringJob
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.played_nexus import PlayedNexus
from tests.kit.screen import ENTER, LEAVE, SHOW_CURSOR, Screen
from tests.kit.transcript import run_pilot

TOLD_AT = 1_800_000_000  # 2027-01-15T08:00:00Z
NOW = datetime.fromtimestamp(TOLD_AT, UTC)
DAY, HOUR = 86_400, 3600
WIDTHS = (50, 80, 120)


def ago(seconds: int) -> Timestamp:
    """Return a moment before the status was told; after it when *seconds* is negative."""
    return Timestamp(seconds=TOLD_AT - seconds)


def make_keeper(number: int, **changes: Any) -> pb.KeeperStatus:
    """Tell a keeper that is as it should be but for *changes*."""
    mark = pb.TakenMark(timeline=1, revision=18_204, made_at=ago(number))
    usual: dict[str, Any] = {"reachable": True, "holds_current_set": True, "mark": mark}
    return pb.KeeperStatus(name=f"keeper-{number}", address=f"10.0.0.{number}:8443", **(usual | changes))


def make_status(**changes: Any) -> pb.GetStatusResponse:
    """Tell a cluster of three that is as it should be but for *changes*."""
    usual: dict[str, Any] = {
        "state": pb.STATE_READY,
        "version": "1.2.3",
        "generation": 3,
        "shard_threshold": 2,
        "shard_count": 3,
        "set_number": 4,
        "recovery_threshold": 3,
        "recovery_shares": 5,
        "timeline": 1,
        "revision": 18_204,
        "memory_protection": 3,
        "keepers": [make_keeper(number) for number in (1, 2, 3)],
        "told_at": ago(0),
        "started_at": ago(2 * HOUR),
        "svid_expires_at": ago(-42 * 60),
        "calls": 1000,
        "audit": pb.AuditStatus(seq=120_331),
        "rotation": pb.RotationStatus(activated_at=ago(12 * DAY), next=DEPTH_ROTATE, next_at=ago(-20 * DAY)),
        "backup": pb.BackupStatus(configured=True, created_at=ago(3 * HOUR), verified_at=ago(3 * HOUR)),
    }
    return pb.GetStatusResponse(**(usual | changes))


GONE = make_keeper(2, reachable=False, holds_current_set=False, fault="does not answer: refused")


def render(sight: Sight, width: int, *, now: float = 0.0) -> str:
    """Return what a terminal of this width shows."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(render_screen(sight, address="nexus:8553", width=width, now=now, at=NOW))
    return re.sub(r"\x1b\[[0-9;]*m", "", captured.get())


def squeeze(text: str) -> str:
    """Return text without frames, breaks and gaps, so that what was folded can be found."""
    return re.sub(r"[\s│╭╮╰╯─]+", "", text)


def unfold(shown: str, width: int) -> list[str]:
    """Return what a screen says, and what each half of it says, where panels stand side by side."""
    lines, half = shown.splitlines(), min(width, 110) // 2
    halves = ["".join(line[:half] for line in lines), "".join(line[half:] for line in lines)]
    return [squeeze(shown), *map(squeeze, halves)]


def see(response: pb.GetStatusResponse, **more: Any) -> Sight:
    return Sight(vitals_document(response), **more)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        pytest.param(
            {},
            [
                "● ready",
                "nexus:8553  08:00:00Z",
                "3, current for 12 d 0 h",
                "4, any 2 of 3 keepers",
                "any 3 of 5 custodians",
                "rotate in 20 d 0 h",
                "verified, 3 h 0 min old",
                "3 keepers, 1 s old",
                "18,204, timeline 1",
                "2 h 0 min, version 1.2.3",
                "expires in 42 min 0 s",
                "line 120,331, all synced",
                "memfd_secret",
                "keeper-3",
                "● held",
            ],
            id="all is well",
        ),
        pytest.param(
            {"keepers": [make_keeper(1), GONE]},
            ["○ unreachable", "does not answer: refused", "until 1 more keeper holds its shard"],
            id="a keeper is gone",
        ),
        pytest.param(
            {"keepers": [make_keeper(1, holds_current_set=False)]}, ["◌ not held"], id="a keeper holds no shard"
        ),
        pytest.param({"revision": 18_300}, ["3 keepers, 1 s old, of revision 18,204"], id="marks lag"),
        pytest.param({"generation": 0, "keepers": [make_keeper(1, mark=None)]}, ["none yet"], id="no mark"),
        pytest.param(
            {
                "operation": pb.Operation(
                    kind="rotate", step="flipped", stepped_at=ago(95), started_at=ago(99), waits_for="keeper-2"
                ),
                "keyring_job": KeyringJob(rows_total=200, rows_left=50, rows_per_second=12.4, seconds_left=4),
            },
            ["flipped for 1 min 35 s", "waits for", "75 %", "150 of 200", "12 /s", "4 s left"],
            id="an operation",
        ),
        pytest.param(
            {"state": pb.STATE_SEALED, "unseal": pb.UnsealProgress(submitted=2, needed=3), "blocked_by": ["sealed"]},
            ["● sealed", "✗ sealed", "2 of 3 shares submitted", "custodians bring it back: 'pilot unseal'"],
            id="sealed",
        ),
        pytest.param(
            {"audit": pb.AuditStatus(fault="No space left on device", seq=7), "alarms": ["rotation due: old"]},
            ["failing: No space left on device", "▲ rotation due: old", "looked at every 15 s while the audit fails"],
            id="the audit fails",
        ),
        pytest.param(
            {"audit": pb.AuditStatus(seq=7, unsynced=2, unexported=1_500)},
            ["line 7, 2 unsynced, 1,500 unexported"],
            id="the audit lags",
        ),
        pytest.param({"rotation": pb.RotationStatus(due=True)}, ["due now"], id="rotation is due"),
        pytest.param({"rotation": pb.RotationStatus(paused=True)}, ["paused"], id="rotation is paused"),
        pytest.param({"backup": pb.BackupStatus()}, ["not configured"], id="no backups"),
        pytest.param({"backup": pb.BackupStatus(configured=True)}, ["none verified"], id="no backup yet"),
        pytest.param({"svid_expires_at": ago(1)}, ["expired 1 s ago"], id="no SVID"),
        pytest.param({"memory_protection": 1}, ["plain, for development only"], id="plain memory"),
        pytest.param(
            {"state": pb.STATE_UNINITIALISED, "generation": 0, "set_number": 0, "keepers": [], "rotation": None},
            ["● uninitialised", "none yet"],
            id="before init",
        ),
    ],
)
def test_every_width_says_it_all(changes: dict[str, Any], wanted: list[str], width: int) -> None:
    """Narrow screens fold and stack; no line is cut, and no fact is lost."""
    shown = render(see(make_status(**changes)), width)
    assert max(map(len, shown.splitlines())) <= width
    for text in wanted:
        assert any(squeeze(text) in part for part in unfold(shown, width)), shown
    assert "…" not in shown.replace("calls     …", "")


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        pytest.param(50, ["keeper", "shard", "fault"], id="50"),
        pytest.param(80, ["keeper", "shard", "mark", "fault"], id="80"),
        pytest.param(120, ["keeper", "shard", "mark", "address", "fault"], id="120"),
    ],
)
def test_columns_give_way_to_faults(width: int, columns: list[str]) -> None:
    """What is wrong with a keeper is shown at any width, its mark and address where there is room."""
    shown = render(see(make_status(keepers=[make_keeper(1, fault="lies")])), width)
    (head,) = [line for line in shown.splitlines() if "shard " in line and "keeper " in line and "set" not in line]
    assert head.strip("│ ").split() == columns


def test_who_does_not_answer_may_have_forgotten_its_mark() -> None:
    """The newest mark is that of keepers that are there."""
    keepers = [make_keeper(1), make_keeper(2), make_keeper(3, reachable=False)]
    keepers[1].mark.revision = 18_100
    assert vitals_document(make_status(keepers=keepers))["newest_mark"] == {
        "timeline": 1,
        "revision": 18_204,
        "made_at": "2027-01-15T07:59:59Z",
        "keepers": 1,
    }


def test_wide_screens_have_panels_side_by_side() -> None:
    """And narrow ones have them one below the other."""
    sides = {
        width: any("root key" in line and "nexus ─" in line for line in render(see(make_status()), width).splitlines())
        for width in WIDTHS
    }
    assert sides == {50: False, 80: True, 120: True}


def test_a_low_screen_shows_what_changes_most() -> None:
    """What 24 lines of 50 columns cut off is neither trouble, nor what to do, nor a keeper."""
    status = make_status(
        shard_threshold=5,
        keepers=[GONE, *(make_keeper(number) for number in (1, 3, 4, 5))],
        alarms=["rotation due: old"],
    )
    shown = "\n".join(render(see(status), 50).splitlines()[:24])
    for text in ("▲ rotation due", "→ ", "○ unreachable", "keeper-5", "root key"):
        assert text in shown, shown


def test_a_silent_nexus_is_shown_with_its_age() -> None:
    """What was known stays, with how old it is and since when nothing came."""
    sight = see(make_status(), seen_at=100.0, silent_since=NOW, why="connection refused")
    shown = render(sight, 80, now=112.5)
    assert "○ ready" in shown
    assert "nexus does not answer since 08:00:00Z: connection refused" in shown
    assert "what follows is 13 s old" in shown
    assert "line 120,331" in shown


def test_a_nexus_that_never_answered() -> None:
    """There is nothing to show but that."""
    shown = render(Sight(silent_since=NOW, why="connection refused"), 80)
    assert "○ not seen yet" in shown
    assert "does not answer since 08:00:00Z" in shown
    assert "root key" not in shown


def test_who_has_no_role_sees_the_state() -> None:
    """And is told who sees more."""
    shown = render(see(pb.GetStatusResponse(state=pb.STATE_READY, version="1.2.3")), 80)
    assert "● ready" in shown
    assert "only people with a role see more" in shown


@pytest.mark.parametrize(
    ("rates", "bars"),
    [
        pytest.param((), "", id="none"),
        pytest.param((0.0, 0.0), "▁▁", id="idle"),
        pytest.param((0.0, 50.0, 100.0), "▁▅█", id="rising"),
    ],
)
def test_sparks(rates: tuple[float, ...], bars: str) -> None:
    """Bars are relative to the highest."""
    assert render_sparks(rates) == bars


def test_unknown_moments_have_no_distance() -> None:
    """A moment that is missing, or that a nexus made up, is no error."""
    assert find_seconds(None, "2027-01-15T08:00:00Z") is None
    assert find_seconds("2027-01-15T08:00:00Z", "unknown") is None


class Answers:
    """What a watcher is told, one after the other, a second apart."""

    def __init__(self, *answers: pb.GetStatusResponse | Exception) -> None:
        self._answers = iter(answers)
        self.watcher = Watcher(self._next, monotonic=itertools.count(100.0).__next__)

    def _next(self) -> pb.GetStatusResponse:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_calls_are_counted_between_two_looks_at_one_process() -> None:
    """A restarted nexus counts from 0: the first look after it tells no rate, and no negative one ever."""
    silence = UnavailableError("gone", code=grpc.StatusCode.UNAVAILABLE, reason="")
    told: list[pb.GetStatusResponse | Exception] = [
        make_status(calls=1000),
        make_status(calls=1042),
        silence,
        make_status(calls=5, started_at=ago(9)),
        make_status(calls=12, started_at=ago(9)),
        make_status(calls=20, started_at=ago(1)),  # restarted between two looks
        make_status(calls=23, started_at=ago(1)),
    ]
    watcher = Answers(*told).watcher
    assert [watcher.look().rate for _ in told] == [None, 42.0, None, None, 7.0, None, 3.0]
    assert watcher.sight.rates == (42.0, 7.0, 3.0)


def test_silence_keeps_what_is_known_and_since_when() -> None:
    """The beginning of the silence stays, and its last reason is told; an answer ends it."""
    told: list[pb.GetStatusResponse | Exception] = [
        make_status(),
        UnavailableError("one", code=grpc.StatusCode.UNAVAILABLE, reason=""),
        UnavailableError("two", code=grpc.StatusCode.UNAVAILABLE, reason=""),
        make_status(state=pb.STATE_SEALED),
    ]
    watcher = Answers(*told).watcher
    first, silent, longer, back = (watcher.look() for _ in told)
    assert first.silent_since is None
    assert (silent.status, silent.seen_at, silent.why) == (first.status, first.seen_at, "one")
    assert (longer.silent_since, longer.why) == (silent.silent_since, "two")
    assert (back.silent_since, back.why) == (None, "")
    assert back.status is not None
    assert back.status["state"] == "sealed"


@pytest.mark.parametrize(
    ("sight", "wanted"),
    [
        pytest.param(Sight(), 1.0, id="never seen"),
        pytest.param(see(make_status()), 1.0, id="all is well"),
        pytest.param(see(make_status(audit=pb.AuditStatus(fault="full"))), 15.0, id="the audit fails"),
        pytest.param(see(make_status(audit=pb.AuditStatus(fault="full")), silent_since=NOW), 1.0, id="silent"),
        pytest.param(see(pb.GetStatusResponse(state=pb.STATE_READY)), 1.0, id="no role"),
    ],
)
def test_a_failing_audit_is_looked_at_less_often(sight: Sight, wanted: float) -> None:
    """Each look is an entry from the reserve, which people need to set things right."""
    assert sight.find_interval(1.0) == wanted
    assert sight.find_interval(60.0) == 60.0


def test_who_is_refused_from_the_start_is_told() -> None:
    """What does not help to repeat is an error at the first look; later it is shown like any silence."""
    refusal = DeniedError("no", code=grpc.StatusCode.PERMISSION_DENIED, reason="DENIED")
    with pytest.raises(PilotError) as caught:
        Answers(refusal).watcher.look()
    assert caught.value.exit_code == DENIED
    watcher = Answers(make_status(), refusal).watcher
    assert [watcher.look().why for _ in range(2)] == ["", "no"]


@pytest.fixture
def reach(nexus: PlayedNexus, ca: Authority, tmp_path: Path) -> list[str]:
    """Return the options that lead an operator to a nexus that is ready."""
    nexus.status = make_status()
    svid = write_svid(tmp_path / "bob", ca.issue("/shardhold/pilot/role/operator/bob"))
    return ["--address", nexus.address, "--svid-dir", str(svid)]


def test_without_a_terminal_it_shows_one_screen(nexus: PlayedNexus, reach: list[str]) -> None:
    """Plain text, asked for once."""
    told = run_pilot("watch", *reach)
    assert (told.code, told.err) == (0, "")
    assert "● ready" in told.out
    assert "\x1b" not in told.out
    assert len(nexus.find(pb.GetStatusRequest)) == 1


def test_without_a_terminal_silence_is_an_error(nexus: PlayedNexus, reach: list[str]) -> None:
    """As for any command."""
    nexus.stop()
    told = run_pilot("watch", *reach)
    assert (told.code, told.out) == (5, "")
    assert told.err.startswith("pilot: error: ")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        pytest.param("0", "'--interval'", id="too often"),
        pytest.param("soon", "'--interval'", id="no number"),
    ],
)
def test_intervals_that_are_none(nexus: PlayedNexus, reach: list[str], option: str, message: str) -> None:
    """A usage error; the nexus is not asked."""
    told = run_pilot("watch", "--interval", option, *reach)
    assert told.code == 2
    assert message in told.err
    assert not nexus.requests


END: list[Any] = [
    pytest.param(lambda screen: screen.press("q"), id="q"),
    pytest.param(lambda screen: screen.press("\x03"), id="Ctrl-C"),
    pytest.param(lambda screen: screen.press("\x04"), id="Ctrl-D"),
    pytest.param(lambda screen: screen.send_signal(signal.SIGTERM), id="SIGTERM"),
]


@pytest.mark.parametrize("end", END)
def test_the_end_gives_the_terminal_back(reach: list[str], end: Callable[[Screen], None]) -> None:
    """The other screen is left, keys are echoed again, the cursor is there, and the exit code is 0."""
    with Screen("watch", *reach) as screen:
        screen.wait("● ready", "keeper-3")
        assert screen.find_modes() != screen.modes
        screen.press("x")  # any other key does nothing, and is not shown
        end(screen)
        assert screen.wait_end() == 0
        assert screen.find_modes() == screen.modes
    assert screen.seen.count(ENTER) == screen.seen.count(LEAVE) == 1
    after = screen.seen.rpartition(LEAVE)[2]
    assert SHOW_CURSOR in screen.seen
    assert "●" not in after


def test_a_new_size_is_followed(reach: list[str]) -> None:
    """Panels go below one another when the terminal gets narrow; the address of keepers goes."""
    with Screen("watch", *reach, columns=120) as screen:
        assert "10.0.0.3:8443" in screen.wait("● ready", "keeper-3")
        screen.resize(50, 40)
        assert "10.0.0.3" not in screen.wait("● ready", "keeper-3", f"╭─ nexus {'─' * 40}╮")
        screen.press("q")
        assert screen.wait_end() == 0


def test_columns_that_say_nothing(reach: list[str]) -> None:
    """The terminal itself is then asked how wide it is."""
    with Screen("watch", *reach, columns=120, environ={"COLUMNS": "0"}) as screen:
        assert "10.0.0.3:8443" in screen.wait("● ready", "keeper-3")
        screen.press("q")
        assert screen.wait_end() == 0


def test_json_tells_silence_too(nexus: PlayedNexus, reach: list[str]) -> None:
    """A nexus that does not answer is a line as well, and no error; so many lines as were asked for."""
    nexus.stop()
    told = run_pilot("-o", "json", "watch", "--count", "2", "--interval", "0.2", *reach)
    assert (told.code, told.err) == (0, "")
    first, second = map(json.loads, told.out.splitlines())
    assert (first["answers"], first["status"]) == (False, None)
    assert second["silent_since"] == first["silent_since"]
    assert second["why"]


def test_json_has_one_line_for_each_look(nexus: PlayedNexus, reach: list[str]) -> None:
    """Until Ctrl-C, on a terminal too; the exit code is 0."""
    with Screen("-o", "json", "watch", "--interval", "0.2", *reach) as screen:
        screen.wait('"calls_per_second": 0.0')
        screen.press("\x03")
        assert screen.wait_end() == 0
    documents = [json.loads(line) for line in screen.seen.splitlines() if line.startswith("{") and line.endswith("}")]
    assert len(documents) >= 2
    assert documents[0]["answers"] is True
    assert documents[0]["status"]["audit"] == {"fault": None, "seq": 120_331, "unsynced": 0, "unexported": 0}
