"""Threads that decode rows of a kind for the first time, at the same moment."""

import enum
import subprocess
import sys
import threading
from typing import Any

import msgspec

from nexus.keys import records
from tests.kit.patience import at_most

KINDS = 300
THREADS = 3
BODY = b'{"state": "a", "one": {"number": 1, "state": "b"}, "more": [{"number": 2, "state": "a"}]}'


def make_kind() -> type[msgspec.Struct]:
    """Make a kind of row that nobody has decoded yet."""
    state: Any = enum.StrEnum("state", {"A": "a", "B": "b"})
    part: Any = msgspec.defstruct("Part", [("number", int), ("state", state)], frozen=True)
    return msgspec.defstruct("Kind", [("state", state), ("one", part), ("more", tuple[part, ...])], frozen=True)


def decode_at_once() -> None:
    """Let some threads decode each of many new kinds. msgspec alone ends the process here, within a second."""
    sys.setswitchinterval(1e-6)  # seconds
    for _ in range(KINDS):
        kind, start = make_kind(), threading.Barrier(THREADS)

        def decode(kind: type[msgspec.Struct] = kind, start: threading.Barrier = start) -> None:
            start.wait()
            records.decode(kind, BODY)

        threads = [threading.Thread(target=decode) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_threads_may_meet_a_kind_for_the_first_time_at_once() -> None:
    """As the call that begins the first operation of a process does, and the thread that carries it out."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.nexus.keys.test_first_decode"], timeout=at_most(30), capture_output=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    decode_at_once()
