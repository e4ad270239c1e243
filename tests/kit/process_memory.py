"""Look into the memory of another process, page by page, as root may."""

import base64
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)$")
_CHUNK = 256 * 1024
_NOTHING = bytes(_CHUNK)  # untouched pages read as zeros, and there are gigabytes of them
_OVERLAP = 256  # longer than any form of a key, so that none hides on the border of two chunks


@dataclass(frozen=True, slots=True)
class Region:
    """One mapping of the process."""

    start: int
    end: int
    name: str
    flags: frozenset[str]  # VmFlags of smaps
    locked: int = 0  # bytes that are never swapped
    swapped: int = 0  # bytes

    @property
    def is_protected(self) -> bool:
        """Whether it is locked and in no core dump or fork: an arena of level 2. (Level 3 cannot be read at all.)"""
        return {"lo", "dd", "dc"} <= self.flags or "secretmem" in self.name


@dataclass(frozen=True, slots=True)
class Finding:
    """One key, in one form, where it must not be."""

    key: str
    form: str
    address: int
    region: str
    is_protected: bool

    def __str__(self) -> str:
        return f"{self.key} as {self.form} at {self.address:#x} in {self.region or 'anonymous memory'}"


def list_regions(pid: int) -> list[Region]:
    """Return all writable mappings of a process: heaps, stacks, arenas and the data of libraries."""
    regions: list[Region] = []
    head: tuple[int, int, str] | None = None
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if (mapping := _MAPPING.match(line)) is not None:
            # Mappings that are not writable are the text and the constants of programs and libraries.
            is_written = "w" in mapping[3]
            head = (int(mapping[1], 16), int(mapping[2], 16), mapping[4]) if is_written else None
        elif line.startswith(("Locked:", "Swap:")):
            name, kibibytes, _ = line.split()
            sizes[name] = int(kibibytes) * 1024
        elif line.startswith("VmFlags:") and head is not None:
            regions.append(Region(*head, frozenset(line.split()[1:]), sizes["Locked:"], sizes["Swap:"]))
    return regions


def read_region(pid: int, region: Region) -> Iterator[tuple[int, bytes]]:
    """Yield the readable parts of a region, in overlapping pieces with their addresses; nothing of unreadable pages."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        position = region.start
        while position < region.end:
            memory.seek(position)
            try:
                piece = memory.read(min(_CHUNK, region.end - position))
            except OSError:
                return
            if not piece:
                return
            if piece != _NOTHING:
                yield position, piece
            position += max(len(piece) - _OVERLAP, 1) if position + len(piece) < region.end else len(piece)


def make_forms(key: bytes) -> Mapping[str, bytes]:
    """Return the forms in which a key could be in memory: bytes, halves, hex, base64, and the digits of an int."""
    half = len(key) // 2
    forms = {
        "bytes": key,
        "first half": key[:half],
        "second half": key[half : 2 * half],
        "hex": key.hex().encode(),
        "upper hex": key.hex().upper().encode(),
        "int, big-endian": _digits(int.from_bytes(key, "big")),
        "int, little-endian": _digits(int.from_bytes(key, "little")),
    }
    for shift in range(3):
        # Base64 of the key after `shift` other bytes, without the characters that those bytes take part in.
        encoded = base64.b64encode(bytes(shift) + key).rstrip(b"=")
        forms[f"base64, shifted by {shift}"] = encoded[(0, 2, 3)[shift] : -1]
    return forms


def find_keys(pid: int, keys: Mapping[str, bytes], *, also_protected: bool = False) -> list[Finding]:
    """Search every readable region that is not protected for every form of every key, 8 bytes or more each.

    *also_protected* includes the protected regions: root can read those at level 2.
    """
    known = {pattern: (name, form) for name, key in keys.items() for form, pattern in make_forms(key).items()}
    words = _Words(known)
    return [
        Finding(*known[pattern], address + offset, region.name, region.is_protected)
        for region in list_regions(pid)
        if also_protected or not region.is_protected
        for address, piece in read_region(pid, region)
        if words.may_be_in(piece)
        for pattern in known
        for offset in _find_all(piece, pattern)
    ]


class _Words:
    """Rules out quickly that a pattern is in a piece: a pattern covers some aligned word whole, wherever it begins.

    A piece of memory, read as an array of such words, is compared with one set, however many patterns there are.
    """

    def __init__(self, patterns: Collection[bytes]) -> None:
        self._type: Literal["Q", "I"] = "Q" if all(len(pattern) >= 15 for pattern in patterns) else "I"
        self._size = 8 if self._type == "Q" else 4
        self._words = {
            int.from_bytes(pattern[start : start + self._size], sys.byteorder)
            for pattern in patterns
            for start in range(self._size)
        }

    def may_be_in(self, piece: bytes) -> bool:
        whole = len(piece) - len(piece) % self._size
        return not self._words.isdisjoint(memoryview(piece)[:whole].cast(self._type))


def _find_all(piece: bytes, pattern: bytes) -> Iterator[int]:
    offset = piece.find(pattern)
    while offset >= 0:
        yield offset
        offset = piece.find(pattern, offset + 1)


def _digits(number: int) -> bytes:
    """Return the 30-bit digits in which CPython keeps an int, except the highest, which is shorter."""
    digits = []
    while number:
        digits.append(number & (2**30 - 1))
        number >>= 30
    return b"".join(digit.to_bytes(4, "little") for digit in digits[:-1])
