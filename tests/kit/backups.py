"""The stream of a small backup, made as a nexus makes one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from common.forms.backup.header import Header, sign_digest
from common.forms.backup.tables import Row, Table
from common.forms.backup.writer import write_stream
from tests.kit.chains import make_chain

CHAIN: Final = make_chain(2)
CLUSTER: Final = CHAIN.genesis.cluster_id
HEADER: Final = Header(CLUSTER, 1, 300, 12, 5, CHAIN.chain.generation, 4, 1_000_000, "0.1.0", tuple(CHAIN.records))
INCARNATION: Final = b"i" * 16
ROWS: Final[Mapping[str, Sequence[Row]]] = {
    "meta": [("initialised", CLUSTER, 0, 1, 300, 12, 3, 3, 4, 1, 5, HEADER.generation, 4)],
    "control": [("canary", "4", b"{}", b"d" * 32), ("keyring", "3", b"{}", b"e" * 32)],
    "secrets": [("app/a", INCARNATION, 3, 7, 1, 0), ("app/ä", INCARNATION, 4, 8, 4, 1)],
    "versions": [
        ("app/a", 1, INCARNATION, 4, b"k" * 16, b"w" * 98, 5, 1, 200, "spiffe://x/y", b"value 1"),
        ("app/a", 2, INCARNATION, 4, b"l" * 16, b"w" * 98, 6, 0, 201, "spiffe://x/y", b"value 2"),
        ("app/ä", 4, INCARNATION, 4, b"m" * 16, b"w" * 98, 7, 0, 202, "spiffe://x/y", b""),
    ],
    "deletions": [("app/a", 1, 203, "spiffe://x/y")],
    "destroyed": [("app/a", 3, INCARNATION, 6, 8, "spiffe://x/y")],
    "requests": [(b"r" * 16, "spiffe://x/y", "PutSecret", "app/a", 3, None, INCARNATION, "1", 200, 5)],
    "quarantine": [("app/a", INCARNATION, 1, 4, "does not open", 9, None)],
    "audit_head": [("n1", 1, 77, b"h" * 32, 300, b"m" * 32)],
}


def make_stream(
    rows: Mapping[str, Sequence[Row]] = ROWS,
    header: Header = HEADER,
    sign: Callable[[bytes], bytes] = CHAIN.key.sign,
) -> bytes:
    """Return the whole stream."""

    def load(table: Table) -> Sequence[Row]:
        return rows[table.name]

    return b"".join(write_stream(header, load, lambda digest: sign_digest(digest, sign)))


def make_empty_stream(revision: int = 300) -> bytes:
    """Return a stream with a meta row and nothing else."""
    (meta,) = ROWS["meta"]
    rows: dict[str, Sequence[Row]] = {name: [] for name in ROWS} | {"meta": [(*meta[:4], revision, *meta[5:])]}
    return make_stream(rows, replace(HEADER, revision=revision))
