"""Backups, as people ask for them: real processes write and read them, and the nexus believes only its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from common.errors import (
    BackupError,
    DeniedError,
    InvalidArgumentError,
    NotFoundError,
    WrongStateError,
)
from common.forms.audit.entry import Entry
from common.forms.backup.header import check_signature
from common.forms.backup.opened import decode_opened
from common.keys import age, opener
from nexus.admin.backup.backups import BackupSetup
from nexus.admin.backup.retention import Retention
from nexus.keys.backup_key import find_backup_key
from nexus.keys.operation.evidence import Backup
from nexus.keys.verified_backup import LAST_BACKUP, find_backup, find_record
from nexus.store.protocol import StoreCopy
from nexus.store.sqlite.store import SqliteStore
from tests.kit.backups import make_stream
from tests.nexus.admin.backup.world import IDENTITY_FILE, LIMIT_S, RECIPIENT, World
from tests.nexus.cluster import tamper
from tests.nexus.core import AUDITOR, OPERATOR, SUPERUSER, NexusCore
from tests.nexus.store.contract import make_row, put


def test_a_backup_is_made_verified_and_remembered(world: World) -> None:
    """By its nexus, which opens it with an identity of the cluster; and each step is in the audit."""
    file = world.core.backups.create(OPERATOR)
    assert world.list_names() == [file.name]
    assert (world.folder / file.name).stat().st_mode & 0o777 == 0o600
    assert find_backup(world.facts) is None
    world.core.clock.advance(3600)
    verified = world.core.backups.verify(OPERATOR)
    assert verified.file == file
    assert verified.contents.rows["versions"] == 1
    assert verified.contents.rows["control"] == len(world.facts.bodies)  # one more by now, and the manifest
    header = verified.contents.header
    assert (header.timeline, header.generation, header.revision) == (file.timeline, file.generation, file.revision)
    assert verified.verified_at - header.created_at == 3_600_000_000
    assert find_backup(world.facts) == Backup(header.generation, header.created_at)  # verifying makes nothing younger
    assert world.core.backups.list(AUDITOR) == [(file, verified.verified_at)]
    assert world.core.backups.newest is None  # until somebody looks
    world.core.driver.step()  # it looks at the rows for others too
    assert world.core.backups.newest == find_record(world.facts)
    world.core.backups.look(None)
    assert world.core.backups.newest is None
    entries = {entry.action: entry for entry in [*world.core.list_all_entries(), *list_changes(world.core)]}
    assert entries["backup.create"].detail == entries["backup.verify"].detail == file.name
    key = find_backup_key(world.facts)
    assert key is not None
    assert entries["backup.key"].detail == key.recipient


def list_changes(core: NexusCore) -> list[Entry]:
    """List the entries of changes."""
    return [entry for _, entry in core.list_change_entries()]


def test_its_recipient_opens_it_without_a_nexus(world: World) -> None:
    """With the file of an identity, and nobody else; and sees by the genesis that it is the cluster's."""
    path = str(world.folder / world.core.backups.create(OPERATOR).name)
    contents = decode_opened(opener.read_backup(path, IDENTITY_FILE, time_limit=LIMIT_S)).contents
    assert check_signature(contents, genesis=world.cluster.genesis) == world.cluster.chain
    with pytest.raises(BackupError, match="not for this identity"):
        opener.read_backup(path, bytes(32), time_limit=LIMIT_S)
    with pytest.raises(InvalidArgumentError, match="holds no identity"):
        opener.read_backup(path, b"AGE-SECRET-KEY-1NONE", time_limit=LIMIT_S)


