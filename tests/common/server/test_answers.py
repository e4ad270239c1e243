"""`common.server.answers`: what is counted, who makes room, and when an answer is ended. Nothing here waits."""

import grpc
import pytest

from common.errors import OverloadedError
from common.server.answers import LARGE, MIB, OVERHEAD, Answer, Answers

READER, HOARDER, OTHER = "spiffe://example.test/reader", "spiffe://example.test/hoarder", "spiffe://example.test/other"


class Ledger:
    """Answers of at most 4 MiB for each caller and 6 MiB in all, and what was ended of them."""

    def __init__(self) -> None:
        self.ended: dict[str, grpc.StatusCode] = {}
        self.answers = Answers[str](self._end, per_caller=4 * MIB, most=6 * MIB, drain_s=5.0)

    def fill(self, caller: str, size: int, *names: str) -> list[Answer[str]]:
        return [self.answers.open(caller, name, size - OVERHEAD) for name in names]

    def sweep(self, times: int) -> None:
        for _ in range(times):
            self.answers.sweep()

    def _end(self, name: str, code: grpc.StatusCode, details: str) -> None:
        self.ended[name] = code


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_what_was_read_is_no_longer_counted(ledger: Ledger) -> None:
    """An answer counts with its bytes and what a call costs, until its stream ends; that may be noted twice."""
    (answer,) = ledger.fill(READER, MIB, "a")
    assert ledger.answers.size == MIB
    answer.close()
    answer.close()
    assert ledger.answers.size == 0
    for _ in range(20):
        for one in ledger.fill(READER, MIB, "b", "c", "d", "e"):
            one.close()
    assert ledger.ended == {}


def test_a_large_answer_that_does_not_fit_is_refused(ledger: Ledger) -> None:
    """While what the caller has is young, it is kept, and the newcomer is refused."""
    ledger.fill(HOARDER, MIB, "a", "b", "c", "d")
    with pytest.raises(OverloadedError, match="4 MiB of answers"):
        ledger.fill(HOARDER, MIB, "e")
    assert ledger.ended == {}
    assert ledger.answers.size == 4 * MIB


def test_old_answers_make_room(ledger: Ledger) -> None:
    """What has not been read for two seconds makes room, the oldest first and no more than is needed."""
    ledger.fill(HOARDER, MIB, "a", "b", "c", "d")
    ledger.sweep(5)
    ledger.fill(HOARDER, MIB, "e")
    assert ledger.ended == {"a": grpc.StatusCode.UNAVAILABLE}
    assert ledger.answers.size == 4 * MIB


def test_a_small_answer_is_never_refused(ledger: Ledger) -> None:
    """A small answer, which may tell of a change that was made, ends the caller's oldest, however young."""
    ledger.fill(HOARDER, MIB, "a", "b", "c", "d")
    ledger.fill(HOARDER, LARGE, "e")
    assert set(ledger.ended) == {"a"}
    for number in range(1000):
        ledger.answers.open(HOARDER, str(number), 0)
    assert ledger.answers.size <= 4 * MIB
    assert len(ledger.ended) >= 1000 - 4 * MIB // OVERHEAD


def test_the_budget_of_all_is_taken_from_who_has_most(ledger: Ledger) -> None:
    """A caller that has little is served beside callers that fill the whole budget."""
    ledger.fill(HOARDER, MIB, "a", "b", "c", "d")
    ledger.fill(OTHER, MIB, "e", "f")
    ledger.fill(READER, MIB, "g")
    assert set(ledger.ended) == {"a"}
    assert ledger.answers.size == 6 * MIB


def test_what_is_not_read_in_time_is_ended(ledger: Ledger) -> None:
    """A small answer is ended after five seconds, a large one after the time that a slow link takes for it."""
    ledger.fill(HOARDER, MIB, "large")
    ledger.fill(HOARDER, 2 * OVERHEAD, "small")
    ledger.sweep(10)
    assert ledger.ended == {}
    ledger.sweep(1)
    assert ledger.ended == {"small": grpc.StatusCode.DEADLINE_EXCEEDED}
    ledger.sweep(15)
    assert "large" not in ledger.ended
    ledger.sweep(1)
    assert set(ledger.ended) == {"small", "large"}
    assert ledger.answers.size == 0
