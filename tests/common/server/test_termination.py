"""`common.server.termination`: waiting for signals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.server.termination import ENDING, SILENT
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
from common.server import logs
from common.server.termination import Termination, report_crashes

logs.configure("info", "json")
report_crashes()
termination = Termination()
assert not termination.is_set()
assert not termination.wait(0.01)
print("waiting", flush=True)
assert termination.wait()
assert termination.is_set() and termination.wait() and termination.wait(0)
logs.flush()
print("ended", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signal_ends_the_wait(name: str) -> None:
    """A signal ends a wait without limit, and every later wait ends at once; the log says which one came."""
    with start() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.send_signal(signal.Signals[name])
        assert process.stdout.readline() == "ended\n"
        (line,) = map(json.loads, process.stderr)
        assert (line["event"], line["signal"]) == ("told to end", name)
        assert process.wait(at_most(20)) == 0


def test_a_signal_that_another_thread_gets_ends_the_wait() -> None:
    """The main thread awakes although the kernel interrupted another thread."""
    command = [sys.executable, "-c", OTHER_THREAD]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=at_most(20), check=False)
    assert ended.stdout.endswith("True\n")


def test_no_signal_that_can_be_caught_ends_the_process_in_silence() -> None:
    """Each one whose default is an end without a word is handled, as far as Python does not ignore it."""
    harmless = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
    stops = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGSTOP}
    crashes = {
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGABRT,
        signal.SIGTRAP,
        signal.SIGSYS,
    }
    ignored = {signal.SIGPIPE, signal.SIGXFSZ}  # by Python
    ours = {*ENDING, *SILENT}
    assert not ours & (harmless | stops | crashes | ignored)
    rest = {number for number in signal.Signals if number < signal.SIGRTMIN} - harmless - stops - crashes - ignored
    assert rest - {signal.SIGKILL, signal.Signals(getattr(signal, "SIGSTKFLT", signal.SIGKILL))} == ours


def test_a_signal_that_was_ignored_at_the_start_stays_so() -> None:
    """A server that nohup started goes on when its terminal is closed."""
    with start(ignored=[signal.SIGHUP]) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert [json.loads(line)["signal"] for line in process.stderr] == ["SIGTERM"]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_says_where_every_thread_was(number: int) -> None:
    """It names files and functions, and the process dies of the signal all the same."""
    with start() as process:
        assert process.stderr is not None
        process.send_signal(number)
        told = process.stderr.read()
        assert "Fatal Python error" in told
        assert "most recent call first" in told
        assert process.wait(at_most(20)) == -number


def start(ignored: Sequence[int] = ()) -> subprocess.Popen[str]:
    """Start the program, and wait until it waits."""
    program = (
        f"import signal; [signal.signal(one, signal.SIG_IGN) for one in {[int(one) for one in ignored]}]" + PROGRAM
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


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


def test_the_end_keeps_its_code_when_nobody_reads_any_more() -> None:
    """What was printed into a pipe without a reader changes neither the exit code nor the way the process ends."""
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import sys; from common.server.termination import end_process; "
        "sys.stdout = open(1, 'w', buffering=100); print('lost'); end_process(3)"
    )
    ended = subprocess.run([sys.executable, "-c", code], stdout=writing, timeout=at_most(30), check=False)
    os.close(writing)
    assert ended.returncode == 3


def test_no_file_gets_the_number_of_a_standard_stream(tmp_path: Path) -> None:
    """A process that was started without them opens them, so that no library complains into a file of ours."""
    told = tmp_path / "told"
    code = (
        "import os, sys; from common.server.termination import end_process, open_streams; open_streams();"
        f"fd = os.open({str(told)!r}, os.O_WRONLY | os.O_CREAT);"
        "os.write(fd, b'%d' % fd); sys.stderr.write('complaint'); print('more'); end_process(0)"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, timeout=at_most(30), check=False).returncode == 0
    assert int(told.read_text()) > 2
