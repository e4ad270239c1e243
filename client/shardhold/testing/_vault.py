"""Secrets in memory, with versions and incarnations as a nexus keeps them. Not thread-safe.

Rules:
1. A put after every version was deleted or destroyed begins a new incarnation, with version 1.
2. A deleted version can come back; a destroyed one stays in the history without its fields.
3. With a limit, a new version prunes the oldest ones: they leave the history as well.
4. A change that is refused changes nothing.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from shardhold._errors import NotFoundError
from shardhold._results import VersionState
from shardhold.testing._refusals import not_found
from shardhold.testing._rules import INCARNATION_SIZE, Expected, check_patched

_WORDS = {
    VersionState.LIVE: "is not deleted",
    VersionState.DELETED: "is deleted",
    VersionState.DESTROYED: "was destroyed",
}


@dataclass
class KeptVersion:
    """One version; `fields` is empty once it is destroyed."""

    number: int
    fields: Mapping[str, bytes] = field(repr=False)
    created_at: datetime
    state: VersionState = VersionState.LIVE
    destroyed_at: datetime | None = None


@dataclass
class KeptSecret:
    """One incarnation; `versions` are ascending, and the newest is always there."""

    path: str
    incarnation: bytes
    versions: list[KeptVersion] = field(default_factory=list)
    max_versions: int = 0  # 0: the vault's

    @property
    def newest(self) -> KeptVersion:
        """The newest version, whatever its state."""
        return self.versions[-1]

    def list_numbers(self, *states: VersionState) -> list[int]:
        """Return the numbers of the versions in one of *states*, ascending."""
        return [version.number for version in self.versions if version.state in states]

    @property
    def live(self) -> list[int]:
        """The numbers of the live versions, ascending."""
        return self.list_numbers(VersionState.LIVE)

    def find(self, number: int) -> KeptVersion | None:
        """Return a version; None: it never was, or was pruned."""
        return next((version for version in self.versions if version.number == number), None)


class FakeVault:
    """All secrets. *now* gives the time, and *max_versions* how many versions are kept where a secret does not say."""

    def __init__(self, now: Callable[[], datetime], max_versions: int) -> None:
        self._now = now
        self._max_versions = max_versions
        self._secrets: dict[str, KeptSecret] = {}

    def get(self, path: str, number: int) -> tuple[KeptSecret, KeptVersion]:
        """Return a live version; 0: the newest."""
        secret = self.find(path)
        version = secret.find(number) if number else secret.newest
        if version is None or version.state is not VersionState.LIVE:
            raise _explain_missing(secret, number or secret.newest.number)
        return secret, version

    def find(self, path: str) -> KeptSecret:
        """Return a secret, even one whose versions are all deleted."""
        secret = self._secrets.get(path)
        if secret is None:
            raise not_found(f"{path}: no such secret")
        return secret

    def walk(self, prefix: str, *, include_deleted: bool) -> Iterator[KeptSecret]:
        """Yield the secrets at and below *prefix* with a live version, or with one that is not destroyed; by path."""
        for path in sorted(self._secrets):
            secret = self._secrets[path]
            if prefix and path != prefix and not path.startswith(f"{prefix}/"):
                continue
            if secret.live or (include_deleted and secret.list_numbers(VersionState.DELETED)):
                yield secret

    def put(self, path: str, fields: Mapping[str, bytes], expected: Expected) -> KeptSecret:
        """Write the next version, or the first of a new incarnation."""
        before = self._secrets.get(path)
        if before is not None and before.live:
            expected.compare(path, before.newest.number, before.incarnation)
            return self._append(before, fields)
        expected.compare(path, 0, b"")
        secret = KeptSecret(path, os.urandom(INCARNATION_SIZE), max_versions=before.max_versions if before else 0)
        self._secrets[path] = secret
        return self._append(secret, fields)

    def patch(self, path: str, fields: Mapping[str, bytes], removed: Collection[str], expected: Expected) -> KeptSecret:
        """Write the newest version once more, with *fields* set and *removed* taken out."""
        secret, newest = self.get(path, 0)
        expected.compare(path, newest.number, secret.incarnation)
        left = {name: value for name, value in {**newest.fields, **fields}.items() if name not in removed}
        check_patched(left)
        return self._append(secret, left)

    def delete(self, path: str, wanted: Sequence[int], expected: Expected) -> list[int]:
        """Mark versions as deleted; none: all that are live."""
        secret = self.find(path)
        if not secret.live:
            raise _explain_missing(secret, secret.newest.number)
        expected.compare(path, secret.newest.number, secret.incarnation)
        return self._change(secret, list(wanted) or secret.live, VersionState.LIVE, becomes=VersionState.DELETED)

    def undelete(self, path: str, wanted: Sequence[int]) -> list[int]:
        """Bring deleted versions back."""
        secret = self.find(path)
        return self._change(secret, wanted, VersionState.DELETED, becomes=VersionState.LIVE)

    def destroy(self, path: str, wanted: Sequence[int], expected: Expected) -> list[int]:
        """Destroy versions, deleted or not; none: all that are there."""
        secret = self.find(path)
        expected.compare(path, secret.newest.number, secret.incarnation)
        kept = (VersionState.LIVE, VersionState.DELETED)
        versions = list(wanted) or secret.list_numbers(*kept)
        if not versions:
            raise _explain_missing(secret, secret.newest.number)
        return self._change(secret, versions, *kept, becomes=VersionState.DESTROYED)

    def keep_at_most(self, path: str, max_versions: int) -> None:
        """Set how many versions of a secret are kept; 0: the vault's number."""
        secret = self.find(path)
        secret.max_versions = max_versions
        self._prune(secret)

    def find_limit(self, secret: KeptSecret) -> int:
        """Return how many versions of *secret* are kept; 0: all."""
        return secret.max_versions or self._max_versions

    def _append(self, secret: KeptSecret, fields: Mapping[str, bytes]) -> KeptSecret:
        number = secret.newest.number + 1 if secret.versions else 1
        secret.versions.append(KeptVersion(number, dict(fields), self._now()))
        self._prune(secret)
        return secret

    def _prune(self, secret: KeptSecret) -> None:
        limit = self.find_limit(secret)
        below = secret.newest.number - limit + 1 if limit else 0
        secret.versions = [version for version in secret.versions if version.number >= below]

    def _change(
        self, secret: KeptSecret, wanted: Sequence[int], *states: VersionState, becomes: VersionState
    ) -> list[int]:
        versions = []
        for number in wanted:
            version = secret.find(number)
            if version is None or version.state not in states:
                raise _explain_missing(secret, number)
            versions.append(version)
        for version in versions:
            version.state = becomes
            if becomes is VersionState.DESTROYED:
                version.fields, version.destroyed_at = {}, self._now()
        return sorted(wanted)


def _explain_missing(secret: KeptSecret, number: int) -> NotFoundError:
    newest = secret.newest.number
    if not 0 < number <= newest:
        return not_found(f"{secret.path}: no such version {number}; the newest is {newest}")
    version = secret.find(number)
    words = _WORDS[version.state if version else VersionState.DESTROYED]
    return not_found(f"{secret.path}: version {number} {words}; {_tell_left(secret.live)}")


def _tell_left(live: list[int]) -> str:
    if not live:
        return "no version is left"
    ends = [before for before, after in pairwise(live) if after != before + 1]
    starts = [after for before, after in pairwise(live) if after != before + 1]
    runs = zip([live[0], *starts], [*ends, live[-1]], strict=True)
    names = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    return f"version{'s' * (len(live) > 1)} left: {', '.join(names)}"
