"""What may befall a container for a while, and how it is undone."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.containers.stack import KEEPERS, Stack

Act = Callable[[Stack, str], None]


def _cut(stack: Stack, service: str) -> None:
    """Cut a keeper off the nexus, and the nexus off all keepers: who calls it still reaches it."""
    stack.cut(service, *(KEEPERS if service == "nexus" else ()))


def _mend(stack: Stack, service: str) -> None:
    stack.mend(service, *(KEEPERS if service == "nexus" else ()))


# way: (how it is done, how it is undone)
WAYS: dict[str, tuple[Act, Act]] = {
    "pause": (Stack.pause, Stack.unpause),  # connections stay open, and nobody answers
    "kill": (Stack.kill, Stack.start),  # refuses, and comes back when it is started
    "crash": (Stack.crash, lambda stack, service: None),  # comes back by itself
    "cut": (_cut, _mend),  # its name is gone
    "unreachable": (  # of the nexus, by those who call it
        lambda stack, service: stack.cut(service, "clients"),
        lambda stack, service: stack.mend(service, "clients"),
    ),
}


@contextmanager
def disturbed(stack: Stack, **ways: str) -> Iterator[None]:
    """Disturb services, each in its way, for as long as the block lasts: `disturbed(stack, keeper_1="pause")`.

    The last is undone first.
    """
    with ExitStack() as undone:
        for name, way in ways.items():
            service = name.replace("_", "-")
            do, undo = WAYS[way]
            do(stack, service)
            undone.callback(undo, stack, service)
        yield
