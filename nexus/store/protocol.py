"""What a nexus keeps on disk, and how it is read and changed. Every backend passes one contract test class.

Rules:
- All that depends on the root key is here as ciphertext or under the manifest; the store never sees a key.
- A change is a function that gets a `Writer`. It either happens whole, with its audit entries and the next revision,
  or not at all. With `counts=False` a change takes no revision, so it never moves the store past a rollback mark.
  Changes run one after the other; changes that wait together are committed together, and one that raises is undone
  alone. A change may run on the thread of another caller that it is committed with; it runs at most once.
- A change that runs *alone* shares its commit with no other: nothing but committed changes comes before it.
- A read sees one committed state. Reads are short, and nobody waits for a change inside one: a store that has to be
  opened again waits for them.
- Every method of `Store`, `Reader` and `Writer` raises `StoreUnavailableError` when the store cannot be read or written
  now, and `CorruptRowError` when what is stored is not what was written, as far as the store can see. No message holds
  a stored value.
"""

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

from nexus.store.rewrapping import KeyringReader, KeyringWriter

BEYOND_PATHS = "\x7f"  # sorts after every path
BEYOND_VERSIONS = 2**63 - 1  # above every version

T = TypeVar("T")


class Phase(enum.StrEnum):
    """How far the store has come with its cluster."""

    EMPTY = "empty"
    INITIALISING = "initialising"
    INITIALISED = "initialised"


class Position(NamedTuple):
    """How far a store has come, and under which keys: what each change builds on.

    Generation and KEK are compared and never trusted: no key is chosen by them.
    """

    timeline: int
    revision: int
    control_revision: int
    epoch: int
    generation: int = 0  # of the root key; 0: an older program left the store
    kek_id: int = 0  # that new values are wrapped under; 0: an older program left the store


@dataclass(frozen=True, slots=True)
class Meta:
    """The one row about the store itself. The `last_` numbers are the highest ever given out and never go down."""

    phase: Phase
    cluster_id: bytes  # 16 bytes; empty in phase EMPTY
    sealed: bool
    timeline: int  # 0 before the first init is complete, then 1, 2, 3 …
    revision: int  # up by one at each change that counts
    control_revision: int  # up by one at each change that touches a control row
    last_generation: int
    last_set_number: int
    last_kek_id: int
    last_init_attempt: int
    epoch: int  # up by one or more at each init, seal, unseal, new set and accepted store; never goes down
    generation: int = 0  # as in `Position`
    kek_id: int = 0  # as in `Position`
    is_restored: bool = False  # made of a backup, which nobody has accepted yet

    @property
    def position(self) -> Position:
        """How far the store has come."""
        numbers = (self.timeline, self.revision, self.control_revision, self.epoch)
        return Position(*numbers, self.generation, self.kek_id)


@dataclass(frozen=True, slots=True)
class ControlRow:
    kind: str
    name: str
    body: bytes
    digest: bytes  # 32 bytes


@dataclass(frozen=True, slots=True)
class SecretRow:
    path: str
    incarnation: bytes  # 16 bytes
    current_version: int  # newest version ever written in this incarnation
    updated_at: int  # microseconds since 1970
    first_version: int = 1  # those below it were pruned, and nothing is kept of them
    max_versions: int = 0  # how many are kept; 0: as the configuration says


class ListedSecret(NamedTuple):
    """A secret as a listing shows it."""

    path: str
    incarnation: bytes  # 16 bytes
    current_version: int
    updated_at: int  # microseconds since 1970
    newest_live_version: int  # 0: every version is deleted or destroyed


class VersionState(enum.StrEnum):
    """What has become of a version."""

    LIVE = "live"
    DELETED = "deleted"  # its row is marked
    DESTROYED = "destroyed"  # its row is gone


class HistoryRow(NamedTuple):
    """A version without what it holds."""

    version: int
    state: VersionState
    created_at: int  # microseconds since 1970
    destroyed_at: int  # the same; 0: it is not destroyed


@dataclass(frozen=True, slots=True)
class VersionRow:
    path: str
    incarnation: bytes  # 16 bytes
    version: int
    kek_id: int
    dek_id: bytes  # 16 bytes
    wrapped_dek: bytes
    value: bytes  # ciphertext of the fields
    created_at: int  # microseconds since 1970
    deleted: bool


class VersionStamp(NamedTuple):
    """When a version was written. Numbers are as they are stored, also where a row is damaged."""

    path: str
    version: int
    revision: int  # of the change that wrote it
    created_at: int  # microseconds since 1970
    deleted: bool


