"""Files with secrets in them: mode, replacement, removal, and where they may be."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot.errors import PilotError, UsageError
from pilot.programs.secret_file import MOUNTS, SecretFile, find_file_system

MEMORY = Path("/dev/shm")

LINES = """\
22 1 0:21 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /dev/shm rw,nosuid,nodev shared:5 master:1 - tmpfs tmpfs rw,size=1g
31 22 0:27 / /with\\040space rw - fuse.sshfs some-where rw
32 22 0:28 /
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder on a tmpfs."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("minor", "kind"),
    [
        pytest.param(21, "ext4", id="a disk"),
        pytest.param(26, "tmpfs", id="in memory, with optional fields"),
        pytest.param(27, "fuse.sshfs", id="another machine"),
        pytest.param(28, "", id="half a line"),
        pytest.param(99, "", id="not listed"),
    ],
)
def test_kinds_of_file_systems(minor: int, kind: str) -> None:
    """The kind stands after the dash, on the line of the device."""
    assert find_file_system(os.makedev(0, minor), LINES) == kind


def test_written_for_its_owner(folder: Path) -> None:
    """Each content replaces the one before as a whole, mode 0600, nothing else stays, and in the end it is gone."""
    target = folder / "app.conf"
    file = SecretFile(target)
    for content in (b"one", b"two two"):
        file.write(content)
        assert target.read_bytes() == content
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert list(folder.iterdir()) == [target]
    file.close()
    assert list(folder.iterdir()) == []


def test_replaced_and_not_written_into(folder: Path) -> None:
    """Whoever has the file open keeps the old content; a link is replaced, and what it led to is left alone."""
    other = folder / "other"
    other.write_bytes(b"other")
    target = folder / "app.conf"
    target.symlink_to(other)
    file = SecretFile(target)
    file.write(b"one")
    with target.open("rb") as reader:
        file.write(b"two")
        assert reader.read() == b"one"
    assert (other.read_bytes(), target.is_symlink()) == (b"other", False)
    file.close()


def test_removed_only_if_written(folder: Path) -> None:
    """What was there before stays when nothing was written."""
    target = folder / "app.conf"
    target.write_bytes(b"of before")
    SecretFile(target).close()
    assert target.read_bytes() == b"of before"


def test_removed_by_somebody_else(folder: Path) -> None:
    """A file that is gone already is no error."""
    file = SecretFile(folder / "app.conf")
    file.write(b"one")
    (folder / "app.conf").unlink()
    file.close()


def test_a_write_that_fails(folder: Path) -> None:
    """A target that is a folder is an error of pilot, and leaves no unfinished file."""
    (folder / "app.conf").mkdir()
    file = SecretFile(folder / "app.conf")
    with pytest.raises(PilotError, match=r"app\.conf: Is a directory"):
        file.write(b"one")
    assert [one.name for one in folder.iterdir()] == ["app.conf"]
    file.close()


def test_the_folder_that_was_checked(folder: Path, tmp_path: Path) -> None:
    """A folder whose name leads elsewhere after the check is not followed there."""
    checked = folder / "run"
    checked.mkdir()
    file = SecretFile(checked / "app.conf")
    checked.rename(folder / "moved")
    checked.symlink_to(tmp_path)
    file.write(b"one")
    assert (folder / "moved" / "app.conf").read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == []
    file.close()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        pytest.param("/proc/app.conf", "/proc/app.conf: the folder is on proc, want tmpfs", id="not in memory"),
        pytest.param("/dev/shm/missing/app.conf", "/dev/shm/missing: No such file or directory", id="no folder"),
        pytest.param("/proc/version/app.conf", "/proc/version: Not a directory", id="a file as folder"),
        pytest.param("/", "/: got a folder, want the name of a file", id="no name"),
    ],
)
def test_refused_places(target: str, said: str) -> None:
    """A place that is not in memory, or none at all, is refused before anything is written."""
    with pytest.raises(UsageError) as caught:
        SecretFile(Path(target))
    assert str(caught.value).startswith(said)


def test_on_a_disk_when_told(tmp_path: Path) -> None:
    """What says that a disk is fine may write to one."""
    file = SecretFile(tmp_path / "app.conf", may_be_on_disk=True)
    file.write(b"one")
    assert (tmp_path / "app.conf").read_bytes() == b"one"
    file.close()


def test_memory_is_memory() -> None:
    """The folder that these tests use is what they say, so that none of them passes for another reason."""
    assert find_file_system(MEMORY.stat().st_dev, MOUNTS.read_text()) == "tmpfs"
