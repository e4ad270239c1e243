"""Waits are longer on a busy machine, and ask for that only once their time is over."""

import os
import threading

import pytest

from tests.kit.patience import LONGEST, Deadline, at_most, join, patience, patiently, wait_until


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the machine says to be its load for each processor; the last of them stays."""
    said = [0.0]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "getloadavg", lambda: (2 * (said.pop(0) if len(said) > 1 else said[0]), 0.0, 0.0))
    return said


@pytest.mark.parametrize(("busy", "times"), [(0.0, 1), (0.9, 1), (2.5, 2.5), (6.0, 6), (70.0, 6)])
def test_patience_grows_with_the_load(load: list[float], busy: float, times: float) -> None:
    """As many times as there is more to do than processors, from once to six times."""
    load[:] = [busy]
    assert patience(10) == pytest.approx(10 * times)
    assert patience(10) <= at_most(10) == 10 * LONGEST


def test_a_wait_goes_on_when_its_time_is_over_and_the_machine_is_busy(load: list[float]) -> None:
    """The load counts that the machine has then, not at the beginning."""
    looks: list[int] = []
    load[:] = [0.0]
    assert not wait_until(lambda: looks.append(0), seconds=0.02, pause=0.005)
    load[:] = [1000.0]
    began = len(looks)
    deadline = Deadline(0.02)
    assert not wait_until(lambda: looks.append(0), seconds=0.02, pause=0.005)
    assert deadline.is_over()
    assert len(looks) > began
    assert wait_until(lambda: "there", seconds=0) == "there"


def test_what_is_waited_for_gets_the_rest_of_the_time(load: list[float]) -> None:
    """A wait that came back in vain is asked once more, with what patience adds."""
    load[:] = [3.0]
    given: list[float] = []

    def wait_in_vain(seconds: float) -> bool:
        given.append(seconds)
        return False

    assert not patiently(wait_in_vain, 10)
    assert given == pytest.approx([10, 20])
    assert patiently(lambda seconds: seconds > 15, 10)


def test_a_thread_that_goes_on_fails(load: list[float]) -> None:
    """One that ends does not."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="slow")
    thread.start()
    with pytest.raises(AssertionError, match="slow goes on after"):
        join(thread, 0.01)
    go.set()
    join(thread, 10)
