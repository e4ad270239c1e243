"""`common.server.arrival`: which calls without a message are ended, and when."""

import grpc
import pytest

from common import errors
from common.server.arrival import Arrivals

LATE, MANY = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED


class Ended(list[tuple[str, grpc.StatusCode]]):
    """Records what was ended, in order."""

    def note(self, call: str, code: grpc.StatusCode, details: str) -> None:
        assert details
        self.append((call, code))


def make(ended: Ended, *, per_caller: int, wait_s: float = 2.0, is_short: bool = True) -> Arrivals[str]:
    return Arrivals(ended.note, is_short=lambda: is_short, per_caller=per_caller, wait_s=wait_s)


def sweep(arrivals: Arrivals[str], times: int) -> None:
    for _ in range(times):
        arrivals.sweep()


def test_call_without_a_message_ends_after_its_time() -> None:
    """A call without its message ends after 20 sweeps, 2 s, and only once, however long its worker takes to leave."""
    ended = Ended()
    arrivals = make(ended, per_caller=2, wait_s=2.0)
    arrival = arrivals.enter("a", "call")
    sweep(arrivals, 19)
    assert not ended
    sweep(arrivals, 5)
    assert ended == [("call", LATE)]
    assert arrival.code is LATE
    arrivals.leave("a", arrival)


def test_younger_slow_calls_of_one_caller_are_ended() -> None:
    """Of one caller's five slow calls the two oldest stay; another caller's calls are counted apart."""
    ended = Ended()
    arrivals = make(ended, per_caller=2)
    for number in range(5):
        arrivals.enter("a", f"a{number}")
        arrivals.enter("b", f"b{number}") if number < 2 else None
    sweep(arrivals, 4)
    assert not ended
    arrivals.sweep()
    assert ended == [(f"a{number}", MANY) for number in (2, 3, 4)]


def test_further_calls_of_a_caller_with_slow_ones_are_refused() -> None:
    """A caller at its limit of slow calls gets no further one, until one of them leaves."""
    arrivals = make(Ended(), per_caller=2)
    first = arrivals.enter("a", "a0")
    arrivals.enter("a", "a1")
    for _ in range(100):  # none is slow yet: a rush of honest calls
        arrivals.leave("a", arrivals.enter("a", "rush"))
    sweep(arrivals, 5)
    with pytest.raises(errors.OverloadedError):
        arrivals.enter("a", "a2")
    arrivals.enter("b", "b0")
    arrivals.leave("a", first)
    arrivals.enter("a", "a3")


def test_slow_calls_are_let_be_with_workers_to_spare() -> None:
    """While no call waits for a worker, a caller may have many slow calls, until they are too old."""
    ended = Ended()
    arrivals = make(ended, per_caller=2, wait_s=2.0, is_short=False)
    for number in range(5):
        arrivals.enter("a", f"a{number}")
    sweep(arrivals, 19)
    arrivals.enter("a", "a5")
    assert not ended
    arrivals.sweep()
    assert ended == [(f"a{number}", LATE) for number in range(5)]


def test_calls_that_are_not_slow_are_not_counted() -> None:
    """A rush of calls is admitted whole as long as their messages arrive."""
    ended = Ended()
    arrivals = make(ended, per_caller=1)
    waiting = [arrivals.enter("a", "rush") for _ in range(100)]
    arrivals.sweep()
    waiting += [arrivals.enter("a", "rush") for _ in range(100)]
    for arrival in waiting:
        arrivals.leave("a", arrival)
    sweep(arrivals, 30)
    assert not ended
    assert {arrival.code for arrival in waiting} == {grpc.StatusCode.OK}
