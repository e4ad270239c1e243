"""What has become of the versions of a secret, in words for callers whom a policy lets know."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from common.errors import NotFoundError
from nexus.store.protocol import HistoryRow, Reader, VersionState

_LOOKED_AT: Final = 200  # versions, the newest ones
_MOST_RUNS: Final = 8
_WORDS: Final = {
    VersionState.LIVE: "is not deleted",
    VersionState.DELETED: "is deleted",
    VersionState.DESTROYED: "was destroyed",
}


def find_state(reader: Reader, path: str, version: int) -> VersionState | None:
    """Return what has become of a version; None: it never was, or was pruned."""
    rows = reader.load_history(path, before=version + 1, limit=1)
    return rows[0].state if rows and rows[0].version == version else None


def explain_missing(reader: Reader, path: str, version: int | None = None) -> NotFoundError:
    """Say why a version is not what the caller wants, and what is left; None: the newest."""
    secret = reader.load_secret(path)
    if secret is None:
        return NotFoundError(f"{path}: no such secret")
    newest = secret.current_version
    number = newest if version is None else version
    if not 0 < number <= newest:
        return NotFoundError(f"{path}: no such version {number}; the newest is {newest}")
    words = _WORDS[find_state(reader, path, number) or VersionState.DESTROYED]
    return NotFoundError(f"{path}: version {number} {words}; {_tell_left(reader.load_history(path, limit=_LOOKED_AT))}")


def name_versions(versions: Sequence[int], *, most: int = _MOST_RUNS) -> str:
    """Name ascending versions, as "1 to 4, 6"; of more than *most* runs only the last ones."""
    ends = [before for before, after in pairwise(versions) if after != before + 1]
    starts = [after for before, after in pairwise(versions) if after != before + 1]
    runs = list(zip([versions[0], *starts], [*ends, versions[-1]], strict=True)) if versions else []
    names = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    return ", ".join(names if len(names) <= most else ["…", *names[-most:]])


def _tell_left(rows: Sequence[HistoryRow]) -> str:
    """Tell which of the newest versions are live."""
    live = [row.version for row in reversed(rows) if row.state is VersionState.LIVE]
    if live:
        return f"version{'s' * (len(live) > 1)} left: {name_versions(live)}"
    if len(rows) == _LOOKED_AT:
        return f"none of the newest {_LOOKED_AT} versions is left"
    return "no version is left"
