"""A store whose files are deleted, renamed or replaced while it is open."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import StoreFileLostError, StoreUnavailableError
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.store.contract import load_audit, load_meta, make_row, put


def rename(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}-moved"))


def replace(path: Path) -> None:
    """Put a copy in its place, which is another file with the same bytes."""
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def swap_folder(path: Path) -> None:
    """Move the folder away, and put one with copies of all files in its place."""
    moved = path.parent.with_name("moved")
    path.parent.rename(moved)
    shutil.copytree(moved, path.parent)


def link_away(path: Path) -> None:
    """Move it, and leave a symbolic link to it."""
    moved = path.with_name("elsewhere")
    path.rename(moved)
    path.symlink_to(moved)


WAYS = [
    pytest.param(Path.unlink, "", "is gone", id="deleted"),
    pytest.param(rename, "", "is gone", id="renamed"),
    pytest.param(replace, "", "was replaced by another file", id="replaced"),
    pytest.param(link_away, "", "was replaced by another file", id="moved, with a link left"),
    pytest.param(Path.unlink, "-wal", "is gone", id="WAL deleted"),
    pytest.param(replace, "-wal", "was replaced by another file", id="WAL replaced"),
    pytest.param(Path.unlink, "-shm", "is gone", id="WAL index deleted"),
    pytest.param(Path.unlink, ".lock", "is gone", id="lock deleted"),
    pytest.param(swap_folder, "", "was replaced by another file", id="folder replaced"),
    pytest.param(lambda path: path.parent.rename(path.parent.with_name("moved")), "", "is gone", id="folder renamed"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the store's file is, in a folder of its own."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "nexus.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteStore]:
    """An open store with one version."""
    with closing(SqliteStore.open(file)) as store:
        put(store, make_row("a", 1))
        yield store


@pytest.mark.parametrize(("take_away", "suffix", "says"), WAYS)
def test_nothing_is_acknowledged_into_a_file_that_is_not_at_its_place(
    file: Path, store: SqliteStore, take_away: Callable[[Path], object], suffix: str, says: str
) -> None:
    """The next change has an unknown outcome, the file is named, and every later call is refused."""
    assert store.find_fault() == ""
    take_away(Path(f"{file}{suffix}"))
    with pytest.raises(StoreFileLostError, match=f"{file.name}{suffix} {says}"):
        put(store, make_row("a", 2))
    assert f"{file.name}{suffix} {says}" in store.find_fault()
    for call in (lambda: load_meta(store), lambda: put(store, make_row("a", 3)), lambda: load_audit(store)):
        with pytest.raises(StoreFileLostError, match=says):
            call()


def test_a_look_finds_it_before_anything_is_committed(file: Path, store: SqliteStore) -> None:
    """An idle store refuses reads as soon as somebody has looked, also when the file has come back."""
    rename(file)
    assert "is gone" in store.find_fault()
    Path(f"{file}-moved").rename(file)
    assert "is gone" in store.find_fault()
    with pytest.raises(StoreFileLostError, match="is gone"):
        load_meta(store)


def test_a_batch_that_cannot_be_rolled_back_is_not_looked_for_in_another_file(file: Path, store: SqliteStore) -> None:
    """The store is not opened afresh from a file that somebody has put in the place of its own."""
    replace(file)
    with pytest.raises(StoreFileLostError, match="was replaced"):
        store._reopen()


def test_files_of_a_store_that_was_opened_again_are_known(store: SqliteStore) -> None:
    """The WAL that SQLite makes anew after a failed commit is no other store's."""
    store._reopen()
    assert store.find_fault() == ""
    put(store, make_row("a", 2))


def test_closing_leaves_what_was_put_in_the_place_of_the_store_alone(file: Path, store: SqliteStore) -> None:
    """The WAL of another database at the same path is not deleted, nor is the WAL of the one that was renamed."""
    for suffix in ("", "-wal"):
        os.link(f"{file}{suffix}", f"{file}{suffix}-kept")
        Path(f"{file}{suffix}").unlink()
        Path(f"{file}{suffix}").write_bytes(b"of another store")
    store.close()
    assert Path(f"{file}-wal").read_bytes() == b"of another store"
    for suffix in ("", "-wal"):
        Path(f"{file}{suffix}-kept").rename(f"{file}{suffix}")
    with closing(SqliteStore.open(file)) as again, again.read() as reader:
        assert reader.load_version("a", 0) == make_row("a", 1)


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_what_was_acknowledged_survives_the_loss_of_all_but_the_database(
    file: Path, store: SqliteStore, suffix: str
) -> None:
    """The close copies into the database what is in the WAL, whether somebody has deleted it or not."""
    Path(f"{file}{suffix}").unlink()
    assert store.find_fault()
    store.close()
    with closing(SqliteStore.open(file)) as again, again.read() as reader:
        assert reader.load_version("a", 0) == make_row("a", 1)


@pytest.mark.parametrize("leave", [Path.unlink, lambda file: os.truncate(file, 0)], ids=["missing", "empty"])
def test_a_wal_without_its_database_is_left_for_it(
    file: Path, tmp_path: Path, store: SqliteStore, leave: Callable[[Path], object]
) -> None:
    """No store is made beside it: SQLite would delete the WAL, and the newest changes with it."""
    killed = tmp_path / "killed"
    shutil.copytree(file.parent, killed)
    leave(killed / file.name)
    wal = (killed / f"{file.name}-wal").read_bytes()
    with pytest.raises(StoreUnavailableError, match=rf"nexus\.db is missing, but its {file.name}-wal is there"):
        SqliteStore.open(killed / file.name)
    assert (killed / f"{file.name}-wal").read_bytes() == wal
    shutil.copy(file, killed / file.name)
    with closing(SqliteStore.open(killed / file.name)) as again:
        assert load_meta(again).revision == 1
