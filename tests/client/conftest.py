"""What the SDK's tests share: one development authority, a provider for each test, and waiting for a condition."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from time import monotonic

import pytest

from pilot.dev.ca import DevelopmentCA
from pilot.dev.provider import IdentityProvider

WaitUntil = Callable[..., None]


@pytest.fixture(scope="session")
def ca() -> DevelopmentCA:
    """Authority of example.org; tests that need another make one."""
    return DevelopmentCA("example.org")


@pytest.fixture
def provider(ca: DevelopmentCA, tmp_path: Path) -> Iterator[IdentityProvider]:
    """Provider whose SVIDs live an hour: they rotate when a test says so."""
    with IdentityProvider(tmp_path / "sockets", ca, lifetime=timedelta(hours=1)) as provider:
        yield provider


@pytest.fixture
def wait_until() -> WaitUntil:
    """Wait for a condition, and fail when it does not hold within *timeout* seconds."""

    def wait(condition: Callable[[], object], *, timeout: float = 10.0) -> None:
        deadline, pause = monotonic() + timeout, threading.Event()
        while not condition():
            assert monotonic() < deadline, f"not so within {timeout:g} s"
            pause.wait(0.01)

    return wait
