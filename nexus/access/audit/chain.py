"""The chain of one nexus and timeline, and its end, which grows."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from common.clock import Clock, to_micros
from common.forms.audit.entry import Entry
from common.forms.audit.line import FORMAT, NO_HASH, Line, SegmentLine, TornTailLine, encode_line
from common.forms.audit.segment import Segment, hash_rest, list_segments
from nexus.access.audit.directory import Tail, find_tail
from nexus.access.audit.segment_file import SegmentFile

_log = structlog.get_logger("audit")


class ChainPosition(NamedTuple):
    """How far a chain has come."""

    timeline: int
    seq: int  # of the last line; 0: there is none
    digest: bytes  # hash of the last line, 32 bytes


class Chain:
    """Not thread-safe. Methods raise OSError as it comes, and then leave the chain as it was."""

    def __init__(self, directory: Path, *, nexus: str, timeline: int, clock: Clock) -> None:
        """Go on with the chain in *directory*, or begin it.

        What a crash left after its last whole line is named in a new segment. The chain of a new timeline follows from
        the last line of the one before.
        """
        self._directory = directory
        self._nexus = nexus
        self._clock = clock
        self.timeline = timeline
        self.seq = 0
        self._digest = NO_HASH
        self._number = 0
        self.file: SegmentFile
        self._attach()

    @property
    def digest(self) -> bytes:
        """Hash of the last line."""
        return self._digest

    @property
    def position(self) -> ChainPosition:
        """How far the chain has come."""
        return ChainPosition(self.timeline, self.seq, self._digest)

    def now(self) -> int:
        """Return microseconds since 1970."""
        return to_micros(self._clock.now())

    def write(self, make: Callable[[int], Line], *, from_reserve: bool = False) -> None:
        """Write the line that *make* makes for its number."""
        seq = self.seq + 1
        encoded, digest = encode_line(make(seq), self._digest)
        self.file.write(encoded, from_reserve=from_reserve)
        self.seq = seq
        self._digest = digest

    def sync(self) -> None:
        """Make all lines durable."""
        self.file.sync()
        self.file.take_unsynced()

    def begin_segment(self) -> None:
        """Close the current segment, which is synced, and go on in the next one."""
        finished = self.file
        self._begin(self._number + 1, [])
        finished.close()

    def close(self) -> None:
        """Sync and close."""
        try:
            self.file.sync()
        finally:
            self.file.close()

    def _attach(self) -> None:
        existing = [
            segment for segment in list_segments(self._directory, self._nexus) if self._path(segment).stat().st_size
        ]
        own = [segment for segment in existing if segment.timeline == self.timeline]
        earlier = [segment for segment in existing if segment.timeline < self.timeline]
        torn: list[tuple[Segment, Tail]] = []
        tail = None
        for segment in reversed(own or earlier):
            tail = find_tail(self._path(segment))
            if tail.rest:
                torn.append((segment, tail))
            if tail.seq:
                break
        if own and tail is not None and not torn:
            self.seq, self._digest, self._number = tail.seq, tail.digest, own[-1].number
            self.file = SegmentFile(self._path(own[-1]), tail.end)
            return
        if tail is not None and tail.seq:
            self._digest = tail.digest
            self.seq = tail.seq if own else 0
        self._begin(own[-1].number + 1 if own else 1, torn)

    def _begin(self, number: int, torn: list[tuple[Segment, Tail]]) -> None:
        path = self._path(Segment(self._nexus, self.timeline, number))
        before = self.seq, self._digest
        file = SegmentFile(path, 0)
        try:
            file.set_aside()
            header = SegmentLine(self.seq + 1, FORMAT, self._nexus, self.timeline, number, self._digest.hex())
            lines: list[Line] = [header]
            lines += [self._name_torn(seq, *one) for seq, one in enumerate(torn, start=header.seq + 1)]
            encoded = []
            for line in lines:
                one, self._digest = encode_line(line, self._digest)
                encoded.append(one)
                self.seq = line.seq
            file.write(b"".join(encoded), from_reserve=True)  # at once: a header alone would hide the torn tail
            file.sync()
            file.take_unsynced()
            self._sync_directory()
        except OSError:
            self.seq, self._digest = before
            file.close()
            path.unlink()
            raise
        self.file = file
        self._number = number

    def _name_torn(self, seq: int, segment: Segment, tail: Tail) -> TornTailLine:
        size = len(tail.rest)
        _log.warning("audit has a torn tail", file=segment.name, offset=tail.end, size=size)
        detail = f"{size} bytes after byte {tail.end} of {segment.name}"
        entry = Entry(at=self.now(), actor="", action="audit.torn-tail", detail=detail)
        return TornTailLine(seq, entry, segment.name, tail.end, size, hash_rest(tail.rest))

    def _path(self, segment: Segment) -> Path:
        return self._directory / segment.name

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
