"""Logs: one line for each event, without key material, whatever is passed."""

import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog

from common.keys.protected import Level, ProtectedBuffer, ProtectedMemory
from common.keys.sealing import OneShotKey
from common.server.logs import QUEUED, conceal, configure, flush
from tests.kit.patience import at_most

KEY = bytes(range(100, 132))
TRACES = (KEY.decode("latin-1"), KEY.hex(), repr(KEY), repr(KEY)[2:-1], str(list(KEY))[1:-1])


class Colour(IntEnum):
    DARK_RED = 7


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Restore the logging of the test run."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    flush(at_most(10))
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read(capsys).splitlines()]


def read(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is on stderr once all of it is written."""
    flush(at_most(10))
    return capsys.readouterr().err


def test_an_event_is_one_json_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line has timestamp in UTC, level, logger and event first, then the context."""
    configure("info", "json")
    structlog.get_logger("nexus.recovery").info("shard collected", keeper="keeper-1", set_number=7)
    (line,) = lines(capsys)
    assert list(line) == ["timestamp", "level", "logger", "event", "keeper", "set_number"]
    assert datetime.fromisoformat(line["timestamp"]).tzinfo == UTC
    assert list(line.values())[1:] == ["info", "nexus.recovery", "shard collected", "keeper-1", 7]


def test_a_logger_without_a_name_has_that_of_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    structlog.get_logger().info("started")
    assert lines(capsys)[0]["logger"] == __name__


def test_auto_is_json_when_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    structlog.get_logger().info("started")
    assert lines(capsys)[0]["event"] == "started"


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_below_the_level_is_left_out(capsys: pytest.CaptureFixture[str], level: str, seen: int) -> None:
    """The level applies to structlog and to `logging`."""
    configure(level, "json")
    for name in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), name)("ours")
        getattr(logging.getLogger("theirs"), name)("theirs")
    assert len(lines(capsys)) == 2 * seen


@pytest.fixture(scope="module")
def buffer() -> Iterator[ProtectedBuffer]:
    with ProtectedMemory(lowest=Level.PLAIN).allocate(len(KEY)) as held:
        held.view[:] = KEY
        yield held


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda buffer: KEY, id="bytes"),
        pytest.param(lambda buffer: bytearray(KEY), id="bytearray"),
        pytest.param(lambda buffer: memoryview(KEY), id="memoryview"),
        pytest.param(lambda buffer: buffer, id="protected buffer"),
        pytest.param(lambda buffer: buffer.view, id="view of a protected buffer"),
        pytest.param(lambda buffer: {"key": KEY, KEY: 1}, id="in a dict, as key and value"),
        pytest.param(lambda buffer: [[KEY], (KEY,), {KEY}], id="in a list, tuple and set"),
        pytest.param(lambda buffer: ValueError("bad key", KEY), id="in an exception"),
    ],
)
@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda value: structlog.get_logger().info("x", value=value), id="context"),
        pytest.param(lambda value: structlog.get_logger().info(value), id="event"),
        pytest.param(lambda value: structlog.get_logger().bind(value=value).info("x"), id="bound"),
        pytest.param(lambda value: logging.getLogger("theirs").info(value), id="message of logging"),
        pytest.param(lambda value: logging.getLogger("theirs").info("got %r", [value]), id="argument of logging"),
        pytest.param(lambda value: logging.getLogger("theirs").info("%(a)s", {"a": value}), id="named of logging"),
        pytest.param(lambda value: structlog.get_logger().info("got %r", value), id="formatted by structlog"),
        pytest.param(lambda value: structlog.get_logger().info(f"got {value!r}"), id="formatted by the caller"),
    ],
)
def test_key_material_is_not_printed(
    capsys: pytest.CaptureFixture[str],
    buffer: ProtectedBuffer,
    format: str,  # noqa: A002
    make: Callable[[ProtectedBuffer], Any],
    send: Callable[[Any], None],
) -> None:
    configure("info", format)
    send(make(buffer))
    printed = read(capsys)
    assert printed.count("\n") == 1
    assert "bytes>" in printed or "<memory at 0x" in printed
    assert not [trace for trace in TRACES if trace in printed]


def test_a_one_shot_key_is_shown_by_its_type() -> None:
    assert conceal(OneShotKey()) == "<OneShotKey>"