def test_a_damaged_backup_is_named_and_not_remembered(world: World) -> None:
    """Bits flipped at the beginning, in the middle and at the end; cut; something else; nothing at all."""
    file = world.core.backups.create(OPERATOR)
    path = world.folder / file.name
    whole = path.read_bytes()

    def flip(at: int) -> bytes:
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    for damaged in (flip(60), flip(len(whole) // 2), flip(-2 % len(whole)), whole[:-1], whole + b"x", b"age", b""):
        path.write_bytes(damaged)
        with pytest.raises(BackupError, match=file.name):
            world.core.backups.verify(OPERATOR, file.name)
    assert find_record(world.facts) is None
    path.unlink()
    with pytest.raises(NotFoundError):
        world.core.backups.verify(OPERATOR, file.name)


def test_a_backup_that_somebody_else_made_is_refused(world: World) -> None:
    """Everybody knows the recipients; nobody else has the audit key."""
    file = world.core.backups.create(OPERATOR)
    key = find_backup_key(world.facts)
    assert key is not None
    with (world.folder / file.name).open("wb") as forged:
        age.encrypt([make_stream()], forged, [RECIPIENT, key.recipient])
    with pytest.raises(BackupError, match="another cluster"):
        world.core.backups.verify(OPERATOR)


def test_the_newest_one_stays_remembered(world: World) -> None:
    """Whoever verifies an older one afterwards learns that it is whole, and no more."""
    backups = world.core.backups
    older = backups.create(OPERATOR)
    newer = backups.create(OPERATOR)
    assert [file for file, _ in backups.list(OPERATOR)] == sorted([older, newer], key=lambda one: one.age_key)[::-1]
    put(world.store, replace(make_row("app/other"), kek_id=world.facts.kek_id))
    newest = backups.create(OPERATOR)
    assert backups.verify(OPERATOR).file == newest
    assert backups.verify(OPERATOR, older.name).file == older
    record = find_record(world.facts)
    assert record is not None
    assert record.name == newest.name


def test_damage_of_the_store_is_found_in_its_backup(world: World) -> None:
    """A control row that somebody edited is named: what restores from there would lack it."""
    tamper(world.database.parent, "UPDATE control SET body = x'7b7d' WHERE kind = 'policy'")
    world.core.backups.create(OPERATOR)
    with pytest.raises(BackupError, match="do not verify: policy/"):
        world.core.backups.verify(OPERATOR)


class OtherStore:
    """A store of another cluster."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    @contextmanager
    def copy(self) -> Iterator[StoreCopy]:
        """Copy it."""
        with self._store.copy() as copy:
            yield replace(copy, meta=replace(copy.meta, cluster_id=bytes(16)))


def test_another_store_is_not_backed_up(world: World) -> None:
    """Not by the recipients of this one, nor signed by it."""
    world.copied = OtherStore(world.store)
    with pytest.raises(BackupError, match="another cluster's store"):
        world.core.backups.create(OPERATOR)
    assert world.list_names() == []


def test_the_nexus_makes_one_for_itself(world: World) -> None:
    """Made, verified and remembered; the entry is the one that it is given."""
    entries: list[int] = []
    evidence = world.core.backups.make_verified(lambda writer, key: entries.append(writer.revision))
    assert evidence == find_backup(world.facts) == world.core.backups.find_newest()
    assert entries == [world.facts.meta.revision]


def test_without_configuration_there_are_none(world: World) -> None:
    """Every call says what is missing."""
    world.core.backups._setup = None
    for call in (world.core.backups.create, world.core.backups.list, world.core.backups.verify):
        with pytest.raises(WrongStateError, match="no backups are configured"):
            call(SUPERUSER)


def test_an_auditor_only_looks(world: World) -> None:
    """Making and opening backups is for operators."""
    call: Callable[..., object]
    for call in (world.core.backups.create, world.core.backups.verify):
        with pytest.raises(DeniedError):
            call(AUDITOR)
    assert world.core.backups.list(AUDITOR) == []
    assert LAST_BACKUP not in world.facts.bodies


def test_prune_by_hand(world: World) -> None:
    """It says what it would remove, and then removes that; without a retention it says what is missing."""
    core = world.core
    files = []
    for _ in range(3):
        files.append(core.backups.create(OPERATOR))
        core.clock.advance(86_400)
    with pytest.raises(WrongStateError, match="no retention is configured: backup.keep_last"):
        core.backups.prune_for(OPERATOR, dry_run=False)
    core.backups._setup = BackupSetup(world, world.directory, [RECIPIENT], Retention(last=1, minimum=1))
    outdated = [files[1].name, files[0].name]
    for dry_run in (True, False):
        assert [file.name for file in core.backups.prune_for(OPERATOR, dry_run=dry_run)] == outdated
        assert len(world.list_names()) == (3 if dry_run else 1)
    details = [entry.detail for entry in core.list_all_entries() if entry.action == "backup.prune"]
    assert details[-2:] == [f"2 would be removed: {', '.join(outdated)}", f"2 removed: {', '.join(outdated)}"]
    with pytest.raises(DeniedError):
        core.backups.prune_for(AUDITOR, dry_run=True)
