"""Overwrites what SQLite leaves behind in its pages of rows that it moved.

`secure_delete` overwrites a row where it stands when it is deleted. But to balance pages, SQLite copies rows from one
to another, and the bytes of before stay in the part of the page that no row uses any more. A row that is deleted later
is still there, whole or in part: so it was after one in five random histories of 400 changes.

1. Only that part is written: what is between the pointers to the rows of a page and the rows. It means nothing to
   SQLite, so no read is wrong, and a crash at any instruction leaves a sound database.
2. Nobody else writes meanwhile, and the WAL is empty, so the file is the whole database. Looking needs neither: what is
   left of a row that was deleted before stays in its page, and is in no other one later.
3. The descriptor stays open for as long as SQLite has the file open: closing it would drop SQLite's locks.
4. Whoever had pages in a cache for writing forgets them: the next change would bring the bytes back.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from common.errors import StoreUnavailableError

# https://www.sqlite.org/fileformat2.html: the head of a page says its kind, and where pointers end and rows begin.
_POINTERS_AT: Final = {2: 12, 5: 12, 10: 8, 13: 8}  # by kind of page: index or table, inside or leaf
_HEAD: Final = struct.Struct(">HH")  # at 3: number of rows, where they begin
_FIRST_HEAD: Final = 100  # of page 1, after the head of the file
_PAGE_SIZE: Final = struct.Struct(">H")  # at 16; 1: 65536
# Pages of other kinds begin with the number of a page; below this many, it is never taken for a kind.
_MOST_PAGES: Final = 2 << 24
_READ_AT_ONCE: Final = 4 << 20  # bytes; a multiple of every page size
_ZEROS: Final = bytes(1 << 16)


class Remnants:
    """What is left behind in the file of a store that SQLite has open."""

    def __init__(self, path: Path) -> None:
        """Open the file beside SQLite.

        Raises:
            StoreUnavailableError: It cannot be opened.
        """
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as exc:
            raise StoreUnavailableError(f"store {path} cannot be opened: {exc.strerror}") from exc

    def find(self) -> list[int]:
        """Find the pages, by their offsets in the file, in which something is left. May run beside changes.

        Raises:
            StoreUnavailableError: The disk refuses, or the file is too large for rule 1.
        """
        try:
            size, page_size = os.fstat(self._fd).st_size, self._load_page_size()
            if page_size and size // page_size >= _MOST_PAGES:
                raise StoreUnavailableError(f"store failed to scrub: {size} bytes are too many")
            return [
                offset + page
                for offset in range(0, size, _READ_AT_ONCE)
                for page in self._find_in(os.pread(self._fd, _READ_AT_ONCE, offset), offset, page_size)
            ]
        except OSError as exc:
            raise _refuse(exc) from exc

    def wipe(self, pages: Sequence[int]) -> None:
        """Overwrite what is left in *pages*, durably (rule 2).

        Raises:
            StoreUnavailableError: The disk refuses.
        """
        try:
            page_size = self._load_page_size()
            for offset in pages:
                page = os.pread(self._fd, page_size, offset)
                begin, end = _find_unused(page, 0, page_size, _FIRST_HEAD if offset == 0 else 0)
                if begin < end:
                    os.pwrite(self._fd, _ZEROS[: end - begin], offset + begin)
            os.fsync(self._fd)
        except OSError as exc:
            raise _refuse(exc) from exc

    def close(self) -> None:
        """Close the file, once SQLite has (rule 3)."""
        os.close(self._fd)

    def _load_page_size(self) -> int:
        """Load the size of a page in bytes, 0: the file is empty."""
        head = os.pread(self._fd, _PAGE_SIZE.size, 16)
        (size,) = _PAGE_SIZE.unpack(head) if head else (0,)
        return 1 << 16 if size == 1 else int(size)

    def _find_in(self, piece: bytes, offset: int, page_size: int) -> Iterator[int]:
        """Find such pages in a piece of the file that begins at *offset*."""
        for page in range(0, len(piece) - page_size + 1, page_size):
            begin, end = _find_unused(piece, page, page_size, _FIRST_HEAD if offset + page == 0 else 0)
            if begin < end and piece[begin:end] != _ZEROS[: end - begin]:
                yield page


def _find_unused(piece: bytes, page: int, page_size: int, head: int) -> tuple[int, int]:
    """Return where the unused part of a page begins and ends in *piece*; a damaged page has none."""
    pointers_at = _POINTERS_AT.get(piece[page + head])
    if pointers_at is None:
        return 0, 0
    rows, begin = _HEAD.unpack_from(piece, page + head + 3)
    end = page + (begin or 1 << 16)
    return (page + head + pointers_at + 2 * rows, end) if end <= page + page_size else (0, 0)


def _refuse(exc: OSError) -> StoreUnavailableError:
    return StoreUnavailableError(f"store failed to scrub: {exc.strerror}")
