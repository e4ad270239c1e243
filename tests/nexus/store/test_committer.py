"""Group commit: who leads, who shares, and who gets which outcome."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from common.errors import OutcomeUnknownError
from nexus.store.committer import GROUP, GroupCommitter, Turn
from tests.kit.patience import patiently
from tests.nexus.store.contract import threads

T = TypeVar("T")


class _Engine:
    """Runs batches, the first one only after `go`; counts the turns that have come to wait."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        self.breaks = False
        self.waited = 0
        self.committer: GroupCommitter[str] = GroupCommitter(self.run)

    def submit(self, work: Callable[[str], T]) -> T:
        return self.committer.submit(_CountedTurn(work, self))

    def run(self, batch: Sequence[Turn[str, object]]) -> None:
        self.batches.append(len(batch))
        assert patiently(self.go.wait, 20)
        if self.breaks:
            raise MemoryError
        for turn in batch:
            turn.run("writer")


class _CountedTurn(Turn[str, T]):
    """Tells its engine that it stands among those that wait."""

    __slots__ = ("_engine",)
    _mutex = threading.Lock()

    def __init__(self, work: Callable[[str], T], engine: _Engine) -> None:
        super().__init__(work)
        self._engine = engine

    def wait(self) -> None:
        with self._mutex:
            self._engine.waited += 1
        super().wait()


def test_waiting_turns_share_a_batch(wait_until: Callable[..., None]) -> None:
    """What comes while a batch runs is the next batch, as one, and each caller gets its own outcome."""
    engine = _Engine()
    results: dict[int, object] = {}

    def submit(name: int) -> None:
        def work(writer: str) -> str:
            if name == 3:
                raise KeyError(name)
            return f"{writer} {name}"

        try:
            results[name] = engine.submit(work)
        except KeyError as exc:
            results[name] = exc.args[0]

    with threads(submit, 1):
        wait_until(lambda: engine.batches == [1])
        with threads(lambda index: submit(index + 1), 8):
            wait_until(lambda: engine.waited == 8)
            engine.go.set()
    assert engine.batches == [1, 8]
    assert results == {name: 3 if name == 3 else f"writer {name}" for name in range(9)}


def test_a_batch_has_a_limit(wait_until: Callable[..., None]) -> None:
    """More turns than one batch takes make another, and all have their outcome."""
    engine = _Engine()
    results: list[str] = []

    def submit(_: int) -> None:
        results.append(engine.submit(str.upper))

    with threads(submit, 1):
        wait_until(lambda: engine.batches == [1])
        with threads(submit, GROUP + 1):
            wait_until(lambda: engine.waited == GROUP + 1)
            engine.go.set()
    assert engine.batches == [1, GROUP, 1]
    assert results == ["WRITER"] * (GROUP + 2)


def test_a_runner_that_breaks_leaves_nobody_waiting(wait_until: Callable[..., None]) -> None:
    """Nothing is known of any turn of a batch that breaks off, whoever leads it; the next batch goes on."""
    engine = _Engine()
    errors: list[type[BaseException]] = []

    def submit(_: int) -> None:
        with pytest.raises(OutcomeUnknownError) as caught:
            engine.submit(str.upper)
        errors.append(type(caught.value.__cause__ or caught.value))

    engine.breaks = True
    with threads(submit, 1):
        wait_until(lambda: engine.batches == [1])
        with threads(submit, 3):
            wait_until(lambda: engine.waited == 3)
            engine.go.set()
    assert errors == [MemoryError] * 4
    engine.breaks = False
    assert engine.submit(str.upper) == "WRITER"
