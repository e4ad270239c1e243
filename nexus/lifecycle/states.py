"""The states of a nexus and what it serves in each: pure rules, no I/O.

    uninitialised ──BeginInit──▶ initialising ──ConfirmInit──▶ ready
    recovering ──a threshold of shards, or of recovery shares──▶ ready
    ready, recovering ──Seal──▶ sealed ──a threshold of recovery shares──▶ ready
    ready ──a rollback mark newer than the store──▶ recovering
    recovering, sealed ──a threshold, and such a mark──▶ recovering, blocked ──AcceptOlderStore──▶ ready

- A nexus starts in the state that its store tells: an empty store is uninitialised, a begun init is initialising, a
  sealed store is sealed, any other is recovering.
- What serves in ready alone needs the root key. Elsewhere it is refused as sealed or recovering, which the caller may
  wait for, or, before the cluster exists, as a call in the wrong state.
- What serves in other states is refused outside them as a call in the wrong state.
- Blocked is recovering with a proved key that goes nowhere. The store stays as it was: where it says sealed, a restart
  is sealed again.
- A running operation is a property of ready, not a state.
"""

import enum

from common.errors import RecoveringError, SealedError, WrongStateError
from nexus.store.protocol import Meta, Phase


class State(enum.StrEnum):
    UNINITIALISED = "uninitialised"
    INITIALISING = "initialising"
    RECOVERING = "recovering"
    SEALED = "sealed"
    READY = "ready"


ALWAYS = frozenset(State)
READY_ONLY = frozenset({State.READY})
KEYLESS = frozenset({State.RECOVERING, State.SEALED})

SERVED = {
    "GetStatus": ALWAYS,
    "BeginInit": frozenset({State.UNINITIALISED, State.INITIALISING}),
    "ConfirmInit": frozenset({State.INITIALISING, State.READY}),  # ready: the same answer again
    "AbortInit": frozenset({State.INITIALISING}),
    "Seal": frozenset({State.RECOVERING, State.SEALED, State.READY}),
    "AcceptOlderStore": frozenset({State.RECOVERING}),
    "StartUnseal": KEYLESS,
    "GetSealingKey": KEYLESS,
    "SubmitShare": KEYLESS,
    "GetProgress": KEYLESS,
    "ResetUnseal": KEYLESS,
}


def initial_state(meta: Meta) -> State:
    """Return the state that a nexus with this store starts in."""
    if meta.phase is Phase.EMPTY:
        return State.UNINITIALISED
    if meta.phase is Phase.INITIALISING:
        return State.INITIALISING
    return State.SEALED if meta.sealed else State.RECOVERING


def check_served(rpc: str, state: State) -> None:
    """Refuse *rpc* unless it is served in *state*.

    Raises:
        SealedError, RecoveringError: It is served in ready alone, and the cluster exists.
        WrongStateError: Waiting does not help.
    """
    served = SERVED.get(rpc, READY_ONLY)
    if state in served:
        return
    if served == READY_ONLY and state is State.SEALED:
        raise SealedError("the nexus is sealed")
    if served == READY_ONLY and state is State.RECOVERING:
        raise RecoveringError("the nexus is recovering its root key")
    wanted = ", ".join(sorted(served))
    raise WrongStateError(f"{rpc} in state {state}, want {wanted}")
