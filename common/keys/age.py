"""age files, by pyrage. It takes identities as `str`, which cannot be wiped: identities only where the process dies.

Everything streams, and nothing is to be believed before the end: a file that was tampered with late gives up what comes
before.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import pyrage

from common.errors import BackupError, BackupUnavailableError, InvalidArgumentError
from common.forms.backup.header import Contents
from common.forms.backup.opened import OpenedRows
from common.forms.backup.reader import StreamReader
from common.forms.backup.tables import Row, Table
from common.forms.bech32 import KEY_SIZE, encode_identity

MAX_IDENTITY_FILE: Final = 16 << 10  # bytes
_PIECE: Final = 64 << 10  # bytes


class Sink(Protocol):
    """Where an age file goes."""

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


class _Source:
    """What is encrypted, as the file that pyrage reads; joins small pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = bytearray()
        self.failure: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """Return at most *size* bytes; none: it is the end."""
        try:
            while len(self._held) < max(size, 1):
                self._held += next(self._pieces)
        except StopIteration:
            pass
        except BaseException as exc:
            self.failure = exc  # pyrage passes on its text only
            raise
        size = len(self._held) if size < 0 else size
        piece = bytes(self._held[:size])
        del self._held[:size]
        return piece


class _File:
    """Keeps what reading a file raised."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as exc:
            self.failure = exc  # pyrage passes on its text only
            raise


class _Kept:
    """Keeps what a sink raised."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.failure: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._sink.write(data)
        except BaseException as exc:
            self.failure = exc
            raise

    def flush(self) -> None:
        self._sink.flush()


def encrypt(pieces: Iterable[bytes], into: Sink, recipients: Sequence[str]) -> None:
    """Encrypt *pieces* to every one of *recipients*. What *pieces* and *into* raise comes out as it is.

    Raises:
        InvalidArgumentError: A recipient is none.
    """
    source, sink = _Source(pieces), _Kept(into)
    try:
        known = [pyrage.x25519.Recipient.from_str(text) for text in recipients]
    except pyrage.RecipientError as exc:
        raise InvalidArgumentError(f"recipient: got one that age refuses: {exc}") from exc
    try:
        pyrage.encrypt_io(source, sink, known)
    except (pyrage.EncryptError, OSError) as exc:
        raise sink.failure or source.failure or exc from exc


def read_backup(path: bytes, identity: bytes) -> bytes:
    """Open a backup as `read_rows`; return its contents and control rows, encoded. For the opener."""
    rows = OpenedRows()
    return rows.encode(read_rows(Path(path.decode()), identity, rows.take))


def read_rows(file: Path, identity: bytes, on_row: Callable[[Table, Row], None]) -> Contents:
    """Open a backup and read it through; *on_row* hears of each row, before it is known that the backup is whole.

    *identity* is an X25519 secret key, 32 bytes, or the content of an identity file of age. What *on_row* raises of
    ours comes out as it is.

    Raises:
        BackupError: It is not whole, or not for this identity.
        BackupUnavailableError: The file cannot be read.
        InvalidArgumentError: There is no such identity.
    """
    reader = StreamReader(on_row)
    identities = list(_parse_identities(identity))
    try:
        with file.open("rb") as raw:
            source, sink = _File(raw), _Kept(_Feed(reader))
            try:
                pyrage.decrypt_io(source, sink, identities)
            except (OSError, pyrage.DecryptError) as exc:
                raise sink.failure or source.failure or exc from exc
        return reader.finish()
    except OSError as exc:
        if exc.errno is None:  # pyrage's own
            raise BackupError(f"{file.name}: it is damaged or cut off") from exc
        raise BackupUnavailableError(f"{file}: {exc.strerror}") from exc
    except pyrage.DecryptError as exc:
        raise BackupError(f"{file.name}: {_describe(str(exc))}") from exc
    except BackupError as exc:
        raise BackupError(f"{file.name}: {exc}") from exc


def find_recipient(identity: bytes) -> str:
    """Return whom the first identity of an identity file opens backups for.

    Raises:
        InvalidArgumentError: There is no such identity.
    """
    return str(next(_parse_identities(identity)).to_public())


class _Feed:
    """The reader of a backup, as the file that pyrage writes."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader

    def write(self, data: bytes) -> int:
        self._reader.feed(data)
        return len(data)

    def flush(self) -> None:
        pass


def _describe(why: str) -> str:
    if "matching keys" in why:
        return "it is not for this identity, or its header is damaged"
    return "it is no file of age, or cut off"


def _parse_identities(identity: bytes) -> Iterator[pyrage.x25519.Identity]:
    try:
        lines = [encode_identity(identity)] if len(identity) == KEY_SIZE else identity.decode().splitlines()
        lines = [line.strip() for line in lines]
        texts = [line for line in lines if line and not line.startswith("#")]
        identities = [pyrage.x25519.Identity.from_str(text) for text in texts]
    except (UnicodeDecodeError, pyrage.IdentityError):
        identities = []
    if not identities:  # the cause is not chained: its text may quote a secret
        raise InvalidArgumentError("the identity file holds no identity of age, or something else besides")
    yield from identities
