"""What a nexus keeps on disk, and how it is read and changed. Every backend passes one contract test class.

Rules:
- All that depends on the root key is here as ciphertext or under the manifest; the store never sees a key.
- A change is a function that gets a `Writer`. It either happens whole, with its audit entries and the next revision,
  or not at all. With `counts=False` a change takes no revision, so it never moves the store past a rollback mark.
  Changes run one after the other; changes that wait together are committed together, and one that raises is undone
  alone. A change may run on the thread of another caller that it is committed with; it runs at most once.
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
from typing import Protocol, TypeVar

BEYOND_PATHS = "\x7f"  # sorts after every path

T = TypeVar("T")


class Phase(enum.StrEnum):
    """How far the store has come with its cluster."""

    EMPTY = "empty"
    INITIALISING = "initialising"
    INITIALISED = "initialised"


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


@dataclass(frozen=True, slots=True)
class MadeByRequest:
    """What a mutating request made, found again by its id."""

    path: str
    incarnation: bytes
    versions: tuple[int, ...]  # written or deleted by it
    revision: int
    deleted: bool  # whether it deleted them


class Reader(Protocol):
    """One committed state."""

    def load_meta(self) -> Meta: ...

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

        Raises:
            CorruptRowError: The secret is there and has had this version, but its row is not found.
        """
        ...

    def load_live_versions(self, path: str) -> list[int]:
        """Load the numbers of the versions that are not deleted, ascending."""
        ...

    def list_secrets(self, prefix: str, *, after: str, limit: int, before: str = BEYOND_PATHS) -> list[SecretRow]:
        """List secrets with a version left, in byte order of their paths.

        At *prefix* or below it by whole segments (empty: all), between *after* (empty: from the start) and *before*.
        """
        ...

    def find_request(self, caller: str, request_id: bytes) -> MadeByRequest | None:
        """Find what *caller* made with *request_id*, while the secret that it was made in is there."""
        ...


class Writer(Reader, Protocol):
    """One change. Reads see what it wrote before."""

    @property
    def revision(self) -> int:
        """The revision that this change will have."""
        ...

    def save_meta(self, meta: Meta) -> None:
        """Replace the row; its `revision` is ignored: the store counts.

        `control_revision` is stored as given: a change that touches a control row saves the meta row with the next one.
        From phase INITIALISED on, the store refuses a change that touched a control row and left the number as it was.
        """
        ...

    def save_control(self, row: ControlRow) -> None:
        """Create or replace the row of this kind and name."""
        ...

    def delete_control(self, kind: str, name: str) -> bool: ...

    def insert_version(self, row: VersionRow, *, caller: str, request_id: bytes) -> None:
        """Insert the next version of a secret, or version 1 of a new secret or incarnation.

        The secret's `updated_at` becomes the version's `created_at`.
        A new incarnation needs `delete_secret` first. *request_id* is 16 bytes, or empty: not to be found again.

        Raises:
            StoreUnavailableError: It is not the next version of this incarnation, or *caller* made another version with
                this *request_id*. The change is lost, even if it catches this.
        """
        ...

    def mark_deleted(
        self, path: str, versions: Sequence[int], *, caller: str, request_id: bytes, updated_at: int | None = None
    ) -> None:
        """Mark versions as deleted; their rows stay. *updated_at*: microseconds since 1970, None: as it was.

        Raises:
            StoreUnavailableError: One of them is not there, or marked already. The change is lost, even if it catches
                this.
        """
        ...

    def delete_secret(self, path: str) -> None:
        """Remove all rows of the secret."""
        ...

    def append_audit(self, entry: bytes) -> None:
        """Add an audit entry of the change to the outbox, under this change's revision."""
        ...


class Store(Protocol):
    """Thread-safe."""

    def read(self) -> AbstractContextManager[Reader]: ...

    def write(self, change: Callable[[Writer], T], *, counts: bool = True) -> T:
        """Run *change* and commit it, durably, before returning what it returned.

        With *counts* false it takes no revision, and may have no audit entries.

        Raises:
            StoreUnavailableError: Not committed; nothing changed. What *change* itself raises comes out as it is, and
                nothing changed either.
            OutcomeUnknownError: The commit failed and the store could not be opened again to see: the process has to
                exit.
        """
        ...

    def load_audit(self, *, limit: int, after: int = 0) -> list[tuple[int, bytes]]:
        """Load the oldest entries of the audit outbox after revision *after*, with their revisions, in order.

        At least *limit* if there are so many: the entries of one change are never parted.
        """
        ...

    def discard_audit(self, through: int) -> None:
        """Remove outbox entries up to revision *through*: they are in the audit files, synced. Is not a change."""
        ...

    def close(self) -> None: ...
