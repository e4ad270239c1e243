"""Whatever ends, and however: the cluster comes back by itself where it can, and else says for whom it waits."""

from tests.containers.stack import Stack


def test_up(stack: Stack) -> None:
    assert stack.wait_filled()["state"] == "ready"
    stack.crash("nexus")
    print(stack.wait_ready())
