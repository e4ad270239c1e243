"""Stacks that modules share, since a start takes longer than most tests.

Rules:
 1. One stack is up at a time: who takes another one ends the one before. So modules that share a stack run one after
    another (`ORDER`).
 2. Who takes a stack gets it whole: ready, with a shard in every keeper. Each test hands it back whole, with the
    secrets that it had.
"""

from pathlib import Path

from tests.containers.stack import Override, Stack

# All modules in the order in which they run.
ORDER = (
    "test_images",  # no stack
    "test_readme",  # one of its own, of which there is nothing yet
    "test_running",  # without shells
    "test_ends",
    "test_faults",  # under load; it starts with SVIDs that live long, since those of seconds expire on a busy machine
    "test_chaos",
    "test_identity_gone",
)


class SharedStacks:
    """The one that is up, and what it is called. Not thread-safe."""

    def __init__(self, folder: Path, tag: str) -> None:
        """Start nothing; stacks will be made of images of *tag*."""
        self._folder = folder
        self._tag = tag
        self._stack: Stack | None = None
        self._name = ""

    def take(self, name: str, override: Override) -> Stack:
        """Return the stack called *name*, whole, with *override* over docker-compose.yml."""
        if self._stack is not None and self._name == name:
            self._stack.change(override)
            self._stack.restore()
            return self._stack
        self.remove()
        self._stack = Stack(self._folder, self._tag, override=override)
        try:
            self._stack.up()
            self._stack.wait_whole()
        except Exception as exc:
            exc.add_note(self._stack.compose("logs", "--no-color", "--tail", "20", check=False).stdout)
            raise
        self._name = name
        return self._stack

    def remove(self) -> None:
        """Leave nothing of the stack that is up."""
        if self._stack is not None:
            self._stack.remove()
        self._stack, self._name = None, ""
