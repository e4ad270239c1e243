"""The cluster's own identity, by which its nexus opens what it made (`nexus.keys.backup_key`)."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from common.clock import Clock, to_micros
from common.errors import BackupError, IntegrityError
from common.forms.audit.entry import Entry
from common.forms.bech32 import KEY_SIZE
from common.keys.protected import ProtectedMemory
from nexus.keys import records
from nexus.keys.backup_key import (
    BACKUP_KEY,
    BackupKeyRecord,
    find_backup_key,
    make_backup_key,
    open_backup_key,
    rewrap_backup_key,
)
from nexus.keys.keyed_read import read_with_key
from nexus.keys.opened import Serving
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.outbox import append_entry
from nexus.keys.root_key import RootKey
from nexus.keys.ruled_change import commit_rule, load_facts
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.store.protocol import Store, Writer

log = structlog.get_logger("backup")


class ClusterIdentity:
    """Thread-safe."""

    def __init__(self, store: Store, lifecycle: Lifecycle, memory: ProtectedMemory, clock: Clock, nexus: str) -> None:
        """*nexus* is the name of the nexus whose audit its entries go to."""
        self._store = store
        self._lifecycle = lifecycle
        self._memory = memory
        self._clock = clock
        self._nexus = nexus

    def ensure(self, serving: Serving) -> BackupKeyRecord:
        """Return the identity; draw it first if there is none, or wrap it anew if its KEK is old.

        One that does not verify, or that nothing opens any more, is replaced: backups go on, and those of before open
        by their recipients alone.

        Raises:
            OperationRefusedError: It would have to change while an operation is in progress.
            StoreUnavailableError: Not committed.
        """
        with self._store.read() as reader:
            facts = load_facts(reader, serving.root_key)
        known = None if BACKUP_KEY in facts.damaged else find_backup_key(facts)
        if known is not None and (known.kek_id == serving.keyring.current_id or facts.operation is not None):
            return known
        key = _renew(known, serving) or make_backup_key(serving.keyring, self._memory, at=self._now)

        def rule(facts: Facts, _: int) -> Change | Refused:
            if facts.operation is not None:  # its flip would not wrap the key anew
                return Refused(Reason.OPERATION_RUNNING, "the first backup waits until the operation has ended")
            return Change(facts.current, {BACKUP_KEY: records.encode(key)}, raises_epoch=False)

        commit_rule(self._store, serving, rule, functools.partial(self._write_note, detail=key.recipient))
        return key

    @contextmanager
    def open(self) -> Iterator[memoryview]:
        """Open the identity, 32 bytes of protected memory, for one block.

        Raises:
            BackupError: There is none yet, or nothing opens it any more.
            CorruptRowError: Its row does not verify.
        """
        with self._memory.allocate(KEY_SIZE) as identity:
            with self._lifecycle.borrow() as serving:
                key = find_backup_key(read_with_key(self._store, serving, load_facts))
                if key is None:
                    raise BackupError("this cluster has made no backup: it has nothing that opens one")
                try:
                    open_backup_key(key, serving.keyring, into=identity.view)
                except IntegrityError as exc:
                    raise BackupError(f"the cluster's identity does not open, a new backup draws one: {exc}") from exc
            yield identity.view

    def _write_note(self, writer: Writer, key: RootKey, *, detail: str) -> None:
        entry = Entry(at=self._now, actor="", action="backup.key", detail=detail)
        append_entry(writer, key, self._nexus, entry.encode())

    @property
    def _now(self) -> int:
        return to_micros(self._clock.now())


def _renew(known: BackupKeyRecord | None, serving: Serving) -> BackupKeyRecord | None:
    """Wrap the identity under the current KEK; None: there is none, or nothing opens it any more."""
    if known is None:
        return None
    try:
        body = rewrap_backup_key(records.encode(known), serving.keyring, serving.keyring)
    except IntegrityError as exc:
        log.warning("identity of the cluster does not open, and is replaced", why=str(exc))
        return None
    return records.decode(BackupKeyRecord, body)
