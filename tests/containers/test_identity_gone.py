"""The identity provider gone for longer than SVIDs live: callers hear why, and with the provider everything is back.

The authority of the development provider dies with it, so that what comes back is another one.
"""

import re
from collections.abc import Iterator

import pytest

from tests.containers.stack import SERVERS, Stack, running
from tests.containers.traffic import Traffic, check_ledger, flowing, with_load

LIFETIME_S = 15
OWN = "IdentityUnavailableError: the SVID of spiffe://dev.shardhold/team/app expired at "
# Its own or that of the nexus, or its own by the clock of the nexus.
EXPIRED = re.compile("the SVID of spiffe://.* expired|the certificate of spiffe://.* is not valid now")


@pytest.fixture(scope="module")
def stack(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose SVIDs live for seconds."""
    with running(tmp_path_factory.mktemp("identity"), images, override=with_load(lifetime_s=LIFETIME_S)) as own:
        own.wait_filled()
        yield own


def test_provider_gone(stack: Stack) -> None:
    """While SVIDs are good nothing is felt; then callers hear that theirs expired; with the provider all goes on."""
    restarts = _count_restarts(stack)
    with flowing(stack) as traffic:
        stack.kill("identity")
        traffic.wait_answered()
        _wait_expired(stack, traffic)
        stack.start("identity")
        traffic.wait_answered()
    assert any(OWN in error for error in traffic.failed_calls)
    assert not [error for error in traffic.failed_calls if not EXPIRED.search(error)]
    assert check_ledger(traffic)
    stack.wait_filled()
    assert _count_restarts(stack) == restarts, "only the provider was away"


def test_restarts_meanwhile(stack: Stack) -> None:
    """Who restarts while there is no provider waits for it, and needs nobody else."""
    with flowing(stack) as traffic:
        stack.kill("identity")
        _wait_expired(stack, traffic)
        stack.crash("nexus", "keeper-1", "keeper-2")
        stack.wait("they were started again", lambda: all(map(stack.is_running, ("nexus", "keeper-1", "keeper-2"))))
        stack.start("identity")
        traffic.wait_answered()
        stack.wait_filled()
    assert check_ledger(traffic)


def _wait_expired(stack: Stack, traffic: Traffic) -> None:
    seen = len(traffic.failed_calls)
    stack.wait("callers hear that their SVID expired", lambda: len(traffic.failed_calls) > seen)


def _count_restarts(stack: Stack) -> dict[str, int]:
    return {service: stack.inspect(service)["RestartCount"] for service in SERVERS}
