"""Backups while keys come and go: the root key that signs, and the cluster's own identity."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import msgspec
import pytest

from common.errors import (
    BackupError,
    BackupUnavailableError,
    CorruptRowError,
    OperationRefusedError,
)
from common.forms.backup.header import Header
from nexus.admin.backup.directory import BackupDirectory
from nexus.keys import records
from nexus.keys.backup_key import BACKUP_KEY, find_backup_key
from nexus.keys.operation.record import Depth, Driver, Numbers, OperationRecord, Step
from nexus.keys.verified_backup import find_backup
from nexus.store.protocol import StoreCopy
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.admin.backup.world import World
from tests.nexus.cluster import tamper
from tests.nexus.core import OPERATOR
from tests.nexus.rotated import rotate
from tests.nexus.store.contract import make_row, put


def test_a_damaged_key_is_replaced(world: World) -> None:
    """What was made before opens with the recipients' identities only; what is made now, here as well."""
    before = world.core.backups.create(OPERATOR)
    tamper(world.database.parent, "UPDATE control SET body = x'7b7d' WHERE kind = ? AND name = ?", *BACKUP_KEY)
    with pytest.raises(CorruptRowError, match="backup-key/current does not verify"):
        world.core.backups.verify(OPERATOR)
    after = world.core.backups.create(OPERATOR)
    assert world.core.backups.verify(OPERATOR, after.name).file == after
    with pytest.raises(BackupError, match="not for this identity"):
        world.core.backups.verify(OPERATOR, before.name)


def test_a_key_whose_kek_is_gone_is_replaced(world: World) -> None:
    """As one that does not verify: backups go on."""
    before = world.core.backups.create(OPERATOR)
    key = find_backup_key(world.facts)
    assert key is not None
    world.change({BACKUP_KEY: records.encode(msgspec.structs.replace(key, kek_id=99))})
    with pytest.raises(BackupError, match="identity does not open.*KEK 99"):
        world.core.backups.verify(OPERATOR)
    after = world.core.backups.create(OPERATOR)
    assert world.core.backups.verify(OPERATOR, after.name).file == after
    with pytest.raises(BackupError, match="not for this identity"):
        world.core.backups.verify(OPERATOR, before.name)


def test_a_backup_outlives_the_root_key(world: World) -> None:
    """One of an earlier generation verifies, and is no evidence for the current one; the key follows the KEK."""
    older = world.core.backups.create(OPERATOR)
    world.core.close()
    world.core = world.start(rotate(world.cluster))
    assert world.core.backups.verify(OPERATOR).file == older
    before, evidence = find_backup_key(world.facts), find_backup(world.facts)
    assert evidence is not None
    assert evidence.generation == world.facts.generation - 1
    newer = world.core.backups.create(OPERATOR)
    after = find_backup_key(world.facts)
    assert before is not None
    assert after is not None
    assert (after.recipient, after.kek_id) == (before.recipient, world.facts.kek_id)
    assert world.core.backups.verify(OPERATOR).file == newer
    evidence = find_backup(world.facts)
    assert evidence is not None
    assert evidence.generation == world.facts.generation


def test_a_backup_of_a_history_that_was_left_is_refused(world: World) -> None:
    """Of a generation that this cluster's chain does not have."""
    world.core.close()
    world.core = world.start(rotate(world.cluster))
    world.core.backups.create(OPERATOR)
    with world.core.lifecycle.borrow() as serving:
        serving.root = replace(serving.root, chain=serving.chain.cut(0))
    with pytest.raises(BackupError, match="history that this cluster has left"):
        world.core.backups.verify(OPERATOR)


def test_a_backup_that_comes_after_the_end_of_its_generation_is_refused(world: World) -> None:
    """Whoever has an earlier root key can sign one, and it would be the newest for ever."""
    file = world.core.backups.create(OPERATOR)
    world.core.close()
    world.core = world.start(rotate(world.cluster))
    with world.core.lifecycle.borrow() as serving:
        chain = serving.chain
        early = replace(chain.links[0], revision=file.revision)
        serving.root = replace(serving.root, chain=replace(chain, links=(early, *chain.links[1:])))
    with pytest.raises(BackupError, match="generation 1 ended before that"):
        world.core.backups.verify(OPERATOR)
    assert find_backup(world.facts) is None


def test_a_backup_that_is_ahead_of_the_store_is_refused(world: World) -> None:
    """It shows that the store was put back; remembered, it would keep later ones from being it."""
    world.core.backups.create(OPERATOR)
    put(world.store, replace(make_row("app/late"), kek_id=world.facts.kek_id))
    file = world.core.backups.create(OPERATOR)
    tamper(world.database.parent, "UPDATE meta SET revision = revision - 1")
    with world.core.lifecycle.borrow() as serving:  # as of a nexus that was started on it
        standing = serving.floor.standing
        position = standing.position._replace(revision=file.revision - 1)
        serving.floor.raise_to(replace(standing, position=position))
    with pytest.raises(BackupError, match="the store was put back, or the backup is forged"):
        world.core.backups.verify(OPERATOR)
    assert find_backup(world.facts) is None


class RotatedCopies:
    """Copies of a store that were taken before the root key was replaced, for the first few times."""

    def __init__(self, store: SqliteStore, times: int) -> None:
        self._store = store
        self.left = times

    @contextmanager
    def copy(self) -> Iterator[StoreCopy]:
        """Copy it."""
        with self._store.copy() as copy:
            is_older, self.left = self.left > 0, self.left - 1
            yield replace(copy, meta=replace(copy.meta, generation=copy.meta.generation - 1)) if is_older else copy


def test_a_backup_is_made_anew_when_the_root_key_is_replaced(world: World) -> None:
    """Its signer has to be that of its rows; in the end somebody is told."""
    world.copied = RotatedCopies(world.store, 2)
    world.core.backups.create(OPERATOR)
    world.copied = RotatedCopies(world.store, 9)
    with pytest.raises(BackupUnavailableError, match="replaced"):
        world.core.backups.create(OPERATOR)
    assert len(world.list_names()) == 1


def test_a_root_key_that_is_replaced_later_signs_nothing(world: World) -> None:
    """Between the copy and the signature: the same again."""
    headers: list[Header] = []

    class Replacing(BackupDirectory):
        @contextmanager
        def create(self, header: Header) -> Iterator[tuple[int, str]]:
            headers.append(header)
            key = world.core.lifecycle.require_serving().root_key
            key.generation += len(headers) == 1
            try:
                with super().create(header) as made:
                    yield made
            finally:
                key.generation -= len(headers) == 1

    world.use(Replacing(world.folder, nexus="n1"))
    file = world.core.backups.create(OPERATOR)
    assert len(headers) == 2
    assert world.list_names() == [file.name]


def test_the_first_backup_waits_for_an_operation(world: World) -> None:
    """Its flip would leave the new key behind; once there is a key, backups are made at any time."""
    target = Numbers(world.facts.generation + 1, 2, 3)
    driver = Driver("n1", bytes(16))
    operation = OperationRecord(
        bytes(16), Depth.ROTATE, Step.PREPARED, 1, driver, "", "", 1, 1, world.facts.current, target, 3
    )
    world.change({records.OPERATION: records.encode(operation)})
    with pytest.raises(OperationRefusedError) as refused:
        world.core.backups.create(OPERATOR)
    assert refused.value.reason == "OPERATION_RUNNING"
    assert world.list_names() == []
    world.change({}, delete=records.OPERATION)
    world.core.backups.create(OPERATOR)
    world.change({records.OPERATION: records.encode(operation)})
    world.core.backups.create(OPERATOR)
    assert len(world.list_names()) == 2