@dataclass(frozen=True, slots=True)
class MadeByRequest:
    """What a request that changes something made."""

    incarnation: bytes  # 16 bytes
    versions: tuple[int, ...]  # that it wrote, deleted, brought back or destroyed, ascending; else the newest
    revision: int


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A request that changed something, found again by caller and id whatever became of what it made."""

    request_id: bytes  # 16 bytes
    caller: str
    rpc: str
    path: str
    generation: int  # of the root key that `mac` hangs on; 0 with an empty one
    mac: bytes  # 32 bytes, of what was asked for; empty: an older program kept the request
    made: MadeByRequest
    made_at: int  # microseconds since 1970


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """An audit entry of a change, until it is in the audit files."""

    nexus: str  # whose files it goes to; empty: an older program wrote it
    revision: int
    position: int  # among the entries of the change: 0, 1, 2 …
    entry: bytes  # cut off after MAX_ENTRY + 1 bytes
    mac: bytes | None  # None: an older program wrote it


@dataclass(frozen=True, slots=True)
class AuditHead:
    """How far the audit files of a nexus had come, and what of the outbox was in them."""

    nexus: str
    timeline: int
    seq: int
    digest: bytes  # hash of the line, 32 bytes
    revision: int  # entries of changes up to it are in the files
    mac: bytes


@dataclass(frozen=True, slots=True)
class StoreCopy:
    """A copy of one committed state, for a process of its own that writes it as a backup."""

    meta: Meta
    path: Path
    program: str  # module of that process, as `nexus.store.sqlite.export`


MAX_ENTRY: Final = 64 << 10  # bytes; no entry of ours is as long


class Reader(KeyringReader, Protocol):
    """One committed state."""

    def load_meta(self) -> Meta: ...

    def load_position(self) -> Position:
        """Load how far this state has come; after `load_version`, which loads it as well, there is no query."""
        ...

    def is_empty(self) -> bool:
        """Whether there is neither a control row nor a row of any secret."""
        ...

    def load_control(self, kind: str, name: str) -> ControlRow | None: ...

    def load_controls(self) -> list[ControlRow]:
        """Load all control rows, by kind and name."""
        ...

    def load_secret(self, path: str) -> SecretRow | None: ...

    def load_version(self, path: str, version: int) -> VersionRow | None:
        """Load one version, 0: the newest, in one indexed query. A deleted one is returned and says so.

        None: it never was, or it is destroyed; `load_history` tells.

        Raises:
            CorruptRowError: The secret is there and has had this version, which nobody destroyed, but its row is not
                found.
        """
        ...

    def load_live_versions(self, path: str) -> list[int]:
        """Load the numbers of the versions that are not deleted, ascending."""
        ...

    def load_kept_versions(self, path: str) -> list[int]:
        """Load the numbers of the versions that are not destroyed, deleted ones as well, ascending."""
        ...

    def load_history(self, path: str, *, before: int = BEYOND_VERSIONS, limit: int) -> list[HistoryRow]:
        """Load what has become of the versions below *before*, the newest first. Pruned ones are left out.

        Raises:
            CorruptRowError: One of them is lost.
        """
        ...

    def list_stamps(self, *, after: tuple[str, int], limit: int) -> list[VersionStamp]:
        """List versions by path and number, deleted ones as well; begins after a path and number."""
        ...

    def list_secrets(
        self, prefix: str, *, after: str, limit: int, before: str = BEYOND_PATHS, include_deleted: bool = False
    ) -> list[ListedSecret]:
        """List secrets with a version left, in byte order of their paths.

        At *prefix* or below it by whole segments (empty: all), between *after* (empty: from the start) and *before*.
        With *include_deleted* the versions that are left may all be deleted, but not destroyed.
        """
        ...

    def find_request(self, caller: str, request_id: bytes) -> RequestRow | None:
        """Find the request that *caller* made with *request_id*, if it is not discarded yet."""
        ...

    def load_audit(
        self, nexus: str, *, after: tuple[int, int] | None = None, through: tuple[int, int] | None = None, limit: int
    ) -> list[OutboxRow]:
        """Load rows of the audit outbox that are of *nexus* or of no nexus, by revision and position.

        Begins after the one, and ends with the other; None: with the first, and with the last.
        """
        ...

    def load_audit_head(self, nexus: str) -> AuditHead | None: ...

    def load_audit_heads(self) -> list[AuditHead]:
        """Load the heads of every nexus, by its name."""
        ...


class Writer(Reader, KeyringWriter, Protocol):
    """One change. Reads see what it wrote before."""

    @property
    def revision(self) -> int:
        """The revision that this change will have."""
        ...

    @property
    def basis(self) -> Position:
        """Where the store stood before this change."""
        ...

    def save_meta(self, meta: Meta) -> None:
        """Replace the row; its `revision` is ignored: the store counts.

        `control_revision` is stored as given: a change that touches a control row saves the meta row with the next one.
        From phase INITIALISED on, the store refuses a change that touched a control row and left the number as it was.
        It refuses a lower epoch at any time.
        """
        ...

    def save_control(self, row: ControlRow) -> None:
        """Create or replace the row of this kind and name."""
        ...

    def delete_control(self, kind: str, name: str) -> bool: ...

    def insert_version(self, row: VersionRow, *, caller: str) -> None:
        """Insert the next version of a secret, or version 1 of a new secret or incarnation.

        The secret's `updated_at` becomes the version's `created_at`.
        A new incarnation needs `delete_secret` first.

        Raises:
            StoreUnavailableError: It is not the next version of this incarnation, or not under the KEK of `basis`. The
                change is lost, even if it catches this.
        """
        ...

    def mark_deleted(self, path: str, versions: Sequence[int], *, caller: str, updated_at: int | None = None) -> None:
        """Mark versions as deleted; their rows stay. *updated_at*: microseconds since 1970, None: as it was.

        Raises:
            StoreUnavailableError: One of them is not there, or marked already. The change is lost, even if it catches
                this.
        """
        ...

    def undelete(self, path: str, versions: Sequence[int]) -> None:
        """Take the marks of deletion off versions.

        Raises:
            StoreUnavailableError: One of them is not marked. The change is lost, even if it catches this.
        """
        ...

    def destroy(self, path: str, versions: Sequence[int], *, caller: str, destroyed_at: int) -> None:
        """Remove the rows of versions, also from quarantine, and keep that they were destroyed.

        *destroyed_at* in microseconds since 1970. What was in the rows is in the files until the next scrub.

        Raises:
            StoreUnavailableError: One of them has no row. The change is lost, even if it catches this.
        """
        ...

    def prune(self, path: str, *, below: int) -> None:
        """Remove all rows of the versions below *below*, which becomes the first version; not the current one.

        What was in the rows is in the files until the next scrub.

        Raises:
            StoreUnavailableError: The current version is among them. The change is lost, even if it catches this.
        """
        ...

    def save_max_versions(self, path: str, max_versions: int) -> None:
        """Set how many versions of a secret are kept; 0: as the configuration says."""
        ...

    def delete_secret(self, path: str) -> None:
        """Remove all rows of the secret, also from quarantine. Requests that made it are found as before."""
        ...

    def save_request(self, row: RequestRow) -> None:
        """Keep the request that this change is made for.

        Raises:
            StoreUnavailableError: Its caller has made something with this id. The change is lost, even if it catches
                this.
        """
        ...

    def append_audit(self, nexus: str, entry: bytes, authenticate: Callable[[int, int], bytes]) -> OutboxRow:
        """Add an audit entry of the change to the outbox, and return its row.

        *authenticate* makes the MAC for revision and position. Whoever wrote to that place before has no such key: the
        entry takes the place.
        """
        ...

    def adopt_audit(self, make_mac: Callable[[OutboxRow], bytes | None]) -> None:
        """Give every row of the outbox, of whatever nexus, the MAC that *make_mac* makes; None: it stays as it is."""
        ...

    def save_audit_head(self, head: AuditHead) -> None:
        """Replace the head of its nexus."""
        ...


class CopiedStore(Protocol):
    """A store that backups are made of. Thread-safe."""

    def copy(self) -> AbstractContextManager[StoreCopy]:
        """Copy one committed state; the copy is removed after the block. Changes go on meanwhile; a scrub waits.

        Raises:
            StoreUnavailableError: It is being copied already, or the disk refuses.
        """
        ...


class Store(Protocol):
    """Thread-safe."""

    def read(self) -> AbstractContextManager[Reader]: ...

    def write(
        self,
        change: Callable[[Writer], T],
        *,
        counts: bool = True,
        alone: bool = False,
        on_commit: Callable[[T], None] | None = None,
    ) -> T:
        """Run *change* and commit it, durably, before returning what it returned.

        With *counts* false it takes no revision, and may have no audit entries. With *alone* it shares its commit with
        no other change. *on_commit* gets what it returned once it is committed, and before the next change begins; it
        must not raise, nor wait for the store.

        Raises:
            StoreUnavailableError: Not committed; nothing changed. After a change that left the position as it was, this
                is not known. What *change* itself raises comes out as it is, and nothing changed either.
            OutcomeUnknownError: The commit failed and the store could not be opened again to see: the process has to
                exit.
            StoreFileLostError: What is open is not the store at its place any more; see `find_fault`.
        """
        ...

    def discard_audit(
        self, rows: Sequence[OutboxRow], head: AuditHead | None = None, *, at: tuple[int, int] | None = None
    ) -> bool:
        """Remove exactly *rows* from the outbox, and save *head*, at once. Is not a change, and can be repeated.

        What is not there, or is another row by now, stays as it is. Does nothing, and returns False, when the store is
        not in the timeline and generation *at*; None: it may be in any.
        """
        ...

    def discard_requests(self, *, made_from: int, made_until: int, limit: int) -> int:
        """Of the *limit* requests that were saved first, remove those made outside a time; return how many.

        Both ends, in microseconds since 1970, belong to the time that is kept. Is not a change, and can be repeated.
        """
        ...

    def find_fault(self) -> str:
        """Say why what is open is not the store at its place any more; empty: it is. Cheap, and waits for no change.

        Once something was said, every read and change raises `StoreFileLostError`: only a new start helps.
        """
        ...

    @property
    def is_scrub_due(self) -> bool:
        """Whether versions were removed since the last scrub that succeeded."""
        ...

    @property
    def unscrubbed(self) -> str:
        """Why what was deleted or replaced may be in the files yet, as the last scrub found; empty: it succeeded."""
        ...

    def scrub(self, *, seconds: float) -> bool:
        """Leave nothing in the files of what was deleted or replaced before; False: it did not succeed in *seconds*.

        Reads that are open hold it up. It is tried again and again, and changes go on in between.
        """
        ...

    def close(self) -> None: ...
