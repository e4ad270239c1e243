"""age files: what goes wrong on either side comes out as what it is."""

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest

from common.errors import BackupError, BackupUnavailableError, InvalidArgumentError
from common.forms.backup.header import check_signature
from common.forms.backup.opened import decode_opened
from common.forms.backup.tables import Row
from common.forms.bech32 import encode_identity
from common.keys.age import encrypt, read_backup
from tests.kit.backups import CHAIN, ROWS, make_stream

IDENTITY = pyrage.x25519.Identity.generate()
RECIPIENT = str(IDENTITY.to_public())
FILE = str(IDENTITY).encode()


class Full(io.BytesIO):
    """A disk with little room."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        if self.tell() > 1_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def make_pieces() -> Iterator[bytes]:
    """Give some pieces, and then fail."""
    yield b"x" * 200_000
    raise BackupError("a row does not decode")


def write(path: Path, stream: bytes) -> bytes:
    """Write a stream to a file for the recipient."""
    with path.open("wb") as file:
        encrypt([stream[:5], stream[5:]], file, [RECIPIENT])
    return str(path).encode()


def test_a_large_backup_streams(tmp_path: Path) -> None:
    """Over many blocks of age, and pieces that are cut anywhere."""
    many: list[Row] = [(f"app/{number:06}", b"i" * 16, 1, number, 1, 0) for number in range(20_000)]
    path = write(tmp_path / "b.age", make_stream({**ROWS, "secrets": many}))
    opened = decode_opened(read_backup(path, FILE))
    assert opened.contents.rows["secrets"] == len(many)
    assert [row[:2] for row in opened.controls] == [row[:2] for row in ROWS["control"]]
    assert opened.meta == ROWS["meta"][0]
    assert check_signature(opened.contents) == CHAIN.chain


def test_the_reason_of_a_failure_comes_out_as_it_is() -> None:
    """A disk's, with its number; that of whoever gives the pieces."""
    with pytest.raises(OSError, match="No space left") as full:
        encrypt([b"x" * 200_000], Full(), [RECIPIENT])
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(BackupError, match="a row does not decode"):
        encrypt(make_pieces(), io.BytesIO(), [RECIPIENT])
    with pytest.raises(InvalidArgumentError, match="recipient"):
        encrypt([b""], io.BytesIO(), ["age1none"])


def test_a_file_that_cannot_be_read_is_not_damaged(tmp_path: Path) -> None:
    """Nor is a folder."""
    for path in (tmp_path / "none.age", tmp_path):
        with pytest.raises(BackupUnavailableError, match=str(path)):
            read_backup(str(path).encode(), FILE)


def test_a_disk_that_fails_in_the_middle_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says comes out: the same file may be whole on the next try."""

    class Failing(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 300_000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    many: list[Row] = [(f"app/{number:06}", b"i" * 16, 1, number, 1, 0) for number in range(20_000)]
    path = write(tmp_path / "b.age", make_stream({**ROWS, "secrets": many}))
    monkeypatch.setattr(Path, "open", lambda self, mode: Failing(str(self)))
    with pytest.raises(BackupUnavailableError, match=r"b\.age: Input/output error"):
        read_backup(path, FILE)


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(b"# comment\r\n\n  " + FILE + b"\r\n", id="as people edit it"),
        pytest.param(encode_identity(bytes(32)).encode() + b"\n" + FILE, id="the second of two"),
    ],
)
def test_identity_files(tmp_path: Path, identity: bytes) -> None:
    """Comments and empty lines are passed over; each identity is tried."""
    path = write(tmp_path / "b.age", make_stream())
    assert decode_opened(read_backup(path, identity)).contents.rows["secrets"] == 2


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"# only a comment", id="comment"),
        pytest.param(FILE + b"\nssh-ed25519 AAAA", id="something besides"),
        pytest.param(b"\xff" * 74, id="no text"),
        pytest.param(RECIPIENT.encode(), id="a recipient"),
    ],
)
def test_what_is_no_identity(tmp_path: Path, identity: bytes) -> None:
    """One error, whose chain does not quote what may be a secret."""
    path = write(tmp_path / "b.age", make_stream())
    with pytest.raises(InvalidArgumentError, match="holds no identity") as refused:
        read_backup(path, identity)
    assert refused.value.__cause__ is refused.value.__context__ is None
