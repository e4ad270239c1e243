"""What the SDK's tests share: a development authority, a provider for each test, both clients, waiting, loops."""

import asyncio
import gc
import inspect
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pilot.dev.provider import IdentityProvider
from shardhold import Client
from tests.client.bridge import LoopThread, MakeClient, find_leftovers
from tests.client.servers import Nexus
from tests.kit import patience, waiting
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most

WaitUntil = Callable[..., None]
Eventually = Callable[..., Awaitable[None]]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test in a loop of its own; fail it if it leaves a task behind or a callback failed."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    troubles: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        await pyfuncitem.obj(**arguments)
        assert await find_leftovers() == set()

    with asyncio.Runner(debug=True) as runner:
        runner.run(run())
    gc.collect()  # forgotten objects may complain now
    assert troubles == []
    return True


@pytest.fixture(scope="session")
def ca() -> Authority:
    """Return the authority of example.org; tests that need another create one."""
    return Authority("example.org")


@pytest.fixture
def provider(ca: Authority, tmp_path: Path) -> Iterator[IdentityProvider]:
    """Return a provider whose SVIDs live an hour: they rotate when a test says so."""
    with IdentityProvider(tmp_path / "sockets", ca, lifetime=timedelta(hours=1)) as provider:
        yield provider


@pytest.fixture
def wait_until() -> WaitUntil:
    """Wait for a condition, and fail when it does not hold in time."""
    return waiting.wait_until


@pytest.fixture
def eventually() -> Eventually:
    """Wait for a condition while the event loop goes on, and fail when it does not hold within *timeout* seconds."""

    async def wait(condition: Callable[[], object], *, timeout: float = 30.0) -> None:
        deadline = patience.Deadline(timeout)
        while not condition():
            assert not deadline.is_over(), f"not so within {timeout:g} s"
            await asyncio.sleep(0.005)

    return wait


@pytest.fixture(params=["Client", "AsyncClient"])
def make(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Return a function that makes a client of either kind; the asyncio one is called through a loop in a thread."""
    if request.param == "Client":
        yield Client
        return
    with LoopThread() as loop:
        yield loop.make_client


@pytest.fixture
def nexus(ca: Authority) -> Iterator[Nexus]:
    """Run a server."""
    nexus = Nexus(ca)
    yield nexus
    nexus.stop()


@pytest.fixture
def client(make: MakeClient, nexus: Nexus, ca: Authority) -> Iterator[Client]:
    """Connect to the nexus as the workload /team/app."""
    with make(nexus.address, FixedIdentity(ca.issue("/team/app")), timeout=at_most(10)) as client:
        yield client