@pytest.mark.parametrize(
    "fail",
    [
        pytest.param(lambda key: [].index(key), id="by the standard library"),
        pytest.param(lambda key: {}[key], id="as the argument of a KeyError"),
        pytest.param(lambda key: int(key), id="formatted into the message"),
    ],
)
def test_a_traceback_does_not_print_bytes(capsys: pytest.CaptureFixture[str], fail: Callable[[bytes], None]) -> None:
    """Tracebacks have no local variables, and bytes in the message of an exception or of its cause are masked."""
    configure("info", "json")
    try:
        try:
            fail(KEY)
        except (KeyError, ValueError) as exc:
            raise RuntimeError("outer") from exc
    except RuntimeError:
        structlog.get_logger().exception("it failed")
        logging.getLogger("theirs").exception("it failed")
    ours, theirs = lines(capsys)
    for line in (ours, theirs):
        assert "RuntimeError: outer" in line["exception"]
        assert "Error: " in line["exception"]
        assert not [trace for trace in TRACES if trace in line["exception"]]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param(Colour.DARK_RED, "dark_red", id="enum by its name"),
        pytest.param(Path("/var/lib"), "/var/lib", id="path"),
        pytest.param(datetime(2025, 1, 2, tzinfo=UTC), "2025-01-02T00:00:00+00:00", id="date"),
        pytest.param(UUID(int=1), "00000000-0000-0000-0000-000000000001", id="uuid"),
        pytest.param("wrong key b'k\\x00\\'y' for x", "wrong key <bytes> for x", id="text with a bytes literal"),
        pytest.param("Bob's", "Bob's", id="text with a quotation mark"),
        pytest.param(float("inf"), "inf", id="number that JSON does not have"),
        pytest.param({1: {"a": None}}, {"1": {"a": None}}, id="nested"),
        pytest.param(object(), "<object>", id="anything else by its type"),
    ],
)
def test_other_values_are_shown_as_json(value: object, shown: object) -> None:
    assert conceal(value) == shown


@pytest.mark.parametrize("level", [1, 15, 25, 45, 50])
def test_levels_that_only_logging_has_are_printed(capsys: pytest.CaptureFixture[str], level: int) -> None:
    """A library's own level is logged under the next lower name."""
    configure("debug", "json")
    logging.getLogger().setLevel(0)
    logging.getLogger("theirs").log(level, "said")
    assert [line["event"] for line in lines(capsys)] == ["said"]


def test_a_message_that_does_not_fit_its_arguments_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A library's format error costs the arguments, not the line."""
    configure("info", "json")
    logging.getLogger("theirs").error("%d of %d", 1)
    assert lines(capsys)[0]["event"] == "%d of %d"


def test_warnings_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning("old", DeprecationWarning, "file.py", 1)
    assert lines(capsys)[0]["logger"] == "py.warnings"


def test_the_console_prints_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """An escape sequence in a caller's path does not reach the operator's terminal."""
    configure("info", "console")
    try:
        raise RuntimeError("title \x1b]0;x\x07")
    except RuntimeError:
        structlog.get_logger().exception("odd\x1b[2J", path="a\x1b[31m\x9b1m\nb")
    printed = read(capsys)
    assert all(character.isprintable() or character == "\n" for character in printed)
    assert "path='a\\x1b[31m\\x9b1m\\nb'" in printed


class _Full:
    """A disk without space."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def isatty(self) -> bool:
        return False


def test_a_full_disk_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk loses log lines but fails no call; the audit, which must not be lost, is written elsewhere."""
    configure("info", "json")
    monkeypatch.setattr(sys, "stderr", _Full())
    structlog.get_logger().info("started")


class _Exhausted(_Full):
    """A stream of a process that has no memory left."""

    def write(self, text: str) -> int:
        raise MemoryError


def test_no_failure_to_write_ends_the_thread_that_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines after one that could not be written, for want of memory even, are written."""
    configure("info", "json")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", _Exhausted())
        structlog.get_logger().info("lost")
        flush()
    structlog.get_logger().info("written")
    assert [line["event"] for line in lines(capsys)] == ["written"]


def test_context_of_a_thread_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    with structlog.contextvars.bound_contextvars(request="r1"):
        structlog.get_logger().info("served")
    assert lines(capsys)[0]["request"] == "r1"


def test_a_mapping_of_arguments_is_kept() -> None:
    """`conceal` takes any mapping, not only dicts."""

    class Frozen(Mapping[str, bytes]):
        def __getitem__(self, key: str) -> bytes:
            return KEY

        def __iter__(self) -> Iterator[str]:
            return iter(["a"])

        def __len__(self) -> int:
            return 1

    assert conceal(Frozen()) == {"a": "<32 bytes>"}


def test_a_reader_that_stalls_holds_up_nobody() -> None:
    """Who logs into a full pipe goes on at once; when it is read again, the number of lost lines is said."""
    code = (
        "import os, sys, time, structlog; from common.server import logs; logs.configure('info', 'json')\n"
        "for number in range(logs.QUEUED + 5000): structlog.get_logger().info('said', number=number)\n"
        "os.write(1, b'through'); sys.stdin.read()\n"
        "while not logs._WRITER._queue.empty(): time.sleep(0.01)\n"
        "structlog.get_logger().info('said', number=-1); logs.flush(60); os._exit(0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(7) == b"through"  # nobody has read a line
        reader = threading.Thread(target=child.stdin.close)
        reader.start()
        told = [json.loads(line) for line in child.stderr]
        reader.join()
    dropped = sum(line["count"] for line in told if line["event"] == "lines dropped")
    assert dropped + sum(line["event"] == "said" for line in told) == QUEUED + 5001
    assert dropped > 1000
