"""The table of what is served in which state, and the state that a nexus starts in."""

from dataclasses import replace

import pytest

from common.errors import RecoveringError, SealedError, ShardholdError, WrongStateError
from nexus.lifecycle.states import SERVED, State, check_served, initial_state
from nexus.server.methods import list_methods
from nexus.store.protocol import Meta, Phase
from shardhold.v1 import cluster_pb2, policies_pb2, recovery_pb2, secrets_pb2

UNINITIALISED, INITIALISING, RECOVERING, SEALED, READY = State
OK, WRONG = None, WrongStateError

# Design §5, row by row; None: served. ConfirmInit in ready gives the same answer again.
TABLE: dict[str, tuple[type[ShardholdError] | None, ...]] = {
    "GetStatus": (OK, OK, OK, OK, OK),
    "BeginInit": (OK, OK, WRONG, WRONG, WRONG),
    "ConfirmInit": (WRONG, OK, WRONG, WRONG, OK),
    "AbortInit": (WRONG, OK, WRONG, WRONG, WRONG),
    "Seal": (WRONG, WRONG, OK, OK, OK),
    "AcceptOlderStore": (WRONG, WRONG, OK, WRONG, WRONG),
    "StartUnseal": (WRONG, WRONG, OK, OK, WRONG),
    "GetSealingKey": (WRONG, WRONG, OK, OK, WRONG),
    "SubmitShare": (WRONG, WRONG, OK, OK, WRONG),
    "GetProgress": (WRONG, WRONG, OK, OK, WRONG),
    "ResetUnseal": (WRONG, WRONG, OK, OK, WRONG),
}
EVERYTHING_ELSE = (WRONG, WRONG, RecoveringError, SealedError, OK)

EMPTY = Meta(Phase.EMPTY, b"", False, 0, 0, 0, 0, 0, 0, 0)

SERVICES = [
    *secrets_pb2.DESCRIPTOR.services_by_name.values(),
    *policies_pb2.DESCRIPTOR.services_by_name.values(),
    *cluster_pb2.DESCRIPTOR.services_by_name.values(),
    *recovery_pb2.DESCRIPTOR.services_by_name.values(),
]
RPCS = [rpc.name for service in SERVICES for rpc in service.methods]


@pytest.mark.parametrize("rpc", RPCS)
def test_every_rpc_is_served_where_the_table_says_and_refused_elsewhere(rpc: str) -> None:
    """Sealed and recovering are said only where waiting helps; everything else is a call in the wrong state."""
    for state, wanted in zip(State, TABLE.get(rpc, EVERYTHING_ELSE), strict=True):
        if wanted is None:
            check_served(rpc, state)
            continue
        with pytest.raises(ShardholdError) as caught:
            check_served(rpc, state)
        assert type(caught.value) is wanted, state


def test_every_row_of_the_table_is_an_rpc() -> None:
    """No row is left over from an RPC that was renamed: it would silently be served in ready only."""
    assert set(TABLE) == set(SERVED)
    assert set(TABLE) < set(RPCS)


def test_every_rpc_of_the_contracts_is_in_the_table_of_methods() -> None:
    """The services walked here are the ones that the server binds."""
    handlers = _AnyHandler()
    bound = list_methods(handlers, handlers, handlers, handlers)  # type: ignore[arg-type]
    assert [method.name.rpartition("/")[2] for method in bound] == RPCS


def test_a_refusal_names_rpc_state_and_what_is_wanted() -> None:
    """An administrator reads from the message what to do."""
    with pytest.raises(WrongStateError, match="AbortInit in state ready, want initialising"):
        check_served("AbortInit", READY)


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


class _AnyHandler:
    """Has a handler of every name."""

    def __getattr__(self, name: str) -> object:
        return lambda call, request: None
