"""The identity provider gone for longer than SVIDs live: callers hear why, and with the provider everything is back.

The authority of the development provider dies with it, so that what comes back is another one.
"""

import re

import pytest

from tests.containers.shared import SharedStacks
from tests.containers.stack import SERVERS, Stack
from tests.containers.traffic import Traffic, check_ledger, flowing, with_load

LIFETIME_S = 15
OWN = "IdentityUnavailableError: the SVID of spiffe://dev.shardhold/team/app expired at "
# Its own or that of the nexus, or its own by the clock of the nexus.
EXPIRED = re.compile("the SVID of spiffe://.* expired|the certificate of spiffe://.* is not valid now")


@pytest.fixture(scope="module")
def stack(stacks: SharedStacks) -> Stack:
    """The stack under load, with SVIDs that live for seconds."""
    return stacks.take("load", with_load(lifetime_s=LIFETIME_S))


def test_provider_gone(stack: Stack) -> None:
    """Without a provider callers notice nothing until SVIDs expire, then hear that; with it all goes on."""
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
    stack.wait_whole()
    assert _count_restarts(stack) == restarts, "only the provider was away"


def test_restarts_meanwhile(stack: Stack) -> None:
    """A nexus and keepers that restart while there is no provider wait for it, and need nothing else."""
    with flowing(stack) as traffic:
        stack.kill("identity")
        _wait_expired(stack, traffic)
        stack.crash("nexus", "keeper-1", "keeper-2")
        stack.wait("they were started again", lambda: stack.is_running("nexus", "keeper-1", "keeper-2"))
        stack.start("identity")
        traffic.wait_answered()
        stack.wait_whole()
    assert check_ledger(traffic)


def _wait_expired(stack: Stack, traffic: Traffic) -> None:
    seen = len(traffic.failed_calls)
    stack.wait("callers hear that their SVID expired", lambda: len(traffic.failed_calls) > seen)


def _count_restarts(stack: Stack) -> dict[str, int]:
    return {service: found["RestartCount"] for service, found in stack.inspect_all(*SERVERS).items()}
