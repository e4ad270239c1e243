"""How long a recovery took."""

import pytest

from nexus.lifecycle.recovery_time import RecoveryTime
from nexus.lifecycle.states import State
from tests.kit.manual_clock import ManualClock

RECOVERING, READY, SEALED = State.RECOVERING, State.READY, State.SEALED


@pytest.mark.parametrize(
    ("walk", "seconds"),
    [
        pytest.param([State.UNINITIALISED, State.INITIALISING, READY], None, id="init is none"),
        pytest.param([RECOVERING, READY], 10, id="from the start"),
        pytest.param(
            [RECOVERING, READY, READY, RECOVERING, RECOVERING, READY], 10, id="the last one, from where it goes on"
        ),
        pytest.param([RECOVERING, READY, RECOVERING], 10, id="one that is not over does not count yet"),
        pytest.param([SEALED, READY], None, id="an unseal is none"),
        pytest.param([RECOVERING, SEALED, READY], None, id="one that a seal ended"),
    ],
)
def test_time_from_recovering_to_ready(walk: list[State], seconds: float | None) -> None:
    """Ten seconds pass in each state."""
    clock = ManualClock()
    time = RecoveryTime(clock, walk[0])
    for state in walk[1:]:
        clock.advance(10)
        time.follow(state)
    assert time.last_s == seconds
