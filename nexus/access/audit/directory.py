"""The files of the audit: which segments there are, and where the last one ends."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from common.errors import CorruptRowError
from common.forms.audit.line import ChangeLine, TornTailLine, decode_first_line, decode_line
from common.forms.audit.segment import list_segments
from common.forms.documents import decode_document

_CHECKPOINT: Final = b'\n{"kind":"checkpoint"'
_GLANCE: Final = 4 << 20  # bytes at the end of a segment that normally hold two checkpoints


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a segment ends."""

    seq: int  # of the last whole line; 0: there is none
    digest: bytes  # its hash
    end: int  # bytes up to the end of that line
    rest: bytes  # what follows it: nothing, or what a crash left


def find_tail(path: Path) -> Tail:
    """Find the last line of a segment that follows from those before it.

    It looks from the second-last checkpoint on, which was synced before the last one was written; earlier lines are for
    `verify` to check.
    """
    size = path.stat().st_size
    data = path.read_bytes() if size <= _GLANCE else _read_end(path)
    start = data.rfind(_CHECKPOINT, 0, max(data.rfind(_CHECKPOINT), 0))
    if start < 0 and len(data) < size:
        data = path.read_bytes()
    tail = _follow(data[start + 1 :], has_header=start < 0)
    before = size - len(data) + start + 1
    return Tail(tail.seq, tail.digest, before + tail.end, tail.rest)


def load_recent_changes(directory: Path, nexus: str, *, since: int) -> dict[int, set[bytes]]:
    """Load the entries of changes with revision *since* and later, by revision, from the last two segments.

    Segments that a crash began do not count among the two.
    """
    changes: dict[int, set[bytes]] = {}
    ends: dict[str, int] = {}
    left = 2
    for segment in reversed(list_segments(directory, nexus)):
        torn_before = len(ends)
        for line in _list_lines(directory / segment.name, ends.get(segment.name)):
            if isinstance(line, TornTailLine):
                ends[line.file] = line.offset
            elif line.revision >= since:
                changes.setdefault(line.revision, set()).add(bytes(line.entry))
        has_nothing_whole = ends.get(segment.name) == 0
        if len(ends) == torn_before and not has_nothing_whole:
            left -= 1
        if left == 0:
            break
    return changes


def _read_end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-_GLANCE, 2)
        return file.read()


def _follow(data: bytes, *, has_header: bool) -> Tail:
    seq, digest, end = 0, b"", 0
    for encoded in data.splitlines(keepends=True):
        try:
            if end == 0:
                line, found = decode_first_line(encoded, is_header=has_header)
            else:
                line, found = decode_line(encoded, digest)
        except CorruptRowError:
            break
        if end and line.seq != seq + 1:
            break
        seq, digest, end = line.seq, found, end + len(encoded)
    return Tail(seq, digest, end, data[end:])


def _list_lines(path: Path, end: int | None) -> Iterator[ChangeLine | TornTailLine]:
    decoder = msgspec.json.Decoder(ChangeLine | TornTailLine)
    offset = 0
    with path.open("rb") as file:
        for encoded in file:
            offset += len(encoded)
            if (end is not None and offset > end) or not encoded.endswith(b"\n"):
                return
            if encoded.startswith((b'{"kind":"change"', b'{"kind":"torn-tail"')):
                try:
                    yield decode_document(decoder.decode, encoded, refusal="line is no record")
                except CorruptRowError:
                    return
