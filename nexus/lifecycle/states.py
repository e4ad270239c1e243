"""The states of a nexus, and how it refuses a call that its state does not serve: pure rules, no I/O.

    uninitialised ──BeginInit──▶ initialising ──ConfirmInit──▶ ready
    recovering ──a threshold of shards, or of recovery shares──▶ ready
    ready, recovering ──Seal──▶ sealed ──a threshold of recovery shares──▶ ready
    ready ──a rollback mark newer than the store, or a store that is not as this nexus left it──▶ recovering
    recovering, sealed ──a threshold, and such a mark──▶ recovering, blocked ──AcceptOlderStore──▶ ready
    recovering, sealed ──a threshold, and a gap in the audit──▶ recovering, blocked ──AcceptNewChain──▶ ready

- The store tells which state a nexus starts in: an empty store is uninitialised, one whose init has begun is
  initialising, a sealed one is sealed, and any other is recovering.
- Which RPC is served in which states stands in `nexus.access.calls`.
- An RPC that is served only in ready needs the root key. In sealed and recovering it is refused with an error of that
  name, since the caller may wait; before the cluster exists it is a call in the wrong state.
- Any other RPC, outside the states that serve it, is a call in the wrong state.
- Blocked is recovering with a proved key that is not used. The store stays as it was: if it is marked sealed, the nexus
  is sealed again after a restart.
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


NO_CLUSTER = frozenset({State.UNINITIALISED, State.INITIALISING})
READY_ONLY = frozenset({State.READY})


def initial_state(meta: Meta) -> State:
    """Return the state that a nexus with this store starts in."""
    if meta.phase is Phase.EMPTY:
        return State.UNINITIALISED
    if meta.phase is Phase.INITIALISING:
        return State.INITIALISING
    return State.SEALED if meta.sealed else State.RECOVERING


def check_served(rpc: str, served: frozenset[State], state: State) -> None:
    """Refuse *rpc*, which is *served* in these states, unless *state* is one of them.

    Raises:
        SealedError, RecoveringError: It is served in ready alone, and the cluster exists.
        WrongStateError: Waiting does not help.
    """
    if state in served:
        return
    if served == READY_ONLY and state is State.SEALED:
        raise SealedError("the nexus is sealed")
    if served == READY_ONLY and state is State.RECOVERING:
        raise RecoveringError("the nexus is recovering its root key")
    wanted = ", ".join(sorted(served))
    raise WrongStateError(f"{rpc} in state {state}, want {wanted}")
