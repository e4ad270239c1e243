"""Reads the lines of the audit files by their numbers, page by page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import CorruptRowError, NotFoundError
from common.forms.audit.line import decode_first_line
from common.forms.audit.segment import Segment, list_segments
from nexus.access.audit.directory import find_tail

MAX_PAGE: Final = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class _Resumption:
    """Where a page ended."""

    segment: Segment
    seq: int
    offset: int  # bytes


class ChainReader:
    """Used by one thread at a time. Methods raise OSError as it comes."""

    def __init__(self, directory: Path, nexus: str) -> None:
        self._directory = directory
        self._nexus = nexus
        self._resumption: _Resumption | None = None  # the next page mostly begins where one ended

    def list_timelines(self) -> list[int]:
        """List the timelines of which there are files, ascending."""
        return sorted({segment.timeline for segment in list_segments(self._directory, self._nexus)})

    def read(self, timeline: int, *, after: int | None, limit: int) -> list[bytes]:
        """Read at most *limit* whole lines after number *after*, None: the last ones.

        Raises:
            NotFoundError: There are no files of this timeline.
        """
        starts = self._list_starts(timeline)
        if not starts:
            raise NotFoundError(f"no audit files of timeline {timeline}")
        if after is None:
            last, _ = starts[-1]
            after = max(0, find_tail(self._directory / last.name).seq - limit)
        lines: list[bytes] = []
        size = 0
        for index, (segment, first) in enumerate(starts):
            end = starts[index + 1][1] if index + 1 < len(starts) else None
            if end is not None and end <= after + 1:
                continue
            for line in self._read_segment(segment, first, end, after):
                size += len(line)
                if len(lines) == limit or (lines and size > MAX_PAGE):
                    return lines
                lines.append(line)
                after += 1
        return lines

    def _list_starts(self, timeline: int) -> list[tuple[Segment, int]]:
        """List the segments of a timeline, each with the number of its first line."""
        starts = []
        for segment in list_segments(self._directory, self._nexus):
            if segment.timeline == timeline:
                with (self._directory / segment.name).open("rb") as file:
                    try:
                        line, _ = decode_first_line(file.readline(), is_header=True)
                    except CorruptRowError:
                        continue  # a crash left it before its first line was whole
                starts.append((segment, line.seq))
        return starts

    def _read_segment(self, segment: Segment, first: int, end: int | None, after: int) -> list[bytes]:
        """Read lines from number *after* + 1 up to, and without, number *end*, None: up to the last whole one."""
        path = self._directory / segment.name
        resumed = self._resumption
        seq, offset = first, 0
        if resumed is not None and resumed.segment == segment and first <= resumed.seq <= after + 1:
            seq, offset = resumed.seq, resumed.offset
        lines: list[bytes] = []
        size = 0
        with path.open("rb") as file:
            file.seek(offset)
            while (end is None or seq < end) and size <= MAX_PAGE:
                if seq == after + 1:
                    self._resumption = _Resumption(segment, seq, file.tell())
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                if seq > after:
                    lines.append(line)
                    size += len(line)
                seq += 1
        return lines
