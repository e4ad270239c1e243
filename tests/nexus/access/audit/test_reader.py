"""Reading the audit by numbers: pages together are the files."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import NotFoundError
from nexus.access.audit.reader import MAX_PAGE
from tests.nexus.access.audit.keyed import make_entry
from tests.nexus.access.audit.test_log import FIRST, open_log

WaitUntil = Callable[..., None]


def write_audit(directory: Path, wait_until: WaitUntil) -> None:
    """Write two timelines, of which the second has several segments and a torn tail."""
    with closing(open_log(directory, timeline=0)) as log:
        log.append(make_entry("first"))
    with closing(open_log(directory, segment_size=20_000)) as log:
        for segments in (3, 4):
            for number in range(100):
                log.append(make_entry(str(number)))
            wait_until(lambda segments=segments: len(list(directory.glob("*.jsonl"))) >= segments)
    with max(directory.glob("*.jsonl")).open("ab") as newest:
        newest.write(b'{"kind":"entry","seq":')


def load_whole_lines(directory: Path, timeline: int) -> list[bytes]:
    """Load all whole lines of a timeline."""
    files = sorted(directory.glob(f"nexus-1.{timeline:06}.*.jsonl"))
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return [line for line in lines if line.endswith(b"\n")]


@pytest.mark.parametrize("limit", [1, 7, 1_000])
def test_pages_together_are_all_whole_lines(tmp_path: Path, wait_until: WaitUntil, limit: int) -> None:
    """Over the ends of segments, and past a torn tail."""
    write_audit(tmp_path, wait_until)
    with closing(open_log(tmp_path)) as log:
        assert log.list_timelines() == [0, 1]
        for timeline in (0, 1):
            lines: list[bytes] = []
            while page := log.read_lines(timeline, after=len(lines), limit=limit):
                lines += page
            assert lines == load_whole_lines(tmp_path, timeline)


def test_the_last_lines_and_those_after_any_number(tmp_path: Path, wait_until: WaitUntil) -> None:
    """In whatever order they are asked for."""
    write_audit(tmp_path, wait_until)
    with closing(open_log(tmp_path)) as log:
        lines = load_whole_lines(tmp_path, 1)
        assert log.read_lines(1, after=None, limit=5) == lines[-5:]
        for after in (150, 3, 149, 0, len(lines)):
            assert log.read_lines(1, after=after, limit=5) == lines[after : after + 5]
        assert log.read_lines(1, after=1 << 63, limit=5) == []
        with pytest.raises(NotFoundError, match="timeline 9"):
            log.read_lines(9, after=0, limit=5)


def test_a_page_is_bounded(tmp_path: Path) -> None:
    """Long lines make a short page, and one that is longer than a page comes alone."""
    with closing(open_log(tmp_path)) as log:
        for _ in range(6):
            log.append(make_entry("a", detail="x" * 300_000))
        page = log.read_lines(1, after=0, limit=1_000)
        assert sum(map(len, page)) <= MAX_PAGE
        assert page + log.read_lines(1, after=len(page), limit=1_000) == load_whole_lines(tmp_path, 1)
    assert (tmp_path / FIRST).exists()
