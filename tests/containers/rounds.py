"""Which of these tests run this time: containers are slow, and what no promise rests on takes turns.

Rules:
 1. Without `TEST_ROUND`, an integer that is one more in each run, all tests run.
 2. A test that docs/promises.md names runs each time.
 3. Every other test, and each cell of a named test that has parameters, runs each third time.
"""

import re
from collections.abc import Container
from pathlib import Path
from zlib import crc32

ROUNDS = 3
PROMISES = Path(__file__).parent.parent.parent / "docs" / "promises.md"

_TEST = re.compile(r"`(tests/[a-z0-9_/]+\.py::(?:Test\w+::)?test_\w+)`")


def parse_round(text: str) -> int | None:
    """Return the number of this run, as `TEST_ROUND` has it, or None if all tests run.

    Raises:
        ValueError: It is no integer.
    """
    try:
        return int(text) if text else None
    except ValueError as exc:
        raise ValueError(f"TEST_ROUND is {text!r}, want an integer") from exc


def load_named() -> frozenset[str]:
    """Return the ids of the tests that docs/promises.md names, without parameters."""
    return frozenset(_TEST.findall(PROMISES.read_text()))


def is_due(nodeid: str, number: int, named: Container[str]) -> bool:
    """Return whether a test, as pytest names it, runs in round *number*."""
    return nodeid in named or crc32(nodeid.encode()) % ROUNDS == number % ROUNDS
