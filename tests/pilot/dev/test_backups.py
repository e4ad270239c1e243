"""The backups of a development cluster: a folder, and an identity that opens them."""

import stat
from pathlib import Path

import pyrage
import pytest

from pilot.dev.backups import find_recipient
from pilot.dev.directory import DevDirectory, DevError, Plan


@pytest.fixture
def directory(tmp_path: Path) -> DevDirectory:
    """A new one."""
    directory = DevDirectory(tmp_path / "dev")
    directory.create(Plan())
    return directory


def test_an_identity_is_made_once(directory: DevDirectory) -> None:
    """For its owner alone, in the form that age reads; the next start finds it."""
    recipient = find_recipient(directory)
    assert find_recipient(directory) == recipient
    file = directory.backup_identity
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.backups.stat().st_mode) == 0o700
    (line,) = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert str(pyrage.x25519.Identity.from_str(line).to_public()) == recipient


@pytest.mark.parametrize("content", [b"", b"# public key: age1none\n", b"\xff"])
def test_a_damaged_identity_is_never_replaced(directory: DevDirectory, content: bytes) -> None:
    """It may be the only one that opens what is there."""
    directory.backup_identity.write_bytes(content)
    with pytest.raises(DevError, match="backup-identity"):
        find_recipient(directory)
    assert directory.backup_identity.read_bytes() == content
