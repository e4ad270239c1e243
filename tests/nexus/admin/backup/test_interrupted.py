"""Backups that something comes between: another one, a full disk, a seal, the end of the nexus."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.errors import (
    BackupUnavailableError,
    SealedError,
    ShardholdError,
)
from common.forms.backup.header import Header
from nexus.admin.backup.children import Children
from nexus.admin.backup.directory import BackupDirectory
from nexus.admin.backup.writing import write_backup
from nexus.lifecycle.states import State
from nexus.store.protocol import StoreCopy
from tests.kit.backups import HEADER
from tests.kit.patience import join
from tests.nexus.admin.backup.world import LIMIT_S, RECIPIENT, World
from tests.nexus.core import OPERATOR


def test_one_at_a_time(world: World) -> None:
    """A second one is refused while the first is made, and nothing is verified meanwhile."""
    older = world.core.backups.create(OPERATOR)
    begun, go = threading.Event(), threading.Event()
    answers: list[object] = []

    class Slow:
        @contextmanager
        def copy(self) -> Iterator[StoreCopy]:
            with world.store.copy() as copy:
                begun.set()
                assert go.wait(LIMIT_S)
                yield copy

    world.copied = Slow()
    thread = threading.Thread(target=lambda: answers.append(world.core.backups.create(OPERATOR)))
    thread.start()
    assert begun.wait(LIMIT_S)
    with pytest.raises(BackupUnavailableError, match="another backup"):
        world.core.backups.create(OPERATOR)
    with pytest.raises(BackupUnavailableError, match="another backup"):
        world.core.backups.verify(OPERATOR, older.name)
    go.set()
    thread.join(LIMIT_S)
    assert len(answers) == 1


def test_a_machine_that_is_out_of_threads_fails_the_backup_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an error that the schedule knows: one that it does not would end its thread, and the nexus with it."""

    def fail(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Timer, "start", fail)
        with pytest.raises(BackupUnavailableError, match="no thread can be started"):
            world.core.backups.create(OPERATOR)
    assert world.list_names() == []
    made = world.core.backups.create(OPERATOR)
    assert world.list_names() == [made.name]


def test_a_full_disk_leaves_nothing_half(world: World) -> None:
    """The process that writes says so, and the file is gone."""
    full = os.open("/dev/full", os.O_WRONLY)

    class Full(BackupDirectory):
        @contextmanager
        def create(self, header: Header) -> Iterator[tuple[int, str]]:
            with super().create(header) as (fd, name):
                os.dup2(full, fd)
                yield fd, name

    world.use(Full(world.folder, nexus="n1"))
    with pytest.raises(BackupUnavailableError, match="No space left"):
        world.core.backups.create(OPERATOR)
    os.close(full)
    assert world.list_names() == []


def test_what_a_killed_nexus_left_is_removed(world: World) -> None:
    """Only its own: another nexus may be writing to the same directory."""
    name = "shardhold-0a9d6f9c-t1-g1-r3-20250101T000000Z-25fb96c0.age"
    mine, others = f".{name}.n1.new", f".{name}.n2.new"
    for left in (mine, others, "notes.txt"):
        (world.folder / left).touch()
    file = world.core.backups.create(OPERATOR)
    assert world.list_names() == sorted([others, "notes.txt", file.name])
    assert [one for one, _ in world.core.backups.list(OPERATOR)] == [file]


def test_a_directory_that_is_not_there_is_named(world: World) -> None:
    """With its option."""
    world.folder.rmdir()
    for call in (world.core.backups.create, world.core.backups.list, world.core.backups.verify):
        with pytest.raises(BackupUnavailableError, match="backup.directory"):
            call(OPERATOR)


def test_a_nexus_that_ends_makes_none(world: World) -> None:
    """Nor does it wait for one."""
    world.core.backups.stop()
    with pytest.raises(BackupUnavailableError, match="ends"):
        world.core.backups.create(OPERATOR)
    assert world.list_names() == []


def test_a_seal_ends_a_backup(world: World) -> None:
    """There is no key left to sign with, and nothing of it stays."""

    class Sealing(BackupDirectory):
        @contextmanager
        def create(self, header: Header) -> Iterator[tuple[int, str]]:
            with super().create(header) as made:
                world.core.lifecycle.withdraw(State.SEALED, seconds=0)
                yield made

    world.use(Sealing(world.folder, nexus="n1"))
    with pytest.raises(SealedError):
        world.core.backups.create(OPERATOR)
    assert world.list_names() == []


def test_a_seal_ends_a_verification(world: World) -> None:
    """Its child holds the identity of the cluster: it is killed, whether it has begun to read or not."""
    file = world.core.backups.create(OPERATOR)
    os.mkfifo(world.folder / "fifo")
    (world.folder / file.name).unlink()
    (world.folder / file.name).symlink_to("fifo")
    errors: list[BaseException] = []

    def check() -> None:
        try:
            world.core.backups.check(file, lambda writer, key: None)
        except ShardholdError as exc:
            errors.append(exc)

    thread = threading.Thread(target=check)
    thread.start()
    with (world.folder / "fifo").open("wb"):  # opened once the child reads
        world.core.lifecycle.withdraw(State.SEALED, seconds=0)
        join(thread, LIMIT_S)
    assert "died" in str(errors[0])
    with subprocess.Popen(["true"]) as child, pytest.raises(SealedError):  # that was started a moment too late
        world.core.backups._adopt(child)


@pytest.mark.parametrize("limit", [LIMIT_S, 0.01])
def test_a_process_that_is_killed_is_told_from_a_full_disk(world: World, limit: float) -> None:
    """Whether the nexus ends, or it was not done in time; the call does not wait for ever."""
    children = Children()

    def sign(message: bytes) -> bytes:
        if limit == LIMIT_S:
            children.stop()
        return bytes(64)

    null = os.open(os.devnull, os.O_WRONLY)
    with world.store.copy() as copy, pytest.raises(BackupUnavailableError, match="died, or was not done in time"):
        write_backup(copy, HEADER, [RECIPIENT], null, sign, children=children, time_limit=limit)
    os.close(null)
