"""Under load, whatever fails: callers notice nothing while t keepers are there, and a nexus that died comes back alone.

The tests share a stack, and each leaves it whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from tests.containers.stack import KEEPERS, Stack
from tests.containers.traffic import check_ledger, flowing

SEED = 20_261_128
KILLS = 3


@pytest.fixture
def stack(loaded_stack: Stack) -> Iterator[Stack]:
    """The stack, whole before each test."""
    loaded_stack.wait_ready()
    loaded_stack.wait_filled()
    yield loaded_stack


def test_nexus_killed(stack: Stack) -> None:
    """A nexus that dies comes back ready by itself; retries cover it, and no acknowledged write is lost."""
    with flowing(stack) as traffic:
        for _ in range(KILLS):
            stack.crash("nexus")
            traffic.wait_answered()
        print(f"\nseconds without an answer after a kill: {traffic.gaps}")
    assert not traffic.failed_calls
    assert traffic.failed_tries, "nobody noticed that the nexus was killed"
    assert check_ledger(stack, traffic.ledger)
