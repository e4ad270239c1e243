"""What the calls of both clients return."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True)
class Secret:
    """One version of a secret. Its text form names the fields and shows no value."""

    path: str
    version: int
    incarnation: bytes
    fields: Mapping[str, bytes]
    created_at: datetime

    def __repr__(self) -> str:
        return f"Secret(path={self.path!r}, version={self.version}, fields={sorted(self.fields)})"


@dataclass(frozen=True)
class Written:
    """What a put made: the version within its incarnation (16 bytes), and the store-wide counter after it."""

    version: int
    incarnation: bytes
    revision: int


@dataclass(frozen=True)
class Deleted:
    """What a delete removed: versions, ascending, and the store-wide counter after it."""

    versions: tuple[int, ...]
    revision: int


@dataclass(frozen=True)
class Entry:
    """One line of a list. The newest version may be deleted while older ones are not."""

    path: str
    current_version: int
    incarnation: bytes
    updated_at: datetime


class State(StrEnum):
    """The states of a nexus."""

    UNKNOWN = "unknown"  # newer than this SDK
    UNINITIALISED = "uninitialised"
    INITIALISING = "initialising"
    RECOVERING = "recovering"
    SEALED = "sealed"
    READY = "ready"


@dataclass(frozen=True)
class Status:
    """The status of the nexus. `blocked_by` says what keeps it from being ready, only to callers with a role."""

    state: State
    version: str
    blocked_by: tuple[str, ...] = ()
