"""Whether the audit files are those that store and keepers remember, and what begins a chain of them.

- The files are looked at before a key is admitted, and again when a keeper tells of an end that was not looked at yet.
- The control row of the audit is written when a cluster is founded; else, for a store of an older program or a nexus
  with a new name, as soon as the nexus is ready; and when somebody accepts that a new chain begins.
"""

from collections.abc import Callable
from typing import Protocol

from common.forms.mark import AuditEnd
from nexus.keys import manifest
from nexus.keys.audit_chain import ChainRecord, encode_chain, make_chain_record
from nexus.keys.floor import Standing
from nexus.keys.opened import PolicyView, Serving, load_view
from nexus.keys.outbox import WriteEntry
from nexus.keys.replacement import SetReplacement
from nexus.keys.signer import AuditAuthenticator
from nexus.lifecycle.store_marks import StoreMarks
from nexus.store.protocol import Meta, Store, Writer

_EVERY_MARK = (-1, -1)


class AuditFiles(Protocol):
    """The audit files of one nexus, as `nexus.access.audit` keeps them."""

    @property
    def nexus(self) -> str: ...

    def find_end(self) -> AuditEnd:
        """Say how far the files have come that no power cut takes back. Waits for nothing."""
        ...

    def find_gap(self, key: AuditAuthenticator, *, has_begun: bool, remembered: AuditEnd | None) -> str:
        """Say what the files lack, empty: nothing.

        *has_begun* says that the store must have a head of the files, *remembered* is how far keepers saw them come.
        """
        ...

    def begin(self, writer: Writer, key: AuditAuthenticator) -> None:
        """Save a head of the files, in the change that says that the audit has begun."""
        ...


class AuditGuard:
    """Used by whoever holds the warden's lock: a root key is replaced only under it, and the head with the key."""

    def __init__(self, store: Store, marks: StoreMarks, files: AuditFiles) -> None:
        self._store = store
        self._marks = marks
        self._files = files
        self._looked_at: AuditEnd | None = None  # as keepers told it last, when the files were looked at

    def find_gap(self, serving: Serving) -> str:
        """Say what the files lack; empty: nothing.

        Raises:
            StoreUnavailableError, AuditUnavailableError: Store or files cannot be read.
        """
        chains, nexus = serving.audit_chains, self._files.nexus
        if nexus in chains and chains[nexus] is None:
            return f"control row audit/{nexus}, which guards the audit files, was changed outside Shardhold"
        remembered = self._find_remembered(serving)
        gap = self._files.find_gap(serving.root_key, has_begun=nexus in chains, remembered=remembered)
        self._looked_at = remembered
        return gap

    def find_new_gap(self, serving: Serving) -> str:
        """Say what the files lack, if keepers have told of an end since they were looked at last; raises as above."""
        return self.find_gap(serving) if self._find_remembered(serving) not in (None, self._looked_at) else ""

    def has_begun(self, serving: Serving) -> bool:
        """Say whether the store knows that this nexus has an audit."""
        return self._files.nexus in serving.audit_chains

    def replace_set(
        self, serving: Serving, write_entry: WriteEntry, edit: Callable[[Meta], Meta], replacement: SetReplacement
    ) -> None:
        """Commit the row together with a new shard set; raises as `SetReplacement.commit`."""
        record = make_chain_record(serving.floor.position)
        row = encode_chain(self._files.nexus, record)
        replacement.commit(serving, write_entry, edit, beside=row)
        serving.audit_chains[self._files.nexus] = record

    def commit_row(
        self, serving: Serving, write_entry: WriteEntry, *, edit: Callable[[Meta], Meta] = lambda meta: meta
    ) -> None:
        """Commit the row in a change of its own. With it, the manifest is of the newest format.

        Raises:
            StoreUnavailableError, StoreLostError, CorruptRowError: Nothing was committed.
        """
        nexus = self._files.nexus

        def change(writer: Writer) -> tuple[Standing, PolicyView, ChainRecord]:
            record = make_chain_record(writer.basis)
            row = encode_chain(nexus, record)
            standing = manifest.change(writer, serving.root_key, serving.floor, put=row, edit=edit)
            write_entry(writer, serving.root_key)
            return standing, load_view(writer, serving.root_key), record

        def follow(left: tuple[Standing, PolicyView, ChainRecord]) -> None:
            standing, view, record = left
            serving.follow(standing, view)
            serving.audit_chains[nexus] = record

        self._store.write(change, alone=True, on_commit=follow)

    def _find_remembered(self, serving: Serving) -> AuditEnd | None:
        record = serving.audit_chains.get(self._files.nexus)
        since = record.place if record is not None else _EVERY_MARK
        book = self._marks.book
        return book.list_known().find_audit_end(self._files.nexus, since=since) if book is not None else None
