"""`common.server.workers`: whose turn it is, and who has too many calls."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from common.server.workers import Workers
from tests.kit.patience import at_most


class Bench:
    """One worker that is busy until `go_on`, for at most three calls of each caller."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.done: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self.refused: list[object] = []
        self.workers = Workers(
            1,
            name_caller=lambda arguments: str(arguments[0]),
            refuse=lambda arguments: self.refused.append(arguments[1]),
            per_caller=3,
        )

    def submit(self, caller: str, *names: str) -> None:
        for name in names:
            self.workers.submit(self._work, caller, name)

    def occupy(self) -> None:
        started = threading.Event()

        def wait(*_: object) -> None:
            started.set()
            self.go_on.wait(at_most(30))

        self.workers.submit(wait, "first", "")
        assert started.wait(at_most(10))

    def drain(self, count: int) -> list[str]:
        return [self.done.get(timeout=at_most(10))[1] for _ in range(count)]

    def _work(self, caller: str, name: str) -> None:
        self.done.put((caller, name))
        assert self.workers.caller == caller


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.go_on.set()
    bench.workers.shutdown()


def test_callers_take_turns(bench: Bench) -> None:
    """A caller with one call waits for one call of each other, not for all that the others have sent before it."""
    bench.occupy()
    assert not bench.workers.is_short()
    bench.submit("a", "a1", "a2", "a3")
    bench.submit("b", "b1", "b2")
    bench.submit("c", "c1")
    assert bench.workers.is_short()
    bench.go_on.set()
    assert bench.drain(6) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_one_caller_has_few_calls(bench: Bench) -> None:
    """A caller's fourth call is refused while three wait or run, and others have theirs."""
    bench.occupy()
    bench.submit("a", "a1", "a2", "a3", "a4")
    bench.submit("b", "b1")
    assert bench.refused == ["a4"]
    bench.go_on.set()
    assert sorted(bench.drain(4)) == ["a1", "a2", "a3", "b1"]
    bench.submit("a", "a5")
    assert bench.drain(1) == ["a5"]


def test_a_call_that_raises_counts_no_longer(bench: Bench) -> None:
    """What a call raises goes to its future, and its place is free again."""

    def fail(*_: object) -> None:
        raise LookupError("no")

    for _ in range(5):
        with pytest.raises(LookupError):
            bench.workers.submit(fail, "a", "").result(at_most(10))
    assert bench.refused == []
