"""Make, list and verify backups: authorised, audited, one at a time.

1. A backup is encrypted to the configured recipients, and to the verification recipient of the cluster
   (`nexus.keys.backup_key`), which the first backup draws.
2. Its stream is signed with the audit key of the generation that its rows depend on. When the root key is replaced
   meanwhile, it is made anew.
3. Verified is what opens, is whole, is signed by a generation of this cluster's own chain, and, as far as it is of the
   current generation, holds control rows that verify under the root key.
4. The newest one that was verified is remembered (`nexus.keys.verified_backup`), and no retention removes it.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from common.clock import Clock, to_micros
from common.errors import BackupError, BackupUnavailableError, WrongStateError
from common.forms.backup.header import Contents, Header
from common.forms.backup.opened import OpenedBackup, decode_opened
from common.keys import opener
from common.keys.protected import ProtectedMemory
from nexus import __version__
from nexus.access import calls
from nexus.access.gate import Caller, Gate
from nexus.admin.backup.children import Child, Children
from nexus.admin.backup.directory import BackupDirectory, BackupFile
from nexus.admin.backup.identity import ClusterIdentity
from nexus.admin.backup.proof import prove_backup
from nexus.admin.backup.retention import ALL, Retention, find_outdated
from nexus.admin.backup.writing import TIME_LIMIT_S, write_backup
from nexus.keys import records
from nexus.keys.keyed_read import read_with_key
from nexus.keys.operation.change import Change
from nexus.keys.operation.evidence import Backup
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.refusal import Refused
from nexus.keys.outbox import WriteEntry
from nexus.keys.ruled_change import commit_rule, load_facts
from nexus.keys.verified_backup import LAST_BACKUP, BackupRecord, find_backup, find_record
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import CopiedStore, Meta, Store

_ATTEMPTS: Final = 3


class _KeyReplacedError(Exception):
    """Another root key became current while the backup was made (rule 2)."""


@dataclass(frozen=True, slots=True)
class BackupSetup:
    """What the configuration says of backups."""

    store: CopiedStore
    directory: BackupDirectory
    recipients: Sequence[str]
    retention: Retention = ALL


@dataclass(frozen=True, slots=True)
class Verified:
    """A backup that was verified."""

    file: BackupFile
    contents: Contents
    verified_at: int  # microseconds since 1970


class Backups:
    """Thread-safe. *setup* None: no backups are configured, and every call says so."""

    def __init__(
        self,
        *,
        setup: BackupSetup | None,
        store: Store,
        gate: Gate,
        lifecycle: Lifecycle,
        warden: Warden,
        memory: ProtectedMemory,
        clock: Clock,
        nexus: str,
    ) -> None:
        self._setup = setup
        self._store = store
        self._gate = gate
        self._lifecycle = lifecycle
        self._warden = warden
        self._clock = clock
        self._identity = ClusterIdentity(store, lifecycle, memory, clock, nexus)
        self._children = Children()
        self._one = threading.Lock()
        self._newest: BackupRecord | None = None

    @property
    def is_configured(self) -> bool:
        return self._setup is not None

    @property
    def newest(self) -> BackupRecord | None:
        """The newest backup that was verified, as of the last look; None: none, or the nexus is not ready."""
        return self._newest

    def look(self, facts: Facts | None) -> None:
        """Take what the rows say; None: the nexus is not ready."""
        self._newest = None if facts is None else find_record(facts)

    def stop(self) -> None:
        """End whatever makes or reads a backup now."""
        self._children.stop()

    def end_running(self) -> None:
        """End what makes or reads a backup now: the nexus is not ready any more, and a child may hold a key."""
        self._children.kill()

    def create(self, caller: Caller) -> BackupFile:
        """Make a backup of the state of now.

        Raises:
            WrongStateError: None are configured, or the first one is made while an operation is in progress.
            BackupUnavailableError: Another one is being made, or the store, the process or the directory refuses.
            BackupError: The store holds what cannot be backed up.
        """
        with self._gate.role_call(calls.CREATE_BACKUP, caller) as record:
            file = self.make()
            record.detail = file.name
            return file

    def list(self, caller: Caller) -> list[tuple[BackupFile, int]]:
        """List what is in the directory, the newest first, each with when it was verified; 0: not that is known.

        Raises:
            WrongStateError, BackupUnavailableError: As `create`.
        """
        with self._gate.role_call(calls.LIST_BACKUPS, caller):
            last = find_record(self._load_facts())
            files = self._require_setup().directory.list()
            return [(file, last.verified_at if last and last.name == file.name else 0) for file in files]

    def verify(self, caller: Caller, name: str = "") -> Verified:
        """Open a backup, without *name* the newest one of this cluster, and read it through.

        Raises:
            NotFoundError: There is none.
            WrongStateError, BackupUnavailableError: As `create`.
            BackupError: It is not whole, or no nexus of this cluster made it.
        """
        with self._gate.role_call(calls.VERIFY_BACKUP, caller) as record:
            record.detail = name
            file = self._find(name)
            record.detail = file.name
            return self.check(file, record.write)

    def prune_for(self, caller: Caller, *, dry_run: bool) -> Sequence[BackupFile]:
        """Remove what retention does not keep, and return it; with *dry_run* nothing is removed.

        Raises:
            WrongStateError: None are configured, or no retention is.
            BackupUnavailableError: Another one is being made, or the directory refuses.
        """
        with self._gate.role_call(calls.PRUNE_BACKUPS, caller) as record:
            if not self._require_setup().retention.is_on:
                raise WrongStateError("no retention is configured: backup.keep_last, keep_daily and keep_weekly are 0")
            outdated = self.prune(dry_run=dry_run)
            removed = "would be removed" if dry_run else "removed"
            record.detail = f"{len(outdated)} {removed}: {', '.join(file.name for file in outdated)}"
            return outdated

    def make_verified(self, write_entry: WriteEntry) -> Backup:
        """Make a backup and verify it, for the nexus itself; *write_entry* writes the audit entry of that.

        Raises:
            WrongStateError, BackupUnavailableError, BackupError: As `create` and `verify`.
        """
        verified = self.check(self.make(), write_entry)
        return Backup(verified.contents.header.generation, verified.contents.header.created_at)

    def find_newest(self) -> Backup | None:
        """Return the newest backup that was verified, as `find_backup` of the rows as they are.

        Raises:
            SealedError, RecoveringError, WrongStateError: The nexus is not ready.
        """
        return find_backup(self._load_facts())

    def find_own(self) -> Sequence[BackupFile]:
        """List the backups of this cluster, the newest first; raises as `list`."""
        return self._require_setup().directory.list_of(self._cluster_id)

    def prune(self, *, dry_run: bool = False) -> Sequence[BackupFile]:
        """Remove the backups of this cluster that retention does not keep, and return them; raises as `list`."""
        setup = self._require_setup()
        with self._alone():
            last = find_record(self._load_facts())
            outdated = find_outdated(self.find_own(), setup.retention, verified=last.name if last else "")
            if outdated and not dry_run:
                setup.directory.remove(outdated)
        return outdated

    def make(self) -> BackupFile:
        """Make a backup, as `create`."""
        setup = self._require_setup()
        with self._alone():
            for _ in range(_ATTEMPTS):
                with contextlib.suppress(_KeyReplacedError):
                    return self._make(setup)
        raise BackupUnavailableError("the root key was replaced while the backup was made")

    def check(self, file: BackupFile, write_entry: WriteEntry) -> Verified:
        """Verify a backup and remember it, as `verify`."""
        with self._alone():
            opened = self._open(file)
        with self._lifecycle.borrow() as serving:
            prove_backup(opened, serving, read_with_key(self._store, serving, load_facts).meta)
        now = self._now
        self._remember(file, opened.contents, write_entry, now)
        return Verified(file, opened.contents, now)

    def _make(self, setup: BackupSetup) -> BackupFile:
        own, generation = self._warden.change(
            lambda serving: (self._identity.ensure(serving), serving.chain.generation)
        )
        with setup.store.copy() as copy:
            if copy.meta.generation != generation:  # an emergency has given this identity up
                raise _KeyReplacedError
            header = self._make_header(copy.meta)
            sign = functools.partial(self._sign, header.generation)
            with setup.directory.create(header) as (fd, name):
                write_backup(copy, header, [*setup.recipients, own.recipient], fd, sign, children=self._children)
        return setup.directory.describe(name)

    def _make_header(self, meta: Meta) -> Header:
        with self._lifecycle.borrow() as serving:
            chain = serving.chain
            if meta.cluster_id != serving.cluster_id:
                raise BackupError("the copy is of another cluster's store")
            if meta.generation != chain.generation:
                raise _KeyReplacedError
            numbers = (meta.timeline, meta.revision, meta.control_revision, meta.epoch, meta.generation, meta.kek_id)
            return Header(meta.cluster_id, *numbers, self._now, __version__, tuple(chain.records))

    def _sign(self, generation: int, message: bytes) -> bytes:
        with self._lifecycle.borrow() as serving:
            if serving.root_key.generation != generation:
                raise _KeyReplacedError
            return serving.root_key.sign(message)

    def _open(self, file: BackupFile) -> OpenedBackup:
        path = str(self._require_setup().directory.locate(file))
        with self._identity.open() as identity:
            answer = opener.read_backup(path, identity, time_limit=TIME_LIMIT_S, on_start=self._adopt)
        return decode_opened(answer)

    def _adopt(self, child: Child) -> None:
        """Let the child be killed when the nexus is not ready any more; it gets no key if that was before."""
        self._children.adopt(child)
        self._lifecycle.require_serving()

    def _remember(self, file: BackupFile, contents: Contents, write_entry: WriteEntry, now: int) -> None:
        header = contents.header
        record = BackupRecord(
            file.name,
            contents.proof.digest,
            header.timeline,
            header.generation,
            header.revision,
            header.created_at,
            now,
        )

        def rule(facts: Facts, _: int) -> Change | Refused:
            last = find_record(facts)
            is_newest = last is None or record.age_key >= last.age_key
            put = {LAST_BACKUP: records.encode(record)} if is_newest else {}
            return Change(facts.current, put, raises_epoch=False)

        self._warden.change(lambda serving: commit_rule(self._store, serving, rule, write_entry))

    def _find(self, name: str) -> BackupFile:
        return self._require_setup().directory.find(name, cluster_id=self._cluster_id)

    def _load_facts(self) -> Facts:
        with self._lifecycle.borrow() as serving:
            return read_with_key(self._store, serving, load_facts)

    def _require_setup(self) -> BackupSetup:
        if self._setup is None:
            raise WrongStateError("no backups are configured: backup.directory and backup.recipients are empty")
        return self._setup

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._one.acquire(blocking=False):
            raise BackupUnavailableError("another backup is being made or verified")
        try:
            yield
        finally:
            self._one.release()

    @property
    def _cluster_id(self) -> bytes:
        with self._lifecycle.borrow() as serving:
            return serving.cluster_id

    @property
    def _now(self) -> int:
        return to_micros(self._clock.now())
