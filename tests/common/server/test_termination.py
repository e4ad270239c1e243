"""`common.server.termination`: waiting for signals."""

import signal
import subprocess
import sys

import pytest

from tests.kit.patience import at_most

OTHER_THREAD = """
import signal, threading, time
from common.server.termination import Termination

termination = Termination()
asleep = threading.Thread(target=time.sleep, args=(600,), daemon=True)
asleep.start()
threading.Timer(0.2, signal.pthread_kill, (asleep.ident, signal.SIGTERM)).start()
print(termination.wait(), flush=True)
"""
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


def test_a_signal_that_another_thread_gets_ends_the_wait() -> None:
    """The main thread awakes although the kernel interrupted another thread."""
    command = [sys.executable, "-c", OTHER_THREAD]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=at_most(20), check=False)
    assert ended.stdout == "True\n"


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
