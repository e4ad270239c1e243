"""Secrets: each call is authorised and audited by the gate.

The root key and the KEK may be replaced while the nexus serves, and no caller sees anything of it (as in
`nexus.vault.change`):

1. A row whose KEK is gone was re-wrapped after it was read: it is loaded once more.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.clock import Clock
from common.errors import CorruptRowError, InvalidArgumentError, NotScrubbedError
from common.forms.codec import fields as encode_parts
from common.forms.codec import u64
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.keys.opened import Serving
from nexus.policy.keeping import Keeping, check_max_versions
from nexus.policy.paths import abbreviate, check_path, check_prefix
from nexus.store.protocol import BEYOND_VERSIONS, HistoryRow, ListedSecret, MadeByRequest, Store, VersionRow
from nexus.vault import removing, writing
from nexus.vault.change import SecretChanges
from nexus.vault.expected import Expected
from nexus.vault.fields import check_fields, check_patch, decode_body, encode_body
from nexus.vault.history import explain_missing
from nexus.vault.listing import Page, read_range
from nexus.vault.requests import Request, describe_request, encode_versions
from nexus.vault.scrubbing import SharedScrub
from nexus.vault.sealed import open_row

REQUEST_ID_SIZE = 16
MAX_VERSIONS_NAMED = 100  # by one request
MAX_PAGE = 1000
MAX_VERSION = 2**63 - 1  # what every store can count

_TOKEN = re.compile(r"([1-9][0-9]{0,18})-([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Secret:
    path: str
    version: int
    incarnation: bytes
    fields: Mapping[str, bytes]
    created_at: int  # microseconds since 1970

    def __repr__(self) -> str:
        return f"Secret({self.path!r}, version={self.version})"


@dataclass(frozen=True, slots=True)
class VersionPage:
    """Versions of one secret, the newest first."""

    incarnation: bytes  # 16 bytes
    current_version: int
    max_versions: int  # how many are kept; 0: all
    max_versions_is_own: bool  # of this secret, not of the configuration
    versions: list[HistoryRow]
    next_token: str  # empty: this was the last page


class Vault:
    """Thread-safe."""

    def __init__(self, store: Store, gate: Gate, clock: Clock, keeping: Keeping) -> None:
        self._store = store
        self._gate = gate
        self._keeping = keeping
        self._changes = SecretChanges(store, gate, clock)
        self._scrub = SharedScrub(store)

    def get(self, caller: Caller, path: str, version: int) -> Secret:
        """Return one version, 0: the newest.

        Raises:
            InvalidArgumentError, DeniedError: Before anything is read.
            NotFoundError: The secret or version does not exist, or is deleted or destroyed; with what is left.
            DecryptionError, CorruptRowError: The row does not open.
        """
        check_path(path)
        _check_version("version", version)
        with self._gate.secret_call(calls.GET_SECRET, caller, path) as (record, serving):
            row = self._load_live_version(serving, path, version)
            record.version = row.version
            try:
                body = open_row(row, serving)
            except CorruptRowError:  # its KEK is not in the keyring (rule 1)
                row = self._load_live_version(serving, path, version)
                record.version = row.version
                body = open_row(row, serving)
            return Secret(path, row.version, row.incarnation, decode_body(body), row.created_at)

    def put(
        self, caller: Caller, path: str, fields: Mapping[str, bytes], expected: Expected, request_id: bytes
    ) -> MadeByRequest:
        """Write the next version; the same request again returns what it made the first time.

        Raises:
            InvalidArgumentError, DeniedError: Before anything is read.
            ConflictError: The check-and-set failed.
            StoreUnavailableError: Nothing was written.
        """
        check_path(path)
        check_fields(fields)
        expected.check()
        _check_request_id(request_id)
        with self._gate.secret_call(calls.PUT_SECRET, caller, path, request_id=request_id) as (record, _):
            body = encode_body(fields)
            request = _describe(record, expected, body)
            return self._changes.make(
                record, request, lambda change: writing.put(change, body, expected, self._keeping)
            )

    def patch(
        self,
        caller: Caller,
        path: str,
        fields: Mapping[str, bytes],
        removed: Sequence[str],
        expected: Expected,
        request_id: bytes,
    ) -> MadeByRequest:
        """Write the newest version once more, with *fields* set and *removed* taken out; otherwise as `put`.

        Raises:
            InvalidArgumentError: No field would be left, or too much; others before anything is read.
            DeniedError: Before anything is read.
            NotFoundError: The secret does not exist, or its newest version is deleted or destroyed.
            ConflictError: The check-and-set failed.
            DecryptionError, CorruptRowError: The newest version does not open.
        """
        check_path(path)
        check_patch(fields, removed)
        expected.check(of_existing="patched")
        _check_request_id(request_id)
        with self._gate.secret_call(calls.PATCH_SECRET, caller, path, request_id=request_id) as (record, _):
            names = sorted(set(removed))
            request = _describe(record, expected, encode_parts(encode_body(fields), *map(str.encode, names)))
            return self._changes.make(
                record, request, lambda change: writing.patch(change, fields, names, expected, self._keeping)
            )

    def list(
        self,
        caller: Caller,
        prefix: str,
        *,
        after: str,
        limit: int,
        include_deleted: bool = False,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> tuple[list[ListedSecret], str]:
        """List what the caller may list: one page, and the path after which the next one begins, empty at the end.

        A page has at most *limit* secrets, 0: 1000. That path is one of those listed, so it tells nothing of what was
        left out. Only what the caller's policies may match is read, a few rows at once, and *is_wanted* is asked in
        between whether somebody still waits. With *include_deleted* there are also secrets whose versions are all
        deleted, but not destroyed.

        Raises:
            InvalidArgumentError: Prefix, page size or token.
            DeniedError: No policy lets the caller list anything.
            OverloadedError: Too many secrets would have to be read.
            CallerGoneError: Nobody waits any more.
        """
        check_prefix(prefix)
        if after:
            check_path(after, name="page_token")
        page = Page(_check_page_size(limit), include_deleted=include_deleted)
        with self._gate.listing_call(calls.LIST_SECRETS, caller, prefix) as (_, serving):
            for begin, end in self._gate.find_ranges(calls.LIST_SECRETS, caller, serving):
                if prefix and (end <= prefix or begin >= f"{prefix}0"):  # "0" follows "/"
                    continue
                for rows in read_range(self._store, serving.floor, prefix, max(begin, after), end, page, is_wanted):
                    page.take(rows, lambda row: self._gate.may_list(calls.LIST_SECRETS, caller, row.path, serving))
            return page.shown[: page.limit], page.next_token

    def list_versions(self, caller: Caller, path: str, *, after: str = "", limit: int = 0) -> VersionPage:
        """List the versions of a secret, the newest first; at most *limit*, 0: 1000.

        Raises:
            InvalidArgumentError: Path, page size or token; the token may be of an earlier incarnation.
            DeniedError: Before anything is read.
            NotFoundError: The secret does not exist.
            CorruptRowError: A version is lost.
        """
        check_path(path)
        count = _check_page_size(limit)
        before, incarnation = _parse_token(after) if after else (BEYOND_VERSIONS, b"")
        with self._gate.secret_call(calls.LIST_VERSIONS, caller, path) as (_, serving):
            floor = serving.floor.position  # before the read begins
            with self._store.read() as reader:
                serving.floor.check_read(floor, reader.load_position())
                secret = reader.load_secret(path)
                if secret is None:
                    raise explain_missing(reader, path)
                rows = reader.load_history(path, before=before, limit=count + 1)
            if incarnation not in (b"", secret.incarnation):
                raise InvalidArgumentError("page_token: the secret was created anew since, want the first page again")
            token = f"{rows[count - 1].version}-{secret.incarnation.hex()}" if len(rows) > count else ""
            return VersionPage(
                secret.incarnation,
                secret.current_version,
                secret.max_versions or self._keeping.find_limit(path),
                bool(secret.max_versions),
                rows[:count],
                token,
            )

    def delete(
        self, caller: Caller, path: str, versions: Sequence[int], expected: Expected, request_id: bytes
    ) -> MadeByRequest:
        """Delete *versions*, or all that are left; the same request again returns what it did the first time.

        Raises:
            InvalidArgumentError, DeniedError: Before anything is read.
            NotFoundError: The secret or one of the versions does not exist, or is already deleted.
            ConflictError: The check-and-set failed.
        """
        check_path(path)
        expected.check(of_existing="deleted")
        _check_request_id(request_id)
        wanted = _sort_versions(versions)
        with self._gate.secret_call(calls.DELETE_SECRET, caller, path, request_id=request_id) as (record, _):
            request = _describe(record, expected, encode_versions(wanted))
            return self._changes.make(record, request, lambda change: removing.delete(change, wanted, expected))

    def undelete(self, caller: Caller, path: str, versions: Sequence[int], request_id: bytes) -> MadeByRequest:
        """Bring deleted *versions* back; the same request again returns what it did the first time.

        Raises:
            InvalidArgumentError, DeniedError: Before anything is read.
            NotFoundError: The secret or one of the versions does not exist, or is not deleted, or is destroyed.
        """
        check_path(path)
        _check_request_id(request_id)
        wanted = _sort_versions(versions)
        if not wanted:
            raise InvalidArgumentError(f"versions: got none, want 1 to {MAX_VERSIONS_NAMED}")
        with self._gate.secret_call(calls.UNDELETE_SECRET, caller, path, request_id=request_id) as (record, _):
            request = _describe(record, Expected(), encode_versions(wanted))
            return self._changes.make(record, request, lambda change: removing.undelete(change, wanted))

    def destroy(
        self, caller: Caller, path: str, versions: Sequence[int], expected: Expected, request_id: bytes
    ) -> MadeByRequest:
        """Destroy *versions*, or all that are there: nothing of them is in the files of the store afterwards.

        The same request again returns what it did the first time, and sees to the files again.

        Raises:
            InvalidArgumentError, DeniedError: Before anything is read.
            NotFoundError: The secret or one of the versions does not exist, or is already destroyed.
            ConflictError: The check-and-set failed.
            NotScrubbedError: They are destroyed, but may be in the files yet.
        """
        check_path(path)
        expected.check(of_existing="destroyed")
        _check_request_id(request_id)
        wanted = _sort_versions(versions)
        with self._gate.secret_call(calls.DESTROY_SECRET, caller, path, request_id=request_id) as (record, _):
            request = _describe(record, expected, encode_versions(wanted))
            made = self._changes.make(record, request, lambda change: removing.destroy(change, wanted, expected))
        try:
            self._scrub.run(made.revision)  # without keys, which a seal would wait for
        except NotScrubbedError as exc:
            raise NotScrubbedError(
                f"{path}: destroyed, but the files may have it yet ({exc}): the same request tries once more"
            ) from exc
        return made

    def update_metadata(self, caller: Caller, path: str, max_versions: int | None, request_id: bytes) -> MadeByRequest:
        """Set how many versions of a secret are kept; 0: as the configuration says. The answer names the newest.

        Raises:
            InvalidArgumentError: Nothing is to be set, or too much.
            DeniedError: Before anything is read.
            NotFoundError: The secret does not exist.
        """
        check_path(path)
        _check_request_id(request_id)
        wanted = check_max_versions(max_versions)
        with self._gate.secret_call(calls.UPDATE_SECRET_METADATA, caller, path, request_id=request_id) as (record, _):
            request = _describe(record, Expected(), u64(wanted))
            return self._changes.make(
                record, request, lambda change: writing.keep_at_most(change, wanted, self._keeping)
            )

    def _load_live_version(self, serving: Serving, path: str, version: int) -> VersionRow:
        floor = serving.floor.position  # before the read begins
        with self._store.read() as reader:
            row = reader.load_version(path, version)
            serving.floor.check_read(floor, reader.load_position())
            if row is None or row.deleted:
                raise explain_missing(reader, path, version or None)
        return row


def _describe(record: CallRecord, expected: Expected, content: bytes) -> Request:
    return describe_request(
        record.request_id,
        record.caller.spiffe_id,
        record.rpc.name,
        record.path,
        expected_version=expected.version,
        expected_incarnation=expected.incarnation,
        content=content,
    )


def _sort_versions(versions: Sequence[int]) -> list[int]:
    """Return the versions that a request names, checked and each once."""
    if len(versions) > MAX_VERSIONS_NAMED:
        raise InvalidArgumentError(f"versions: got {len(versions)}, want at most {MAX_VERSIONS_NAMED}")
    for version in versions:
        _check_version("versions", version)
    return sorted(set(versions))


def _check_version(name: str, version: int) -> None:
    if version > MAX_VERSION:
        raise InvalidArgumentError(f"{name}: got {version}, want at most {MAX_VERSION}")


def _check_page_size(limit: int) -> int:
    if limit > MAX_PAGE:
        raise InvalidArgumentError(f"page_size: got {limit}, want at most {MAX_PAGE}")
    return limit or MAX_PAGE


def _parse_token(token: str) -> tuple[int, bytes]:
    """Return the version that a page ended with, and the incarnation that it is of."""
    if (match := _TOKEN.fullmatch(token)) is None or int(match[1]) > MAX_VERSION:
        raise InvalidArgumentError(f"page_token: got {abbreviate(token)}, want the next_page_token of a page")
    return int(match[1]), bytes.fromhex(match[2])


def _check_request_id(request_id: bytes) -> None:
    if len(request_id) != REQUEST_ID_SIZE:
        raise InvalidArgumentError(f"request_id: got {len(request_id)} bytes, want {REQUEST_ID_SIZE}")
