"""A segment file: what a disk that fails does to it."""

from contextlib import closing
from pathlib import Path

import pytest

from nexus.access.audit.segment_file import SegmentFile
from tests.nexus.access.audit.descriptor import replaced


@pytest.mark.parametrize("failures", [1, 2])
def test_what_failed_syncs_may_have_lost_is_written_again(tmp_path: Path, failures: int) -> None:
    """The kernel drops pages that it could not write and reports that once: the next sync says nothing of them."""
    path = tmp_path / "segment"
    with closing(SegmentFile(path, 0)) as file:
        file.write(b"kept\n", from_reserve=False)
        file.sync()
        file.take_unsynced()
        file.write(b"lost\n", from_reserve=False)
        for _ in range(failures):
            file.rewrite()
            with replaced(path, by="/dev/null"), pytest.raises(OSError, match="Invalid argument"):
                file.sync()
        with path.open("r+b") as dropped:
            dropped.seek(len(b"kept\n"))
            dropped.write(bytes(len(b"lost\n")))
        file.rewrite()
        file.sync()
    assert path.read_bytes() == b"kept\nlost\n"


def test_blocks_that_cannot_be_given_back_keep_no_segment_from_being_closed(tmp_path: Path) -> None:
    """They are only room that was set aside."""
    path = tmp_path / "segment"
    file = SegmentFile(path, 0)
    file.write(b"kept\n", from_reserve=False)
    with replaced(path, by="/dev/null"):
        file.close()
    assert path.read_bytes() == b"kept\n"
