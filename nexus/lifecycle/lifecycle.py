"""The state of the nexus, and the keys that it serves with. `nexus.lifecycle.warden` changes both.

A call borrows the keys while it needs them, so they are never wiped in use, unless it takes longer than a withdrawal
waits.
"""

import threading
from collections import Counter
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
        self.wake = threading.Event()  # set whenever the warden's thread has to look at the situation anew
        self._is_over = False  # shut for good: no key is installed any more
        self._store_fault = ""
        self._era = 0
        self._borrowed: Counter[int] = Counter()  # how many borrow, by the era that they began in
        self._returned = threading.Condition()

    @property
    def state(self) -> State:
        return self._state

    @property
    def store_fault(self) -> str:
        """Why the store is not to be served from any more, since the nexus became ready; empty: it is."""
        return self._store_fault

    def lose_store(self, reason: str) -> None:
        """Serve nothing from the store any more: it is not as this nexus left it. The warden then ends ready.

        Waits for nothing, so a call that borrows keys may call it. Does nothing when the nexus is not ready.
        """
        with self._returned:
            if self._state is State.READY and not self._store_fault:
                self._store_fault = reason
                self.wake.set()

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
        if serving is None or self._store_fault:
            with self._returned:  # state and keys change together
                serving, state, fault = self._serving, self._state, self._store_fault
            if serving is None:
                _refuse(state)
            if fault:
                raise RecoveringError(f"the nexus does not trust its store any more: {fault}")
        return serving

    def find_serving(self) -> Serving | None:
        """Return what the nexus serves with, if it is ready; whatever is said of its store."""
        return self._serving

    @contextmanager
    def borrow(self) -> Iterator[Serving]:
        """Use what the nexus serves with; a withdrawal waits for the block to end. Raises as `require_serving`."""
        serving, era = self.lend()
        try:
            yield serving
        finally:
            self.give_back(era)

    def lend(self) -> tuple[Serving, int]:
        """Hand out what the nexus serves with, until `give_back` gets the number. Raises as `require_serving`."""
        with self._returned:
            serving = self.require_serving()
            era = self._era
            self._borrowed[era] += 1
            return serving, era

    def give_back(self, era: int) -> None:
        """Return what `lend` handed out with this number: it is no longer used."""
        with self._returned:
            self._borrowed[era] -= 1
            if not self._borrowed[era]:
                del self._borrowed[era]
                self._returned.notify_all()

    @property
    def borrowers(self) -> int:
        """How many use what the nexus serves with at this moment."""
        with self._returned:
            return self._borrowed.total()

    def wait_earlier(self, *, seconds: float) -> bool:
        """Wait for everybody who borrows now, and for nobody who borrows later; return whether all are back.

        Whoever replaces a key first and then waits may wipe the key before: nobody uses it any more.
        """
        with self._returned:
            last, self._era = self._era, self._era + 1
            return self._returned.wait_for(lambda: all(era > last for era in self._borrowed), timeout=seconds)

    def install(self, serving: Serving) -> None:
        """Become ready, and serve with *serving* from now on.

        Raises:
            SealedError: The nexus was shut for good; *serving* stays the caller's.
        """
        with self._returned:
            if self._is_over:
                raise SealedError("the nexus is sealed, and ends")
            before, self._state, self._serving = self._state, State.READY, serving
            self._store_fault = ""
        self._tell(before, State.READY)

    def withdraw(
        self,
        state: State,
        *,
        seconds: float,
        last_use: Callable[[Serving], None] = lambda serving: None,
        for_good: bool = False,
    ) -> None:
        """Stop serving: go to *state*, wait at most *seconds* for borrowed keys, and wipe every key.

        *last_use* gets the keys just before they are wiped, when no call borrows them any more or *seconds* are over.
        After a withdrawal *for_good*, no key can be installed again.
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
        """Go to *state*, and keep the keys as they are."""
        with self._returned:
            before, self._state = self._state, state
        self._tell(before, state)

    def give_up(self, reason: str) -> None:
        """End the process: what the store holds is no longer known, and only a restart can tell."""
        self._on_failure(reason)

    def wipe(self) -> None:
        """Wipe every key, at the end of the process."""
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
