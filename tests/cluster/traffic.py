"""Calls that go on and on while something happens to the cluster: both clients of the SDK, readers and writers."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any

import grpc

from shardhold import AsyncClient, Client, Error
from shardhold.identity import IdentitySource
from tests.kit.cluster import Cluster
from tests.kit.patience import join

PAUSE_S = 0.002  # between two calls of one worker, so that the machine is not full of them
TICK_S = 0.05
WORKERS = ("put", "get", "async put", "async get")


class Traffic:
    """Four workers as one workload, which may read and write below *folder*. Every try that fails is noted.

    So is one that the SDK makes good by another: a dropped call is one even when nobody felt it.
    """

    def __init__(self, address: str, identity: IdentitySource, folder: str) -> None:
        self.failures: list[str] = []
        self.answered = dict.fromkeys(WORKERS, 0)
        self.standstill = 0.0  # seconds; the longest time for which this machine let nobody run
        self._address = address
        self._identity = identity
        self._paths = {"put": f"{folder}/sync", "async put": f"{folder}/async"}  # each has one writer
        self._written = dict.fromkeys(self._paths, 1)  # the number that was acknowledged last
        self._stop = threading.Event()

    @contextmanager
    def flowing(self) -> Iterator["Traffic"]:
        """Let the calls flow for as long as the block lasts."""
        with Client(self._address, self._identity) as client:
            for path in self._paths.values():
                client.put(path, {"number": "1"})
            methods: Any = client._methods
            methods |= {name: self._watch(name, method) for name, method in methods.items()}
            loops = (
                lambda: self._put_on(client),
                lambda: self._get_on(client),
                lambda: asyncio.run(self._run_async()),
                self._watch_machine,
            )
            threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
            for thread in threads:
                thread.start()
            try:
                yield self
            finally:
                self._stop.set()
                for thread in threads:
                    join(thread, 60)
        assert not any(thread.is_alive() for thread in threads), "a worker hangs in a call"

    def wait_answered(self, cluster: Cluster, count: int) -> None:
        """Wait until each worker got *count* more answers."""
        wanted = {worker: answered + count for worker, answered in self.answered.items()}
        cluster.wait(
            f"each worker got {count} more answers",
            lambda: all(self.answered[worker] >= number for worker, number in wanted.items()),
        )

    def _watch_machine(self) -> None:
        ticked = monotonic()
        while not self._stop.wait(TICK_S):
            now = monotonic()
            self.standstill = max(self.standstill, now - ticked - TICK_S)
            ticked = now

    def _put_on(self, client: Client) -> None:
        while not self._stop.wait(PAUSE_S):
            with self._noted("put"):
                number = self._written["put"] + 1
                client.put(self._paths["put"], {"number": str(number)})
                self._written["put"] = number

    def _get_on(self, client: Client) -> None:
        while not self._stop.wait(PAUSE_S):
            with self._noted("get"):
                before = self._written["put"]
                self._check(before, client.get(self._paths["put"]).fields)

    async def _run_async(self) -> None:
        async with AsyncClient(self._address, self._identity) as client:
            methods: Any = client._methods
            methods |= {name: self._watch_async(name, method) for name, method in methods.items()}
            await asyncio.gather(self._put_on_async(client), self._get_on_async(client))

    async def _put_on_async(self, client: AsyncClient) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(PAUSE_S)
            with self._noted("async put"):
                number = self._written["async put"] + 1
                await client.put(self._paths["async put"], {"number": str(number)})
                self._written["async put"] = number

    async def _get_on_async(self, client: AsyncClient) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(PAUSE_S)
            with self._noted("async get"):
                before = self._written["async put"]
                self._check(before, (await client.get(self._paths["async put"])).fields)

    @contextmanager
    def _noted(self, worker: str) -> Iterator[None]:
        try:
            yield
        except Error as exc:
            self.failures.append(f"{worker}: {exc}")
        else:
            self.answered[worker] += 1

    @contextmanager
    def _noted_try(self, name: str) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as exc:
            self.failures.append(f"a try of {name}: {exc.code()} {exc.details()}")
            raise

    def _watch(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, **options: Any) -> Any:
            with self._noted_try(name):
                return method(request, **options)

        return call

    def _watch_async(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, **options: Any) -> Any:
            with self._noted_try(name):
                return await method(request, **options)

        return call

    def _check(self, before: int, fields: Mapping[str, bytes]) -> None:
        if int(fields["number"]) < before:
            self.failures.append(f"a get gave put {fields['number']!r}, after put {before} was acknowledged")
