"""Rotations where backups are configured: one of before is wanted, one of after is made, and older ones still open."""

import os
from contextlib import AbstractContextManager

import pytest

from common.errors import BackupError, ConflictError, OperationRefusedError
from nexus.admin.operations.rotate_plan import RotatePlan
from nexus.keys.backup_key import find_backup_key
from nexus.keys.records import GenerationState
from nexus.keys.verified_backup import find_backup
from nexus.store.protocol import StoreCopy
from tests.kit.waiting import wait_until
from tests.nexus.admin.backup.world import World
from tests.nexus.core import OPERATOR, SUPERUSER

FORCED = RotatePlan(is_forced=True)


def rotate(world: World, plan: RotatePlan = FORCED) -> None:
    """Rotate, and drive it until nothing of before is left."""
    core = world.core
    core.operations.rotate(SUPERUSER, os.urandom(16), plan, "drill", dry_run=False)

    def has_ended() -> bool:
        core.driver.step()
        if world.facts.operation is None:
            try:
                core.job.step()
            except ConflictError:
                return False
        return world.facts.operation is None and len(core.lifecycle.require_serving().keyring.list_keks()) == 1

    wait_until(has_ended, what="rest")


@pytest.fixture
def world(world: World) -> World:
    """One whose rows all open, with its keepers full."""
    with world.core.store.read() as reader:
        (row,) = reader.scan_versions(limit=2)
    world.store.write(lambda writer: writer.delete_secret(row.path))
    world.core.pool.start()
    wait_until(lambda: world.core.pool.count_holders() == 3)
    return world


def test_a_rotation_wants_a_backup_of_before_and_makes_one_of_after(world: World) -> None:
    """Both verified; with the second, the KEK of before goes."""
    with pytest.raises(OperationRefusedError) as refused:
        rotate(world)
    assert refused.value.reason == "BACKUP_OLD"
    older = world.core.backups.create(OPERATOR)
    world.core.backups.verify(OPERATOR)
    rotate(world)
    evidence = find_backup(world.facts)
    assert evidence is not None
    assert evidence.generation == 2
    assert world.facts.generations[1].state is GenerationState.RETIRED
    assert len(world.list_names()) == 2
    assert world.core.backups.verify(OPERATOR, older.name).file == older


def test_older_backups_open_although_nobody_makes_a_newer_one(world: World) -> None:
    """The identity followed the flip."""
    older = world.core.backups.create(OPERATOR)
    rotate(world, RotatePlan(is_forced=True, without_backup="drill"))
    assert world.list_names() == [older.name]
    assert world.core.backups.verify(OPERATOR).file == older


def test_after_an_emergency_another_identity_opens_backups(world: World) -> None:
    """Whoever has the old root key may have the identity of before."""
    older = world.core.backups.create(OPERATOR)
    before = find_backup_key(world.facts)
    rotate(world, RotatePlan(is_emergency=True))
    after = find_backup_key(world.facts)
    assert before is not None
    assert after is not None
    assert after.recipient != before.recipient
    with pytest.raises(BackupError, match="not for this identity"):
        world.core.backups.verify(OPERATOR, older.name)


def test_an_emergency_that_comes_before_the_copy_has_its_own_identity(world: World) -> None:
    """No backup of the new generation is for the identity that was given up."""

    class Rotating:
        def copy(self) -> AbstractContextManager[StoreCopy]:
            world.copied = world.store
            rotate(world, RotatePlan(is_emergency=True, without_backup="drill"))
            return world.store.copy()

    world.copied = Rotating()
    made = world.core.backups.create(OPERATOR)
    assert world.core.backups.verify(OPERATOR).file == made
