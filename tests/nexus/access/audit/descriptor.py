"""An open file of this process, replaced by one that fails."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path, *, by: str) -> Iterator[None]:
    """Let the descriptor of *path* lead to the file *by*: writes to /dev/full fail, and so do syncs of /dev/null."""
    fd = next(fd for fd in _list_descriptors() if _points_to(fd, path.resolve()))
    other, kept = os.open(by, os.O_RDWR), os.dup(fd)
    try:
        os.dup2(other, fd)
        yield
    finally:
        os.dup2(kept, fd)
        os.close(other)
        os.close(kept)


def _list_descriptors() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


def _points_to(fd: int, path: Path) -> bool:
    try:
        return Path(f"/proc/self/fd/{fd}").readlink() == path
    except FileNotFoundError:
        return False
