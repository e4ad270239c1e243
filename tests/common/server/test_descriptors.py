"""The soft limit of open files is raised, never lowered, and no further than the hard one."""

import resource
from collections.abc import Iterator

import pytest

from common.server.descriptors import allow_descriptors


@pytest.fixture(autouse=True)
def hard_limit() -> Iterator[int]:
    """Return the hard limit; both limits are put back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def read_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_a_low_limit_is_raised(hard_limit: int) -> None:
    """From what many systems give to what a server wants."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard_limit))
    assert allow_descriptors(768) == read_limit() == 768


def test_a_high_limit_stays() -> None:
    """What is ample is not lowered."""
    before = read_limit()
    assert allow_descriptors(64) == read_limit() == before


def test_the_hard_limit_is_the_end(hard_limit: int) -> None:
    """Where the system allows less than is wanted, the server takes all of it."""
    if hard_limit == resource.RLIM_INFINITY:
        pytest.skip("no hard limit here")
    assert allow_descriptors(hard_limit + 1) == read_limit() == hard_limit
