"""How long the nexus took to get its root key back."""

from common.clock import Clock
from nexus.lifecycle.states import State


class RecoveryTime:
    """Told of each change of state by one thread at a time; `last_s` may be read by any."""

    def __init__(self, clock: Clock, state: State) -> None:
        """The nexus begins in *state*."""
        self._clock = clock
        self._since: float | None = None
        self.last_s: float | None = None  # from the start, or from the loss of the key, to ready; None: not yet
        self.follow(state)

    def follow(self, state: State) -> None:
        """Take note that the nexus is in *state* from now on."""
        now = self._clock.monotonic()
        if state is State.RECOVERING:
            self._since = now
            return
        if state is State.READY and self._since is not None:
            self.last_s = now - self._since
        self._since = None
