"""The asyncio twin of `shardhold.Cached`: the same rules, kept by a task."""

import asyncio
import inspect
import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from shardhold._errors import Error
from shardhold._last_good import INTERVAL_S, START_TIMEOUT_S, LastGood, Start, read_clock
from shardhold._public import public
from shardhold._results import Secret

if TYPE_CHECKING:
    from shardhold._aio_client import AsyncClient

_logger = logging.getLogger(__name__)


@public
class AsyncCached:
    """The secret at *path*, served from memory and kept fresh by a task. Anything not described here is as in `Cached`.

        async with AsyncClient() as client, AsyncCached(client, "team/app/db") as database:
            await connect(password=database.current.fields["password"])

    It does nothing until `async with` or `start` waits for the first value. It belongs to the event loop of its client;
    `current`, `age` and `error` may be read from any thread.

    Args:
        client: Makes the calls; close it after this.
        path: Path of the secret.
        interval: Seconds between two refreshes at most, while they succeed; from 0.1 to a day.
        max_age: Seconds after which `current` raises if the value was not confirmed; None: never. More than *interval*.
        start_timeout: Seconds that the first value may take.
        on_change: Called with the new secret, in the loop, once it is current; what it returns is awaited if it can be.
            No refresh happens until then. What it raises is logged and changes nothing.

    Raises:
        InvalidArgumentError: A number of seconds is not usable.
    """

    def __init__(
        self,
        client: "AsyncClient",
        path: str,
        *,
        interval: float = INTERVAL_S,
        max_age: float | None = None,
        start_timeout: float = START_TIMEOUT_S,
        on_change: Callable[[Secret], object] | None = None,
    ) -> None:
        self._client = client
        self._last_good = LastGood(path, interval=interval, max_age=max_age, start_timeout=start_timeout)
        self._on_change = on_change
        self._refresher: asyncio.Task[None] | None = None
        self._is_started = False
        self._is_closed = False

    def __repr__(self) -> str:
        return f"AsyncCached({self.path!r})"

    async def __aenter__(self) -> "AsyncCached":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def path(self) -> str:
        """Path of the secret."""
        return self._last_good.path

    @property
    def current(self) -> Secret:
        """The last good value, without waiting; see `Cached.current`."""
        return self._last_good.current

    @property
    def age(self) -> float:
        """Seconds since the nexus was asked for the current value; see `Cached.age`."""
        return self._last_good.age

    @property
    def error(self) -> Error | None:
        """Why the last refresh failed; None after one that did not."""
        return self._last_good.error

    async def start(self) -> None:
        """Wait for the first value, and keep it fresh from then on. Errors are those of `Cached`.

        Raises:
            RuntimeError: It was started or closed before.
        """
        if self._is_started or self._is_closed:
            raise RuntimeError("this was started or closed before: make another one")
        self._is_started = True
        try:
            await self._fetch_first(Start(self._last_good))
        except BaseException:
            self._is_started = False  # it may be tried again
            raise
        self._refresher = asyncio.create_task(self._keep_fresh(), name="shardhold-cached")

    async def close(self) -> None:
        """Stop refreshing, a refresh in progress included; the last value stays, and ages. Idempotent."""
        self._is_closed = True
        if self._refresher is not None and self._refresher is not asyncio.current_task():
            self._refresher.cancel()
            await asyncio.wait([self._refresher])

    async def _fetch_first(self, start: Start) -> None:
        while True:
            try:
                return await self._fetch(timeout=start.left())
            except Error as exc:
                pause = start.choose_pause(exc)
            await asyncio.sleep(pause)

    async def _fetch(self, *, timeout: float | None = None) -> None:
        asked_at = read_clock()
        secret = await self._client.get(self.path, timeout=timeout)
        if self._last_good.take(secret, asked_at=asked_at) and self._on_change is not None:
            try:
                called = self._on_change(secret)
                if inspect.isawaitable(called):
                    await called
            except asyncio.CancelledError:
                if _is_being_cancelled():
                    raise
                _logger.exception("%s: on_change awaited what was cancelled", self.path)
            except Exception:
                _logger.exception("%s: on_change raised", self.path)

    async def _keep_fresh(self) -> None:
        while not self._is_closed:
            await asyncio.sleep(self._last_good.choose_pause())
            try:
                await self._fetch()
            except Exception as exc:  # noqa: BLE001 — whatever it was, the next refresh is due
                self._last_good.fail(exc)


def _is_being_cancelled() -> bool:
    """Whether somebody cancelled this task, rather than what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
