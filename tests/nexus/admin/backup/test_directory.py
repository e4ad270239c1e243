"""The directory of backups: what its names say, and that a name comes last."""

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BackupUnavailableError, NotFoundError
from nexus.admin.backup.directory import BackupDirectory, BackupFile
from tests.kit.backups import CLUSTER, HEADER

OTHER = b"o" * 16


@pytest.fixture
def directory(tmp_path: Path) -> BackupDirectory:
    """An empty one."""
    return BackupDirectory(tmp_path, nexus="n1")


def make(directory: BackupDirectory, **parts: int | bytes) -> BackupFile:
    """Make a file, not of a real backup."""
    with directory.create(replace(HEADER, **parts)) as (fd, name):  # type: ignore[arg-type]  # as tests need them
        os.write(fd, b"backup")
    return directory.describe(name)


def test_a_name_says_what_is_in_the_file(directory: BackupDirectory) -> None:
    """Cluster, timeline, generation, revision, and when; to the second."""
    file = make(directory, created_at=1_700_000_000_123_456)
    assert file.name.startswith("shardhold-63636363-t1-g3-r300-20231114T221320Z-")
    assert (file.size, file.cluster, file.timeline, file.generation, file.revision) == (6, "63636363", 1, 3, 300)
    assert file.created_at == 1_700_000_000_000_000
    assert directory.list() == [file]
    assert directory.locate(file).read_bytes() == b"backup"


def test_the_newest_comes_first(directory: BackupDirectory, tmp_path: Path) -> None:
    """By timeline, then revision, then time; another cluster's is found by its name alone."""
    oldest = make(directory, revision=900)
    middle = make(directory, timeline=2, revision=9)
    newest = make(directory, timeline=2, revision=10)
    other = make(directory, timeline=3, cluster_id=OTHER)
    assert directory.list() == [other, newest, middle, oldest]
    assert directory.find(cluster_id=CLUSTER) == newest
    assert directory.find(other.name, cluster_id=CLUSTER) == other
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(NotFoundError, match="no backup of this cluster"):
        directory.find(cluster_id=CLUSTER)


def test_other_files_are_left_alone(directory: BackupDirectory, tmp_path: Path) -> None:
    """Nor does a link or a folder count as a backup, whatever its name is."""
    file = make(directory)
    (tmp_path / f"{file.name}.part").touch()
    (tmp_path / file.name.replace("Z-", "9-")).touch()
    (tmp_path / file.name.replace("-r300-", "-r301-")).symlink_to(file.name)
    (tmp_path / file.name.replace("-r300-", "-r302-")).mkdir()
    (tmp_path / file.name.replace("19700101T", "19709999T")).touch()
    assert directory.list() == [file]


@pytest.mark.parametrize("name", ["../etc/passwd", "shardhold", "/etc/passwd", "\0", "x" * 5_000])
def test_a_name_leads_nowhere_else(directory: BackupDirectory, name: str) -> None:
    """Only what is listed is found."""
    make(directory)
    with pytest.raises(NotFoundError):
        directory.find(name, cluster_id=CLUSTER)


def test_a_file_has_its_name_once_it_is_whole(directory: BackupDirectory, tmp_path: Path) -> None:
    """Before, it is hidden; if it fails, it is gone."""
    with directory.create(HEADER):
        (path,) = tmp_path.iterdir()
        assert (path.name[0], path.stat().st_mode & 0o777) == (".", 0o600)
        assert directory.list() == []
    assert len(directory.list()) == 1
    with pytest.raises(KeyError), directory.create(HEADER):
        raise KeyError
    assert len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_refuses_is_named(directory: BackupDirectory, tmp_path: Path) -> None:
    """With the option, and what the system says."""
    tmp_path.rmdir()
    with pytest.raises(BackupUnavailableError, match="backup.directory .*No such file"):
        make(directory)
    with pytest.raises(BackupUnavailableError, match="backup.directory .*No such file"):
        directory.list()


def test_what_a_killed_process_left_goes_with_the_next_backup(directory: BackupDirectory, tmp_path: Path) -> None:
    """Its own; that of a nexus whose name ends as this one's may be at work."""
    name = make(directory).name
    left, others = tmp_path / f".{name}.n1.new", tmp_path / f".{name}.x.n1.new"
    left.touch()
    others.touch()
    make(directory)
    assert not left.exists()
    assert others.exists()


def test_a_backup_whose_name_is_not_durable_is_none(
    directory: BackupDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the caller was told that it failed, it is not listed."""
    sync = os.fsync

    def refuse_directories(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    with pytest.raises(BackupUnavailableError, match="Input/output error"):
        make(directory)
    assert list(tmp_path.iterdir()) == []
