"""`common.server.termination`: waiting for signals."""

import signal
import subprocess
import sys

import pytest

from tests.kit.patience import at_most

PROGRAM = """
import sys, threading
from common.server.termination import Termination

termination = Termination()
assert not termination.is_set()
assert not termination.wait(0.01)
print("waiting", flush=True)
assert termination.wait()
assert termination.is_set() and termination.wait() and termination.wait(0)
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_wait(number: int) -> None:
    """A signal ends a wait without limit, and every later wait ends at once."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        assert process.stdout.readline() == "ended\n"
        assert process.wait(at_most(20)) == 0


def test_storm_of_signals() -> None:
    """Many signals in a row are one request to stop, and none of them deadlocks the process."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        for _ in range(200):
            process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "ended\n"
        # The last ones may come after Python has removed its handlers: then they end the process too.
        assert process.wait(at_most(20)) in (0, -signal.SIGTERM)


def test_the_end_waits_for_nobody() -> None:
    """Everything printed and the exit code arrive; a worker that hangs delays nothing."""
    code = (
        "import threading; from common.server.termination import end_process; "
        "threading.Thread(target=threading.Event().wait).start(); print('done'); end_process(3)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=at_most(30), check=False
    )
    assert (ended.returncode, ended.stdout) == (3, "done\n")


def test_the_end_needs_no_output() -> None:
    """A process that was started without stdout and stderr still ends with its code."""
    code = "import sys; from common.server.termination import end_process; sys.stdout = None; end_process(3)"
    assert subprocess.run([sys.executable, "-c", code], timeout=at_most(30), check=False).returncode == 3
