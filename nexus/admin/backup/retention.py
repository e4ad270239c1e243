"""Which backups may go.

1. Where nothing says how many are kept, all are.
2. Kept are the newest ones, the newest one of each of some days, and of each of some weeks: of those that have any.
   Days and weeks are of UTC, a week begins on Monday.
3. Whatever rule 2 says, the newest that was verified is kept, one that is held, and some of the newest.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nexus.admin.backup.directory import BackupFile

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Retention:
    """How many backups are kept; all: no limit is set."""

    last: int = 0  # of the newest
    daily: int = 0  # days of which the newest one stays
    weekly: int = 0  # weeks of which the newest one stays
    minimum: int = 3  # of the newest, in any case

    @property
    def is_on(self) -> bool:
        """Whether anything goes (rule 1)."""
        return any((self.last, self.daily, self.weekly))


ALL = Retention()


def find_outdated(files: Sequence[BackupFile], retention: Retention, *, verified: str) -> list[BackupFile]:
    """Return what may go of the backups of one cluster, which come the newest first; *verified* is a name, or empty."""
    if not retention.is_on:
        return []
    kept = set(_find_kept(files, retention)) | {verified}
    return [file for file in files if file.name not in kept and not file.is_held]


def _find_kept(files: Sequence[BackupFile], retention: Retention) -> Iterator[str]:
    yield from (file.name for file in files[: max(retention.last, retention.minimum)])
    yield from _find_first(files, [_day(file) for file in files], retention.daily)
    yield from _find_first(files, [_week(file) for file in files], retention.weekly)


def _find_first(files: Sequence[BackupFile], periods: Sequence[object], count: int) -> Iterator[str]:
    """Yield the newest of each of the *count* periods that come first."""
    seen: Collection[object] = dict.fromkeys(periods)  # in order
    for period in list(seen)[:count]:
        yield files[periods.index(period)].name


def _day(file: BackupFile) -> object:
    return _moment(file).date()


def _week(file: BackupFile) -> object:
    return _moment(file).isocalendar()[:2]


def _moment(file: BackupFile) -> datetime:
    return _EPOCH + timedelta(microseconds=file.created_at)
