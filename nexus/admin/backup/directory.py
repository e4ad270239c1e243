"""The directory that backups are kept in.

The name of a file says of which cluster and state it is: `shardhold-CLUSTER-tT-gG-rR-TIME-ID.age`. These are claims,
and what is in the file proves them. A file has its name once it is whole and synced; before, it is hidden, and what a
killed process left of it is removed when the next one is made.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.clock import to_micros
from common.errors import BackupUnavailableError, NotFoundError
from common.forms.backup.header import Header

_NAME: Final = re.compile(
    r"shardhold-(?P<cluster>[0-9a-f]{8})-t(?P<timeline>\d{1,19})-g(?P<generation>\d{1,19})-r(?P<revision>\d{1,19})"
    r"-(?P<time>\d{8}T\d{6}Z)-(?P<id>[0-9a-f]{8})\.age",
    re.ASCII,
)
_HOLD: Final = ".hold"
_TIME: Final = "%Y%m%dT%H%M%SZ"
_CLUSTER_DIGITS: Final = 8
_ID_SIZE: Final = 4  # bytes


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A file of the directory, as its name says."""

    name: str
    size: int  # bytes
    cluster: str  # the first 8 hex digits of its id
    timeline: int
    generation: int
    revision: int
    created_at: int  # microseconds since 1970, to the second
    is_held: bool = False  # a file of its name and `.hold` is beside it: it is never removed

    @property
    def age_key(self) -> tuple[int, int, int, str]:
        """What is higher the newer the backup is."""
        return self.timeline, self.revision, self.created_at, self.name


class BackupDirectory:
    """Thread-safe. *nexus* is the name of the nexus, which removes only what it left itself."""

    def __init__(self, path: Path, *, nexus: str) -> None:
        self._path = path
        self._suffix = f".{nexus}.new"

    def list(self) -> list[BackupFile]:
        """List the backups, the newest first.

        Raises:
            BackupUnavailableError: The directory cannot be read.
        """
        found, held = list[BackupFile](), set[str]()
        try:
            with os.scandir(self._path) as entries:
                for entry in entries:
                    if entry.name.endswith(_HOLD):
                        held.add(entry.name.removesuffix(_HOLD))
                    with contextlib.suppress(FileNotFoundError):
                        if (file := _read_name(entry)) is not None:
                            found.append(file)
        except OSError as exc:
            raise self._unavailable(exc) from exc
        files = (replace(file, is_held=file.name in held) for file in found)
        return sorted(files, key=lambda file: file.age_key, reverse=True)

    def list_of(self, cluster_id: bytes) -> Sequence[BackupFile]:
        """List the backups of one cluster, as `list`."""
        cluster = cluster_id.hex()[:_CLUSTER_DIGITS]
        return [file for file in self.list() if file.cluster == cluster]

    def remove(self, files: Sequence[BackupFile]) -> None:
        """Remove backups, durably; one that is gone, or held by now, stays as it is.

        Raises:
            BackupUnavailableError: The directory refuses; some may be gone.
        """
        held = {file.name for file in self.list() if file.is_held}
        try:
            for file in files:
                if file.name not in held:
                    self.locate(file).unlink(missing_ok=True)
            self._sync()
        except OSError as exc:
            raise self._unavailable(exc) from exc

    def find(self, name: str = "", *, cluster_id: bytes) -> BackupFile:
        """Return a backup; without *name*, the newest one of the cluster.

        Raises:
            NotFoundError: There is none.
            BackupUnavailableError: The directory cannot be read.
        """
        cluster = cluster_id.hex()[:_CLUSTER_DIGITS]
        for file in self.list():
            if file.name == name or (not name and file.cluster == cluster):
                return file
        raise NotFoundError(f"there is no backup {name[:200]!r}" if name else "there is no backup of this cluster")

    def locate(self, file: BackupFile) -> Path:
        """Return where a file is."""
        return self._path / file.name

    @contextmanager
    def create(self, header: Header) -> Iterator[tuple[int, str]]:
        """Give a descriptor to write a backup to, and its name, which it gets when the block ends well.

        Raises:
            BackupUnavailableError: The directory refuses; nothing of the backup is left.
        """
        name = _make_name(header)
        hidden = self._path / f".{name}{self._suffix}"
        try:
            self._remove_left()
            fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise self._unavailable(exc) from exc
        try:
            yield fd, name
            os.fsync(fd)
            self._publish(hidden, name)
        except OSError as exc:
            raise self._unavailable(exc) from exc
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                hidden.unlink(missing_ok=True)

    def describe(self, name: str) -> BackupFile:
        """Return the backup of this name.

        Raises:
            BackupUnavailableError: It cannot be looked at, or is no backup.
        """
        file = next((one for one in self.list() if one.name == name), None)
        if file is None:
            raise BackupUnavailableError(f"backup {name} is gone right after it was made")
        return file

    def _remove_left(self) -> None:
        for path in self._path.iterdir():
            # The whole name: that of another nexus may end with this one's, as x.a with a.
            if path.name.endswith(self._suffix) and _NAME.fullmatch(path.name[1 : -len(self._suffix)]):
                path.unlink(missing_ok=True)

    def _publish(self, hidden: Path, name: str) -> None:
        """Give a synced file its name; where that is not durable, it is not listed either."""
        hidden.rename(self._path / name)
        try:
            self._sync()
        except OSError:
            (self._path / name).unlink(missing_ok=True)
            raise

    def _sync(self) -> None:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _unavailable(self, exc: OSError) -> BackupUnavailableError:
        return BackupUnavailableError(f"backup.directory {self._path}: {exc.strerror}")


def _make_name(header: Header) -> str:
    cluster = header.cluster_id.hex()[:_CLUSTER_DIGITS]
    time = datetime.fromtimestamp(header.created_at // 1_000_000, UTC).strftime(_TIME)
    numbers = f"t{header.timeline}-g{header.generation}-r{header.revision}"
    return f"shardhold-{cluster}-{numbers}-{time}-{os.urandom(_ID_SIZE).hex()}.age"


def _read_name(entry: "os.DirEntry[str]") -> BackupFile | None:
    found = _NAME.fullmatch(entry.name)
    if found is None or not entry.is_file(follow_symlinks=False):
        return None
    try:
        created_at = to_micros(datetime.strptime(found["time"], _TIME).replace(tzinfo=UTC))
    except ValueError:
        return None
    return BackupFile(
        name=entry.name,
        size=entry.stat(follow_symlinks=False).st_size,
        cluster=found["cluster"],
        timeline=int(found["timeline"]),
        generation=int(found["generation"]),
        revision=int(found["revision"]),
        created_at=created_at,
    )
