"""How a state refuses what it does not serve, and the state that a nexus starts in."""

from dataclasses import replace

import pytest

from common.errors import RecoveringError, SealedError, ShardholdError, WrongStateError
from nexus.lifecycle.states import READY_ONLY, State, check_served, initial_state
from nexus.store.protocol import Meta, Phase

UNINITIALISED, INITIALISING, RECOVERING, SEALED, READY = State
OK, WRONG = None, WrongStateError

EMPTY = Meta(Phase.EMPTY, b"", False, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("served", "outcomes"),
    [
        pytest.param(READY_ONLY, (WRONG, WRONG, RecoveringError, SealedError, OK), id="ready alone"),
        pytest.param({RECOVERING, SEALED}, (WRONG, WRONG, OK, OK, WRONG), id="without a key"),
        pytest.param({INITIALISING, READY}, (WRONG, OK, WRONG, WRONG, OK), id="ready among others"),
        pytest.param({RECOVERING, SEALED, READY}, (WRONG, WRONG, OK, OK, OK), id="with a cluster"),
        pytest.param(set(State), (OK, OK, OK, OK, OK), id="always"),
    ],
)
def test_an_rpc_is_served_where_its_row_says_and_refused_elsewhere(
    served: set[State], outcomes: tuple[type[ShardholdError] | None, ...]
) -> None:
    """Sealed and recovering are said only where waiting helps; everything else is a call in the wrong state."""
    for state, wanted in zip(State, outcomes, strict=True):
        if wanted is None:
            check_served("GetStatus", frozenset(served), state)
            continue
        with pytest.raises(ShardholdError) as caught:
            check_served("GetStatus", frozenset(served), state)
        assert type(caught.value) is wanted, state


def test_a_refusal_names_rpc_state_and_what_is_wanted() -> None:
    """An administrator reads from the message what to do."""
    with pytest.raises(WrongStateError, match="AbortInit in state ready, want initialising, recovering"):
        check_served("AbortInit", frozenset({RECOVERING, INITIALISING}), READY)


@pytest.mark.parametrize(
    ("meta", "state"),
    [
        pytest.param(EMPTY, UNINITIALISED, id="empty store"),
        pytest.param(replace(EMPTY, phase=Phase.INITIALISING, last_init_attempt=1), INITIALISING, id="init begun"),
        pytest.param(replace(EMPTY, phase=Phase.INITIALISED, timeline=1), RECOVERING, id="initialised"),
        pytest.param(replace(EMPTY, phase=Phase.INITIALISED, timeline=1, sealed=True), SEALED, id="sealed"),
    ],
)
def test_the_store_tells_the_state_that_a_nexus_starts_in(meta: Meta, state: State) -> None:
    """No nexus starts in ready: a root key is always recovered first."""
    assert initial_state(meta) is state
