"""A store notices that it is in another file than before."""

from contextlib import closing
from pathlib import Path

from structlog.testing import capture_logs

from nexus.store.sqlite.store import SqliteStore
from tests.nexus.store.contract import make_row, put

EVENT = "store is in another file than before, and read through"


def open_and_close(file: Path) -> list[str]:
    """Return what the opening logged."""
    with capture_logs() as logs, closing(SqliteStore.open(file)):
        pass
    return [entry["event"] for entry in logs]


def test_a_file_that_was_removed_and_put_back_is_another_one(tmp_path: Path) -> None:
    """Also where the new file has the inode of the old one, as it mostly has on ext4; then it is known."""
    file = tmp_path / "nexus.db"
    with closing(SqliteStore.open(file)) as store:
        put(store, make_row("a"))
    assert open_and_close(file) == []
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    assert open_and_close(file) == [EVENT]
    assert open_and_close(file) == []


def test_a_file_that_was_renamed_is_the_same(tmp_path: Path) -> None:
    """Nothing of it was copied."""
    file = tmp_path / "nexus.db"
    with closing(SqliteStore.open(file)) as store:
        put(store, make_row("a"))
    assert open_and_close(file.rename(tmp_path / "moved.db")) == []
