"""What the keyring job reads and changes: the wraps of versions, and the versions that are in quarantine.

1. The job brings each version to the current KEK. It has no record of its own: every version under an older KEK is its
   work, except those that did not open. They are in quarantine until a person decides.
2. It makes wraps outside any change. So a wrap is replaced only where it still is the one that was read, and only in
   the epoch that the job worked in.
3. A version is in quarantine by path, incarnation and version: a secret that is created anew is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class VersionKey(NamedTuple):
    """What names one version for ever."""

    path: str  # bytes of a damaged one that do not decode are surrogates, U+DC80 to U+DCFF
    incarnation: bytes  # 16 bytes
    version: int


class WrappedRow(NamedTuple):  # as those below: a frozen dataclass takes four times as long to make
    """A version without its value. The row of it is found by `row_id`, which a later version may get again.

    Numbers are as they are stored, also where a row is damaged: one bad row must not hide the others.
    """

    row_id: int
    path: str  # as in `VersionKey`
    incarnation: bytes  # 16 bytes
    version: int
    kek_id: int
    dek_id: bytes  # 16 bytes
    wrapped_dek: bytes

    @property
    def key(self) -> VersionKey:
        """What names the version."""
        return VersionKey(self.path, self.incarnation, self.version)


class Rewrap(NamedTuple):
    """The same DEK under another KEK."""

    before: WrappedRow
    kek_id: int
    wrapped_dek: bytes


class Reseal(NamedTuple):
    """The same content under another DEK."""

    before: WrappedRow
    kek_id: int
    dek_id: bytes  # 16 bytes
    wrapped_dek: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """A version that did not open."""

    key: VersionKey
    kek_id: int
    reason: str
    found_at: int  # microseconds since 1970
    abandoned_by: str  # SPIFFE ID of whoever gave it up; empty: nobody


class KeyringReader(Protocol):
    """The part of `nexus.store.protocol.Reader` that the keyring job needs."""

    def list_outdated(self, kek_id: int, *, after: tuple[int, int] | None = None, limit: int) -> list[WrappedRow]:
        """List versions under a lower KEK than *kek_id* that are not in quarantine, by KEK and row id.

        Begins after the KEK and row id of the last row of a list before; None: with the first.
        """
        ...

    def scan_versions(self, *, after: int | None = None, limit: int) -> list[WrappedRow]:
        """List all versions by row id, and trust no index; begins after a row id, None: with the first."""
        ...

    def load_value(self, row: WrappedRow) -> bytes | None:
        """Load the ciphertext of a version; None: its row is not as it was listed any more."""
        ...

    def count_by_kek(self) -> dict[int, int]:
        """Count the versions under each KEK, those in quarantine as well."""
        ...

    def has_rows_under(self, kek_id: int) -> bool:
        """Whether anything is under the KEK but what was abandoned. A change that deletes the KEK asks it itself."""
        ...

    def list_quarantine(self, *, after: VersionKey | None = None, limit: int) -> list[QuarantineRow]:
        """List the quarantine by path, incarnation and version; begins after a version, None: with the first."""
        ...

    def has_undecided(self) -> bool:
        """Whether a version that is still there is in quarantine, and was not abandoned."""
        ...

    def count_abandoned(self, kek_id: int) -> int:
        """Count the versions under the KEK that were abandoned."""
        ...


class KeyringWriter(Protocol):
    """The part of `nexus.store.protocol.Writer` that the keyring job needs; such changes need no revision."""

    def rewrap(self, rows: Sequence[Rewrap], *, epoch: int) -> int:
        """Replace wraps and return how many: where one is not as it was read, somebody was first.

        Raises:
            ConflictError: The store is not at *epoch* any more; nothing is replaced.
            StoreUnavailableError: One is not under the KEK of `basis`. The change is lost, even if it catches this.
        """
        ...

    def reseal(self, rows: Sequence[Reseal], *, epoch: int) -> int:
        """Replace DEKs, their wraps and the values; otherwise as `rewrap`."""
        ...

    def quarantine(self, row: WrappedRow, *, reason: str, found_at: int) -> bool:
        """Put a version into quarantine; False: it is not as it was read any more, or is there already.

        *found_at* in microseconds since 1970.
        """
        ...

    def retry_quarantined(self, key: VersionKey) -> bool:
        """Take a version out of quarantine, so that it is tried again; False: it is not in it."""
        ...

    def abandon_quarantined(self, key: VersionKey, *, by: str) -> bool:
        """Give a version in quarantine up; *by*: SPIFFE ID. False: it is not in it, or was given up before."""
        ...
