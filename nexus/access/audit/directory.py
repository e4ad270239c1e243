"""The files of the audit: which segments there are, and where the last one ends."""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec

from common.errors import AuditUnavailableError, CorruptRowError
from common.forms.audit.line import ChangeLine, TornTailLine, decode_first_line, decode_line
from common.forms.audit.segment import Segment, list_segments
from common.forms.documents import decode_document

_CHECKPOINT: Final = b'\n{"kind":"checkpoint"'
_GLANCE: Final = 4 << 20  # bytes at the end of a segment that normally hold two checkpoints


class ChainPosition(NamedTuple):
    """How far a chain has come."""

    timeline: int
    seq: int  # of the last line; 0: there is none
    digest: bytes  # hash of the last line, 32 bytes


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a segment ends."""

    seq: int  # of the last whole line; 0: there is none
    digest: bytes  # its hash
    end: int  # bytes up to the end of that line
    rest: bytes  # what follows it: nothing, or what a crash left


def lock_process(path: Path) -> int:
    """Take the lock that only one process has at a time; return its descriptor, whose closing gives it back.

    Raises:
        AuditUnavailableError: Another process has it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise AuditUnavailableError(f"audit lock {path} is held: another nexus writes this audit") from exc
    return fd


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


def find_digest(directory: Path, nexus: str, timeline: int, seq: int) -> bytes | None:
    """Find the hash of a line, None when there is no such line, or it does not follow from the one before."""
    for segment in reversed(list_segments(directory, nexus)):
        if segment.timeline == timeline:
            with (directory / segment.name).open("rb") as file:
                try:
                    line, digest = decode_first_line(file.readline(), is_header=True)
                    if line.seq == seq:
                        return digest
                    if line.seq < seq:
                        before, encoded = _read_line(file, seq - line.seq)
                        return decode_line(encoded, before or digest)[1]
                except CorruptRowError:
                    continue
    return None


def _read_line(file: BinaryIO, distance: int) -> tuple[bytes, bytes]:
    """Return the line *distance* lines after the first one, and the hash that the line before it has in its text."""
    encoded = before = b""
    for _ in range(distance):
        before, encoded = encoded, file.readline()
    try:
        return bytes.fromhex(before[-67:-3].decode("ascii")), encoded
    except ValueError as exc:
        raise CorruptRowError("line has a hash that is not hex") from exc


def load_recent_changes(
    directory: Path, nexus: str, *, since: int, after: ChainPosition | None = None
) -> dict[int, set[bytes]]:
    """Load the entries of changes with revision *since* and later, by revision, from the last two segments.

    Segments that a crash began do not count among the two. Further ones are read back to the line *after*.
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
        if left <= 0 and (after is None or _begins_before(directory, segment, after)):
            break
    return changes


def _begins_before(directory: Path, segment: Segment, position: ChainPosition) -> bool:
    """Say whether all that follows *position* is in *segment* and later ones."""
    if segment.timeline != position.timeline:
        return segment.timeline < position.timeline
    with (directory / segment.name).open("rb") as file:
        try:
            line, _ = decode_first_line(file.readline(), is_header=True)
        except CorruptRowError:
            return False
    return line.seq <= position.seq


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
