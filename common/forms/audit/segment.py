"""The audit files by name, and the hash that identifies a torn tail."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"(?P<nexus>[A-Za-z0-9._-]{1,64})\.(?P<timeline>[0-9]{6})\.(?P<number>[0-9]{6})\.jsonl")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file of one chain. Segments sort in the order in which they were written."""

    nexus: str
    timeline: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.nexus}.{self.timeline:06}.{self.number:06}.jsonl"


def list_segments(directory: Path, nexus: str | None = None) -> list[Segment]:
    """List the segments of one nexus (None: of all) in order. Other files are ignored."""
    names = (_NAME.fullmatch(path.name) for path in directory.iterdir())
    found = (Segment(name["nexus"], int(name["timeline"]), int(name["number"])) for name in names if name is not None)
    return sorted(segment for segment in found if nexus is None or segment.nexus == nexus)


def hash_rest(rest: bytes) -> str:
    """Return the SHA-256 that identifies a torn tail, in hex."""
    return hashlib.sha256(rest).hexdigest()
