"""What the calls of both clients return."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shardhold._errors import NoSuchFieldError, NotTextError
from shardhold._public import public


@public
@dataclass(frozen=True)
class Secret(Mapping[str, bytes]):
    """One version of a secret: a mapping from the names of its fields to their values, which are bytes.

    Its text form names the fields and shows no value.
    """

    path: str
    version: int
    incarnation: bytes
    fields: Mapping[str, bytes]
    created_at: datetime

    def text(self, field: str) -> str:
        """Return the value of *field*, decoded from UTF-8.

        Raises:
            NoSuchFieldError: There is no such field.
            NotTextError: Its value is not UTF-8.
        """
        value = self[field]
        try:
            return value.decode()
        except UnicodeDecodeError:  # which carries the value
            pass
        raise NotTextError(
            f"{self.path}: field {field!r} of version {self.version} is not UTF-8 text: read its bytes with [{field!r}]"
        )

    def __getitem__(self, field: str) -> bytes:
        value = self.fields.get(field)
        if value is None:
            names = ", ".join(map(repr, self.fields))
            raise NoSuchFieldError(f"{self.path}: version {self.version} has no field {field!r}, it has {names}")
        return value

    def __contains__(self, field: object) -> bool:
        return field in self.fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __repr__(self) -> str:
        return f"Secret(path={self.path!r}, version={self.version}, fields={sorted(self.fields)})"


@public
@dataclass(frozen=True)
class Written:
    """What a put or patch made: the version within its incarnation (16 bytes), and the store-wide counter after it."""

    version: int
    incarnation: bytes
    revision: int


@public
@dataclass(frozen=True)
class Deleted:
    """What a delete removed: versions, ascending, and the store-wide counter after it."""

    versions: tuple[int, ...]
    revision: int


@public
@dataclass(frozen=True)
class Undeleted:
    """What an undelete brought back: versions, ascending, and the store-wide counter after it."""

    versions: tuple[int, ...]
    revision: int


@public
@dataclass(frozen=True)
class Destroyed:
    """What a destroy destroyed: versions, ascending, and the store-wide counter after it."""

    versions: tuple[int, ...]
    revision: int


@public
@dataclass(frozen=True)
class Updated:
    """What a change of metadata left: the store-wide counter after it."""

    revision: int


@public
@dataclass(frozen=True)
class Entry:
    """One line of a list. The newest version may be deleted while older ones are not.

    `newest_live_version` is the newest that is not deleted; 0: all are.
    """

    path: str
    current_version: int
    incarnation: bytes
    updated_at: datetime
    newest_live_version: int


@public
class VersionState(StrEnum):
    """What became of a version."""

    UNKNOWN = "unknown"  # newer than this SDK
    LIVE = "live"
    DELETED = "deleted"  # `undelete` brings it back
    DESTROYED = "destroyed"  # for good


@public
@dataclass(frozen=True)
class Version:
    """One version of a secret, without its fields. `destroyed_at` is None for one that is not destroyed."""

    number: int
    state: VersionState
    created_at: datetime
    destroyed_at: datetime | None


@public
class State(StrEnum):
    """The states of a nexus."""

    UNKNOWN = "unknown"  # newer than this SDK
    UNINITIALISED = "uninitialised"
    INITIALISING = "initialising"
    RECOVERING = "recovering"
    SEALED = "sealed"
    READY = "ready"


@public
@dataclass(frozen=True)
class Status:
    """The status of the nexus. `blocked_by` says what keeps it from being ready, only to callers with a role."""

    state: State
    version: str
    blocked_by: tuple[str, ...] = ()
