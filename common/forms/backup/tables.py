"""The tables of a backup, by the version of the stream. A later table joins by a new version."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Value = int | str | bytes | None
Row = tuple[Value, ...]


class Kind(enum.Enum):
    """The type of a column."""

    INTEGER = int  # signed, 8 bytes
    TEXT = str
    BYTES = bytes


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind
    is_nullable: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Its rows ascend by the first *key* columns; with 0 they stand in the order in which they were made."""

    name: str
    columns: tuple[Column, ...]
    key: int


def _columns(text: str) -> tuple[Column, ...]:
    kinds = {"i": Kind.INTEGER, "t": Kind.TEXT, "b": Kind.BYTES}
    pairs = (word.split(":") for word in text.split())
    return tuple(Column(name, kinds[kind[0]], kind.endswith("?")) for name, kind in pairs)


META: Final = Table(
    "meta",
    _columns(
        "phase:t cluster_id:b sealed:i timeline:i revision:i control_revision:i last_generation:i last_set_number:i "
        "last_kek_id:i last_init_attempt:i epoch:i generation:i kek_id:i"
    ),
    key=0,
)
CONTROL: Final = Table("control", _columns("kind:t name:t body:b digest:b"), key=2)

VERSIONS: Final = Table(
    "versions",
    _columns(
        "path:t version:i incarnation:b kek_id:i dek_id:b wrapped_dek:b created_at:i deleted:i revision:i caller:t "
        "value:b"
    ),
    key=2,
)
DELETIONS: Final = Table("deletions", _columns("path:t version:i revision:i caller:t"), key=2)
REQUESTS: Final = Table(
    "requests",
    _columns("request_id:b caller:t rpc:t path:t generation:i mac:b? incarnation:b versions:t revision:i made_at:i"),
    key=0,
)
QUARANTINE: Final = Table(
    "quarantine",
    _columns("path:t incarnation:b version:i kek_id:i reason:t found_at:i abandoned_by:t?"),
    key=3,
)
AUDIT_HEAD: Final = Table("audit_head", _columns("nexus:t timeline:i seq:i digest:b revision:i mac:b"), key=1)

_SECRETS_1: Final = Table("secrets", _columns("path:t incarnation:b current_version:i updated_at:i"), key=1)
SECRETS: Final = Table(
    "secrets",
    _columns("path:t incarnation:b current_version:i updated_at:i first_version:i max_versions:i"),
    key=1,
)
DESTROYED: Final = Table(
    "destroyed", _columns("path:t version:i incarnation:b created_at:i destroyed_at:i caller:t"), key=2
)

# By version of the stream, in their order. Times are microseconds since 1970.
TABLES_BY_VERSION: Final[Mapping[int, tuple[Table, ...]]] = {
    1: (META, CONTROL, _SECRETS_1, VERSIONS, DELETIONS, REQUESTS, QUARANTINE, AUDIT_HEAD),
    2: (META, CONTROL, SECRETS, VERSIONS, DELETIONS, DESTROYED, REQUESTS, QUARANTINE, AUDIT_HEAD),
}
VERSION: Final = 2  # that is written; earlier ones are read
TABLES: Final = TABLES_BY_VERSION[VERSION]
