"""Points at which a test kills, stops or fails a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ConfigError, InjectedError
from common.failpoint import KEEPER, NEXUS, Failpoint, arm, around, read_failpoint
from tests.kit.waiting import wait_until


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm(None)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("flip.commit", "want NAME:before", id="only a name"),
        pytest.param("flip.commit:during:1:kill", "want NAME:before", id="neither before nor after"),
        pytest.param("flip.commit:before:0:kill", "want NAME:before", id="never"),
        pytest.param("flip.commit:before:-1:kill", "want NAME:before", id="negative"),
        pytest.param("flip.commit:before:1:explode", "want NAME:before", id="no action"),
        pytest.param("flip.commit:before:1:kill:", "want NAME:before", id="too many parts"),
        pytest.param("flap.commit:before:1:kill", "want one of abort.commit", id="no point"),
    ],
)
def test_what_is_no_point_is_named(text: str, wanted: str) -> None:
    """A wrong option names what it got and what is wanted."""
    with pytest.raises(ConfigError, match=wanted):
        Failpoint(text, NEXUS)


def test_a_point_is_refused_without_development() -> None:
    """Nobody arms a cluster that matters."""
    with pytest.raises(ConfigError, match="without dev = true"):
        read_failpoint("flip.commit:before:1:kill", NEXUS, dev=False)
    assert read_failpoint("", NEXUS, dev=False) is None


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_point_acts_once_and_at_its_count(side: str) -> None:
    """The second time it is reached, on its side of the block, and never again."""
    arm(read_failpoint(f"put.store:{side}:2:error", KEEPER, dev=True))
    entered = []
    for number in range(4):
        try:
            with around("put.store"):
                entered.append(number)
        except InjectedError:
            entered.append(-1)
        with around("drop.wipe"):
            pass
    assert entered == ([0, -1, 2, 3] if side == "before" else [0, 1, -1, 2, 3])


def test_the_point_after_a_block_that_raised_is_not_reached() -> None:
    """What failed by itself is not said to be done."""
    arm(read_failpoint("put.store:after:1:error", KEEPER, dev=True))
    with pytest.raises(ValueError, match="by itself"), around("put.store"):
        raise ValueError("by itself")


@pytest.mark.parametrize(("action", "status"), [("kill", -signal.SIGKILL), ("pause", 0)])
def test_a_process_is_killed_or_stopped(action: str, status: int) -> None:
    """A killed process is gone; a stopped one goes on when it is told to."""
    program = (
        "import sys; from common.failpoint import NEXUS, arm, around, read_failpoint\n"
        f"arm(read_failpoint('flip.commit:before:1:{action}', NEXUS, dev=True))\n"
        "print('here', flush=True)\n"
        "with around('flip.commit'): print('gone on', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        while status == 0 and not _is_stopped(process.pid):
            pass
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == ("" if status else "gone on\n")
    assert process.returncode == status


def test_no_thread_runs_past_a_pause() -> None:
    """The thread that reaches the point stops there, whatever the others do."""
    program = (
        "import os, threading; from common.failpoint import NEXUS, arm, around, read_failpoint\n"
        "arm(read_failpoint('flip.commit:before:1:pause', NEXUS, dev=True))\n"
        "def reach():\n"
        "    with around('flip.commit'): os.write(1, b'gone on')\n"
        "thread = threading.Thread(target=reach); thread.start(); thread.join()\n"
    )
    for _ in range(5):  # a stop that reaches it late is one of chance
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, bufsize=0) as process:
            assert process.stdout is not None
            wait_until(lambda pid=process.pid: _is_stopped(pid), what="it sleeps")  # type: ignore[misc]
            os.set_blocking(process.stdout.fileno(), False)
            early = process.stdout.read(100)
            process.send_signal(signal.SIGCONT)
            assert process.wait() == 0
            assert early is None
            assert process.stdout.read(100) == b"gone on"


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
