"""A fake nexus with its switches, and the clients that call it."""

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock
from typing import Any, NoReturn

from shardhold._aio_client import AsyncClient
from shardhold._calls import TIMEOUT_S
from shardhold._client import Client
from shardhold._errors import Error, IdentityUnavailableError
from shardhold.identity import Svid
from shardhold.testing._gate import Gate
from shardhold.testing._handlers import Handlers
from shardhold.testing._vault import FakeVault

CALLER = "spiffe://example.org/app"
MAX_VERSIONS = 100  # the default of a nexus's configuration

_ADDRESS = "fake.invalid:8553"  # which nothing ever connects to


class FakeNexus:
    """A nexus in memory, ready and empty, that lets its callers do everything. Thread-safe.

    Args:
        now: Gives the time, with its zone; None: the clock of this machine.
        max_versions: How many versions of a secret are kept; 0: all.
        caller: The SPIFFE ID that errors name.
    """

    def __init__(
        self, *, now: Callable[[], datetime] | None = None, max_versions: int = MAX_VERSIONS, caller: str = CALLER
    ) -> None:
        self._gate = Gate(caller)
        self._handlers = Handlers(FakeVault(now or _now, max_versions), self._gate)
        self._failures: deque[tuple[Error, bool]] = deque()
        self._lock = Lock()

    def client(self, *, timeout: float = TIMEOUT_S) -> "FakeClient":
        """Return a new client of this nexus."""
        return FakeClient(self, timeout=timeout)

    def async_client(self, *, timeout: float = TIMEOUT_S) -> "FakeAsyncClient":
        """Return a new client for asyncio; it sees the same secrets."""
        return FakeAsyncClient(self, timeout=timeout)

    def seal(self) -> None:
        """Have every call but `status` raise `SealedError`, until `unseal`."""
        with self._lock:
            self._gate.is_sealed = True

    def unseal(self) -> None:
        """Be ready again, with all secrets."""
        with self._lock:
            self._gate.is_sealed = False

    def deny(self, glob: str, *permissions: str) -> None:
        """Deny *permissions* (read, write, list, delete; none: all four) on the paths that *glob* matches.

        Globs are those of policies: `team/app/db`, `team/*/db`, `team/**`.

        Raises:
            ValueError: There is no such permission, or it is no glob.
        """
        with self._lock:
            self._gate.deny(glob, permissions)

    def allow_all(self) -> None:
        """Deny nothing any more."""
        with self._lock:
            self._gate.allow_all()

    def fail_next(self, *failures: Error, made: bool = False) -> None:
        """Have the next calls raise these errors, one each, whatever they are and without a retry.

        With *made*, the call is made all the same and only its answer is lost, as with a `DeadlineError`.

        Raises:
            TypeError: One of them is no error of the SDK, which no call raises; or it is a class.
        """
        for failure in failures:
            if not isinstance(failure, Error):
                raise TypeError(f"failures: got {failure!r}, want errors of shardhold, as NotFoundError('gone')")
        with self._lock:
            self._failures.extend((failure, made) for failure in failures)

    def _answer(self, rpc: str, request: Any) -> Any:
        with self._lock:
            failure, made = self._failures.popleft() if self._failures else (None, True)
            response = self._handlers.answer(rpc, request) if made else None
            if failure is not None:
                raise failure
            return response


class FakeClient(Client):
    """A `Client` of a fake nexus, a new one unless it is given."""

    def __init__(self, nexus: FakeNexus | None = None, *, timeout: float = TIMEOUT_S) -> None:
        super().__init__(_ADDRESS, _NoIdentity(), timeout=timeout)
        self.nexus = nexus or FakeNexus()
        self._methods = {rpc: self._bind(rpc) for rpc in self._methods}

    def _bind(self, rpc: str) -> Callable[..., Any]:
        def call(request: Any, *, timeout: float) -> Any:
            if self._channel.is_closed:
                raise ValueError("the channel is closed")
            return self.nexus._answer(rpc, request)

        return call


class FakeAsyncClient(AsyncClient):
    """An `AsyncClient` of a fake nexus, a new one unless it is given."""

    def __init__(self, nexus: FakeNexus | None = None, *, timeout: float = TIMEOUT_S) -> None:
        super().__init__(_ADDRESS, _NoIdentity(), timeout=timeout)
        self.nexus = nexus or FakeNexus()
        self._methods = {rpc: self._bind(rpc) for rpc in self._methods}

    def _bind(self, rpc: str) -> Callable[..., Any]:
        async def call(request: Any, *, timeout: float) -> Any:
            await asyncio.sleep(0)  # other tasks have their turn, as during a real call
            if self._channel.is_closed:
                raise ValueError("the channel is closed")
            return self.nexus._answer(rpc, request)

        return call


class _NoIdentity:
    """What a client that never connects is made with."""

    def current(self) -> Svid:
        raise IdentityUnavailableError("a fake client has no SVID")

    def subscribe(self, callback: Callable[[], None]) -> NoReturn:
        raise NotImplementedError("a fake client's identity never changes")

    def close(self) -> None:
        """Do nothing."""


def _now() -> datetime:
    return datetime.now(UTC)
