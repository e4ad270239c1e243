"""What the SDK's tests share: a development authority, a provider for each test, waiting for a condition, loops."""

import asyncio
import gc
import inspect
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pilot.dev.provider import IdentityProvider
from tests.client.bridge import find_leftovers
from tests.kit import patience, waiting
from tests.kit.authority import Authority

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
