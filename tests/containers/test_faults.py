"""Under load, whatever fails: callers notice nothing while t keepers are there, and what ended comes back by itself.

The last test leaves the stack on other images.
"""

import random

import pytest

from tests.containers.disturbance import disturbed
from tests.containers.shared import SharedStacks
from tests.containers.stack import SERVERS, Stack, Status, rebuild_images
from tests.containers.traffic import check_ledger, flowing, with_load

SEED = 20_261_128
KILLS = 3
MANY = 50  # puts and gets

ONE_BY_ONE = (
    {"keeper_1": "pause"},
    {"keeper_2": "kill"},
    {"keeper_3": "cut"},
    {"keeper_4": "crash"},
    {"keeper_5": "pause"},
)
IN_GROUPS = (  # n − t
    {"keeper_1": "pause", "keeper_2": "pause"},
    {"keeper_3": "kill", "keeper_4": "kill"},
    {"keeper_5": "cut", "keeper_1": "cut"},
    {"keeper_2": "cut", "keeper_3": "pause"},
    {"keeper_4": "kill", "keeper_5": "pause"},
)


@pytest.fixture(scope="module")
def shared(stacks: SharedStacks) -> Stack:
    """The stack under load."""
    return stacks.take("load", with_load())


@pytest.fixture
def stack(shared: Stack) -> Stack:
    """The stack, whole before each test."""
    shared.restore()
    return shared


def test_nexus_killed(stack: Stack) -> None:
    """A nexus that dies comes back ready by itself; retries cover it, and no acknowledged write is lost."""
    with flowing(stack) as traffic:
        for _ in range(KILLS):
            stack.crash("nexus")
            traffic.wait_answered()
        print(f"\nseconds without an answer after each kill of the nexus: {traffic.gaps}")
    assert not traffic.failed_calls
    assert traffic.failed_tries, "nobody noticed that the nexus was killed"
    assert check_ledger(traffic)


def test_keepers_gone(stack: Stack) -> None:
    """Up to n − t keepers may be away in any way: status names them, and not one try of a caller fails."""
    with flowing(stack) as traffic:
        for group in (*ONE_BY_ONE, *IN_GROUPS):
            with disturbed(stack, **group):
                if "crash" not in group.values():  # which is back at once
                    _wait_named(stack, set(group))
                traffic.wait_answered()
            stack.wait_filled()
    assert not traffic.failed_tries


def test_too_few_keepers(stack: Stack) -> None:
    """Without t keepers a running nexus goes on; a restarted one says what is missing, until it is there again."""
    with flowing(stack) as traffic:
        with disturbed(stack, keeper_2="cut", keeper_3="kill"):
            with disturbed(stack, keeper_1="pause"):
                traffic.wait_answered(MANY)
                assert not traffic.failed_tries
                stack.crash("nexus")
                _wait_short(stack, "2 of 3 shards")
            stack.wait_ready()
        stack.wait_whole()
    assert not traffic.failed_calls
    assert check_ledger(traffic)


def test_partition(stack: Stack) -> None:
    """A nexus that is cut off all keepers goes on; one that restarts there waits until they are connected again."""
    with flowing(stack) as traffic:
        with disturbed(stack, nexus="cut"):
            traffic.wait_answered(MANY)
            assert not traffic.failed_tries
            stack.crash("nexus")
            _wait_short(stack, "0 of 3 shards")
        stack.wait_whole()
    assert not traffic.failed_calls
    assert check_ledger(traffic)


def test_host_restarted(stack: Stack) -> None:
    """When everything went down at once, the nexus waits for recovery shares, and everything is there again."""
    with flowing(stack) as traffic:
        traffic.wait_answered(MANY)
    services = ["identity", "app", *SERVERS]
    stack.kill(*services)
    random.Random(SEED).shuffle(services)
    stack.start(*services)
    _wait_short(stack, "0 of 3 shards")
    stack.unseal()
    stack.wait_whole()
    assert check_ledger(traffic)


def test_images_rolled(stack: Stack) -> None:
    """New images go in one container at a time, while no call of a client with retries fails."""
    stack.tag = rebuild_images(stack.tag)
    with flowing(stack) as traffic:
        for service in (*SERVERS[1:], "nexus", "identity"):
            stack.compose("up", "--detach", "--no-deps", service)
            traffic.wait_answered()
            stack.wait_whole()
        print(f"\nseconds without an answer while everything was replaced: {traffic.gaps}")
    assert not traffic.failed_calls
    assert check_ledger(traffic)
    images = {found["Config"]["Image"] for found in stack.inspect_all(*SERVERS, "identity").values()}
    assert {image.rpartition(":")[2] for image in images} == {stack.tag}


def _wait_named(stack: Stack, gone: set[str]) -> None:
    def names_them(status: Status) -> bool:
        return gone == {keeper["name"].replace("-", "_") for keeper in status["keepers"] if not keeper["reachable"]}

    stack.wait_status(f"it says that {gone} are unreachable", names_them)


def _wait_short(stack: Stack, shards: str) -> None:
    stack.wait_status(
        f"it waits with {shards}",
        lambda status: status["state"] == "recovering" and any(shards in line for line in status["blocked_by"]),
    )
