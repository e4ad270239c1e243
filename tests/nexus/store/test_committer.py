"""Group commit: who leads, who shares, and who gets which outcome."""

import threading
from collections.abc import Callable, Sequence

import pytest

from common.errors import OutcomeUnknownError
from nexus.store.committer import GROUP, GroupCommitter, Turn
from tests.kit.patience import patiently
from tests.nexus.store.contract import threads


class _Engine:
    """Runs batches, the first one only after `go`."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        self.breaks = False
        self.committer: GroupCommitter[str] = GroupCommitter(self.run)

    def run(self, batch: Sequence[Turn[str, object]]) -> None:
        self.batches.append(len(batch))
        assert patiently(self.go.wait, 20)
        if self.breaks:
            raise MemoryError
        for turn in batch:
            turn.run("writer")


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
            results[name] = engine.committer.submit(Turn(work))
        except KeyError as exc:
            results[name] = exc.args[0]

    with threads(submit, 1):
        wait_until(lambda: engine.batches == [1])
        with threads(lambda index: submit(index + 1), 8):
            wait_until(lambda: engine.committer.waiting == 8)
            engine.go.set()
    assert engine.batches == [1, 8]
    assert results == {name: 3 if name == 3 else f"writer {name}" for name in range(9)}


def test_a_batch_has_a_limit(wait_until: Callable[..., None]) -> None:
    """More turns than one batch takes make another, and all have their outcome."""
    engine = _Engine()
    results: list[str] = []

    def submit(_: int) -> None:
        results.append(engine.committer.submit(Turn[str, str](str.upper)))

    with threads(submit, 1):
        wait_until(lambda: engine.batches == [1])
        with threads(submit, GROUP + 1):
            wait_until(lambda: engine.committer.waiting == GROUP + 1)
            engine.go.set()
    assert engine.batches == [1, GROUP, 1]
    assert results == ["WRITER"] * (GROUP + 2)


def test_a_runner_that_breaks_leaves_nobody_waiting(wait_until: Callable[..., None]) -> None:
    """The leader of a batch that breaks off gets the error, the others that nothing is known; the next goes on."""
    engine = _Engine()
    errors: list[type[BaseException]] = []

    def submit(_: int) -> None:
        with pytest.raises((MemoryError, OutcomeUnknownError)) as caught:
            engine.committer.submit(Turn(str.upper))
        errors.append(caught.type)

    engine.breaks = True
    with threads(submit, 1):
        wait_until(lambda: engine.batches == [1])
        with threads(submit, 3):
            wait_until(lambda: engine.committer.waiting == 3)
            engine.go.set()
    assert sorted(error.__name__ for error in errors) == ["MemoryError"] * 2 + ["OutcomeUnknownError"] * 2
    engine.breaks = False
    assert engine.committer.submit(Turn(str.upper)) == "WRITER"
