"""The one place that knows in which state the nexus is, and what it serves with."""

import threading
from collections.abc import Callable

import structlog

from common.errors import RecoveringError, SealedError, WrongStateError
from nexus.quorum.pool import KeeperPool
from nexus.recovery import Recovery
from nexus.serving import Serving
from nexus.states import State, check_served

log = structlog.get_logger("nexus")


class Lifecycle:
    """Thread-safe. `on_change` is called by the thread that changes the state, `on_failure` ends the process."""

    def __init__(
        self,
        initial: State,
        pool: KeeperPool,
        *,
        on_change: Callable[[State], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._state = initial
        self._serving: Serving | None = None
        self._pool = pool
        self._on_change = on_change
        self._on_failure = on_failure
        self._recovery: Recovery | None = None
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        return self._state

    @property
    def blocked_by(self) -> list[str]:
        """Say what keeps the nexus from being ready; empty when it is."""
        if self._state is State.READY:
            return []
        if self._state is State.RECOVERING and self._recovery is not None:
            return [self._recovery.missing]
        return [f"the nexus is {self._state}"]

    def check_served(self, rpc: str) -> None:
        """Refuse *rpc* unless it is served now; raises as `nexus.states.check_served`."""
        check_served(rpc, self._state)

    def require_serving(self) -> Serving:
        """Return what a ready nexus serves with.

        Raises:
            SealedError, RecoveringError, WrongStateError: The nexus is not ready.
        """
        serving = self._serving
        if serving is None:
            if self._state is State.SEALED:
                raise SealedError("the nexus is sealed")
            if self._state is State.RECOVERING:
                raise RecoveringError("the nexus is recovering its root key")
            raise WrongStateError(f"the nexus is {self._state}")
        return serving

    def recover(self, recovery: Recovery, stopping: threading.Event) -> None:
        """Run *recovery* to its end and become ready; returns early when *stopping* is set."""
        self._recovery = recovery
        serving = recovery.run(stopping)
        if serving is not None:
            self.become_ready(serving)

    def become_initialising(self) -> None:
        """An init has begun."""
        self._change(State.INITIALISING)

    def become_ready(self, serving: Serving) -> None:
        """Serve with *serving* from here on, and keep the keepers filled."""
        with self._lock:
            self._serving = serving
            self._pool.keep(serving.shard_set)
        self._change(State.READY)

    def give_up(self, reason: str) -> None:
        """End the process: what is in the store is not known any more, and only a new start can tell."""
        self._on_failure(reason)

    def wipe(self) -> None:
        """Forget every key; for the end of the process."""
        with self._lock:
            serving, self._serving = self._serving, None
        if serving is not None:
            serving.release()

    def _change(self, state: State) -> None:
        if state is not self._state:
            log.info("state changed", before=self._state.value, now=state.value)
            self._state = state
            self._on_change(state)
