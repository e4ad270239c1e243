"""In which state the nexus is, and what it serves with. Who changes that is `nexus.lifecycle.warden`.

Keys are borrowed for as long as a call needs them, so that they are wiped under nobody's hands.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import structlog

from common.errors import RecoveringError, SealedError, WrongStateError
from nexus.keys.opened import Serving
from nexus.lifecycle.states import State, check_served

log = structlog.get_logger("nexus")


class Lifecycle:
    """Thread-safe. `on_change` is called by the thread that changes the state, `on_failure` ends the process."""

    def __init__(
        self, initial: State, *, on_change: Callable[[State], None], on_failure: Callable[[str], None]
    ) -> None:
        self._state = initial
        self._serving: Serving | None = None
        self._on_change = on_change
        self._on_failure = on_failure
        self._is_over = False  # shut for good: no key is installed any more
        self._borrowed = 0
        self._returned = threading.Condition()

    @property
    def state(self) -> State:
        return self._state

    def check_served(self, rpc: str, served: frozenset[State]) -> State:
        """Return the state now, if *rpc* is *served* in it; raises as `nexus.lifecycle.states.check_served`."""
        state = self._state
        check_served(rpc, served, state)
        return state

    def require_serving(self) -> Serving:
        """Return what a ready nexus serves with. Its keys are safe to use only while they are borrowed.

        Raises:
            SealedError, RecoveringError, WrongStateError: The nexus is not ready.
        """
        serving = self._serving
        if serving is None:
            with self._returned:  # state and keys change together
                serving, state = self._serving, self._state
            if serving is None:
                _refuse(state)
        return serving

    @contextmanager
    def borrow(self) -> Iterator[Serving]:
        """Use what the nexus serves with; it is wiped only after the block. Raises as `require_serving`."""
        serving = self.lend()
        try:
            yield serving
        finally:
            self.give_back()

    def lend(self) -> Serving:
        """Hand out what the nexus serves with, until `give_back`. Raises as `require_serving`."""
        with self._returned:
            serving = self.require_serving()
            self._borrowed += 1
            return serving

    def give_back(self) -> None:
        """Say that what `lend` handed out is not used any more."""
        with self._returned:
            self._borrowed -= 1
            if not self._borrowed:
                self._returned.notify_all()

    def install(self, serving: Serving) -> None:
        """Be ready, and serve with *serving* from here on.

        Raises:
            SealedError: The nexus was shut for good; *serving* stays the caller's.
        """
        with self._returned:
            if self._is_over:
                raise SealedError("the nexus is sealed, and ends")
            before, self._state, self._serving = self._state, State.READY, serving
        self._tell(before, State.READY)

    def withdraw(
        self,
        state: State,
        *,
        seconds: float,
        last_use: Callable[[Serving], None] = lambda serving: None,
        for_good: bool = False,
    ) -> None:
        """Serve no more: go to *state*, wait at most *seconds* for what is borrowed, and wipe every key.

        *last_use* gets the keys when nobody else has them, just before they are wiped. *for_good*: none follow them.
        """
        with self._returned:
            self._is_over |= for_good
            before, self._state = self._state, state
            serving, self._serving = self._serving, None
        try:
            self._tell(before, state)
        finally:
            self._wipe(serving, seconds, last_use)

    def enter(self, state: State) -> None:
        """Go to *state*, with the keys that are there."""
        with self._returned:
            before, self._state = self._state, state
        self._tell(before, state)

    def give_up(self, reason: str) -> None:
        """End the process: what is in the store is not known any more, and only a new start can tell."""
        self._on_failure(reason)

    def wipe(self) -> None:
        """Forget every key, at the end of the process."""
        with self._returned:
            serving, self._serving = self._serving, None
        self._wipe(serving, 0, lambda serving: None)

    def _tell(self, before: State, now: State) -> None:
        if now is not before:
            log.info("state changed", before=before.value, now=now.value)
            self._on_change(now)

    def _wipe(self, serving: Serving | None, seconds: float, last_use: Callable[[Serving], None]) -> None:
        if serving is None:
            return
        with self._returned:
            self._returned.wait_for(lambda: not self._borrowed, timeout=seconds)
        try:
            last_use(serving)
        finally:
            serving.release()


def _refuse(state: State) -> NoReturn:
    if state is State.SEALED:
        raise SealedError("the nexus is sealed")
    if state is State.RECOVERING:
        raise RecoveringError("the nexus is recovering its root key")
    raise WrongStateError(f"the nexus is {state}")
