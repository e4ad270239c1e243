"""`AsyncClient` behind the interface of `Client`, so that the tests of one run with the other."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, cast

from shardhold import AsyncClient, Client, Entry, Version

MakeClient: TypeAlias = Callable[..., Client]
_T = TypeVar("_T")

_PATIENCE_S = 30.0


class LoopThread:
    """An event loop that runs in a thread, and the clients that are used in it.

    It fails at its end if a task was left behind or a callback failed.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_debug(True)
        self._troubles: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self._troubles.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop")

    def make_client(self, *args: Any, **kwargs: Any) -> Client:
        """Make an `AsyncClient` and enter it."""
        return self.bridge(AsyncClient(*args, **kwargs))

    def bridge(self, client: AsyncClient) -> Client:
        """Enter *client*, and return it behind the interface of `Client`."""
        return cast(Client, _Bridge(self, client))

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Return what *coroutine* returns in the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_S)

    def __enter__(self) -> "LoopThread":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left = self.run(find_leftovers())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        assert (left, self._troubles) == (set(), [])


async def find_leftovers() -> set["asyncio.Task[Any]"]:
    """Return the tasks, besides this one, that do not end by themselves in a moment."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if not others:
        return set()
    _, left = await asyncio.wait(others, timeout=5)
    return left


class _Bridge:
    """One client. Its methods may be called from any thread."""

    def __init__(self, loop: LoopThread, client: AsyncClient) -> None:
        self._loop = loop
        self._client = client
        loop.run(client.__aenter__())

    def __repr__(self) -> str:
        return repr(self._client)

    def __enter__(self) -> "_Bridge":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._loop.run(self._client.close())

    def list(self, *args: Any, **kwargs: Any) -> Iterator[Entry]:
        """Iterate over `AsyncClient.list`."""
        return self._iterate(self._client.list(*args, **kwargs))

    def versions(self, *args: Any, **kwargs: Any) -> Iterator[Version]:
        """Iterate over `AsyncClient.versions`."""
        return self._iterate(self._client.versions(*args, **kwargs))

    def _iterate(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        async def fetch() -> _T | None:
            return await anext(items, None)

        while (item := self._loop.run(fetch())) is not None:
            yield item

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._loop.run(method(*args, **kwargs))
