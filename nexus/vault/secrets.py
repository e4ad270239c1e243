"""Secrets: put, get, list and delete, each authorised and audited by the gate.

The root key and the KEK may be replaced while the nexus serves, and no caller sees anything of it:

1. A change that was made with keys that are not those of the store any more is undone, and made anew.
2. A row whose KEK is gone was re-wrapped after it was read: it is loaded once more.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.clock import Clock, to_micros
from common.errors import (
    CallerGoneError,
    ConflictError,
    CorruptRowError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    RecoveringError,
)
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.keys.envelope import Place, SealedValue, open_value, seal_value
from nexus.keys.floor import Floor
from nexus.keys.opened import Serving
from nexus.policy.paths import check_path, check_prefix
from nexus.store.protocol import MadeByRequest, SecretRow, Store, VersionRow, Writer
from nexus.vault.fields import check_fields, decode_body, encode_body
from nexus.vault.requests import Request, describe_request, encode_versions

INCARNATION_SIZE = 16
REQUEST_ID_SIZE = 16
MAX_DELETED_VERSIONS = 100
MAX_PAGE = 1000
_MOST_FLIPS = 3  # that a change begins anew after
_MOST_HIDDEN = 20_000  # secrets that are read for one page and not shown
_FEWEST_ROWS, _MOST_ROWS = 16, 256  # read at once
MAX_VERSION = 2**63 - 1  # what every store can count


@dataclass(frozen=True, slots=True)
class Expected:
    """What a check-and-set wants to find; None: anything."""

    version: int | None = None  # 0: no secret
    incarnation: bytes = b""  # empty: any

    def check(self) -> None:
        """Check that the expectation itself makes sense.

        Raises:
            InvalidArgumentError: An incarnation of the wrong size, or without a version.
        """
        if self.incarnation and len(self.incarnation) != INCARNATION_SIZE:
            raise InvalidArgumentError(
                f"expected_incarnation: got {len(self.incarnation)} bytes, want {INCARNATION_SIZE} or none"
            )
        if self.incarnation and not self.version:
            raise InvalidArgumentError("expected_incarnation: got one without expected_version, want both")

    def compare(self, current: SecretRow | None) -> None:
        """Compare with the secret as it is.

        Raises:
            ConflictError: It is another version or incarnation.
        """
        if self.version is None:
            return
        version = current.current_version if current else 0
        if version != self.version:
            raise ConflictError(f"expected version {self.version}, current is {version}")
        if current and self.incarnation and current.incarnation != self.incarnation:
            raise ConflictError(f"expected version {version} of another incarnation, the secret was created anew since")


@dataclass(frozen=True, slots=True)
class Secret:
    path: str
    version: int
    incarnation: bytes
    fields: Mapping[str, bytes]
    created_at: int  # microseconds since 1970

    def __repr__(self) -> str:
        return f"Secret({self.path!r}, version={self.version})"


Step = Callable[[Writer, Serving], MadeByRequest]


class _AlreadyMadeError(Exception):
    """Undoes a change whose request made its change before."""

    def __init__(self, made: MadeByRequest) -> None:
        self.made = made


class _KeysReplacedError(Exception):
    """Undoes a change that was made with keys that are not current any more."""


class Vault:
    """Thread-safe."""

    def __init__(self, store: Store, gate: Gate, clock: Clock) -> None:
        self._store = store
        self._gate = gate
        self._clock = clock

    def get(self, caller: Caller, path: str, version: int) -> Secret:
        """Return one version, 0: the newest.

        Raises:
            InvalidArgumentError, DeniedError: Before anything is read.
            NotFoundError: The secret or version does not exist, or is deleted.
            DecryptionError, CorruptRowError: The row does not open.
        """
        check_path(path)
        _check_version("version", version)
        with self._gate.secret_call(calls.GET_SECRET, caller, path) as (record, serving):
            row = self._load_live_version(serving, path, version)
            record.version = row.version
            try:
                body = _open(row, serving)
            except CorruptRowError:  # its KEK is not in the keyring (rule 2)
                row = self._load_live_version(serving, path, version)
                record.version = row.version
                body = _open(row, serving)
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
            return self._change(
                record, request, lambda writer, serving: self._insert(writer, serving, record, body, expected)
            )

    def list(
        self, caller: Caller, prefix: str, *, after: str, limit: int, is_wanted: Callable[[], bool] = lambda: True
    ) -> tuple[list[SecretRow], str]:
        """List what the caller may list: one page, and the path after which the next one begins, empty at the end.

        A page has at most *limit* secrets, 0: 1000. That path is one of those listed, so it tells nothing of what was
        left out. Only what the caller's policies may match is read, a few rows at once, and *is_wanted* is asked in
        between whether somebody still waits.

        Raises:
            InvalidArgumentError: Prefix, page size or token.
            DeniedError: No policy lets the caller list anything.
            OverloadedError: Too many secrets would have to be read.
            CallerGoneError: Nobody waits any more.
        """
        check_prefix(prefix)
        if after:
            check_path(after, name="page_token")
        if limit > MAX_PAGE:
            raise InvalidArgumentError(f"page_size: got {limit}, want at most {MAX_PAGE}")
        limit = limit or MAX_PAGE
        with self._gate.listing_call(calls.LIST_SECRETS, caller, prefix) as (_, serving):
            shown: list[SecretRow] = []
            hidden = 0
            for begin, end in self._gate.find_ranges(calls.LIST_SECRETS, caller, serving):
                if prefix and (end <= prefix or begin >= f"{prefix}0"):  # "0" follows "/"
                    continue
                begin, rows_left = max(begin, after), True
                while rows_left and begin < end and len(shown) <= limit:
                    if not is_wanted():
                        raise CallerGoneError("the caller has left, or its deadline has passed")
                    if hidden > _MOST_HIDDEN:
                        raise OverloadedError(
                            f"more than {_MOST_HIDDEN} secrets below this prefix are not yours: name a longer one"
                        )
                    # One more than a page tells whether there is another.
                    count = min(max(limit + 1 - len(shown), _FEWEST_ROWS), _MOST_ROWS)
                    floor = serving.floor.position
                    with self._store.read() as reader:
                        rows = reader.list_secrets(prefix, after=begin, before=end, limit=count)
                        serving.floor.check_read(floor, reader.load_position())
                    found = [row for row in rows if self._gate.may_list(calls.LIST_SECRETS, caller, row.path, serving)]
                    shown += found
                    hidden += len(rows) - len(found)
                    rows_left = len(rows) == count
                    begin = rows[-1].path if rows else end
            return shown[:limit], shown[limit - 1].path if len(shown) > limit else ""

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
        expected.check()
        _check_request_id(request_id)
        if len(versions) > MAX_DELETED_VERSIONS:
            raise InvalidArgumentError(f"versions: got {len(versions)}, want at most {MAX_DELETED_VERSIONS}")
        for version in versions:
            _check_version("versions", version)
        if expected.version == 0:
            raise InvalidArgumentError("expected_version: got 0, want 1 or more: what does not exist cannot be deleted")
        with self._gate.secret_call(calls.DELETE_SECRET, caller, path, request_id=request_id) as (record, _):
            wanted = sorted(set(versions))
            request = _describe(record, expected, encode_versions(versions))
            return self._change(
                record, request, lambda writer, _: self._delete_versions(writer, record, wanted, expected)
            )

    def _load_live_version(self, serving: Serving, path: str, version: int) -> VersionRow:
        floor = serving.floor.position  # before the read begins
        with self._store.read() as reader:
            row = reader.load_version(path, version)
            serving.floor.check_read(floor, reader.load_position())
        if row is None or row.deleted:
            raise NotFoundError("no such secret or version")
        return row

    def _change(self, record: CallRecord, request: Request, step: Step) -> MadeByRequest:
        for _ in range(_MOST_FLIPS):
            with contextlib.suppress(_KeysReplacedError):  # rule 1
                return self._try_change(record, request, step)
        raise RecoveringError(f"the keys of this change were replaced {_MOST_FLIPS} times while it was made")

    def _try_change(self, record: CallRecord, request: Request, step: Step) -> MadeByRequest:
        floors: list[Floor] = []

        def change(writer: Writer) -> MadeByRequest:
            # Asked here, not at the gate: a change waits for its turn, and uses the keys that are current by then.
            serving = self._gate.require_serving()
            serving.floor.check_basis(writer.basis)
            _check_current(serving.root_key.generation, writer.basis.generation)
            floors.append(serving.floor)
            try:
                if (before := request.find_made(writer, serving.root_key)) is not None:
                    raise _AlreadyMadeError(before)
                made = step(writer, serving)
                request.save(writer, serving.root_key, made, made_at=to_micros(self._clock.now()))
                record.version = made.versions[-1]
                record.write(writer, serving.root_key)
            finally:  # keys that may be wiped by now have proved nothing, not even that this is another request
                self._gate.check_still(serving)
            return made

        try:
            made = self._store.write(change)
            floors[0].reach(made.revision)
            return made
        except _AlreadyMadeError as again:
            record.detail = "repeated request"
            return again.made

    def _insert(
        self, writer: Writer, serving: Serving, record: CallRecord, body: bytes, expected: Expected
    ) -> MadeByRequest:
        path = record.path
        current = _load_live(writer, path)
        expected.compare(current)
        if current is None:
            writer.delete_secret(path)  # the marks of deletion of the previous incarnation
        incarnation = current.incarnation if current else os.urandom(INCARNATION_SIZE)
        version = current.current_version + 1 if current else 1
        sealed = seal_value(body, Place(serving.cluster_id, path, incarnation, version), serving.keyring)
        _check_current(sealed.kek_id, writer.basis.kek_id)
        row = VersionRow(
            path=path,
            incarnation=incarnation,
            version=version,
            kek_id=sealed.kek_id,
            dek_id=sealed.dek_id,
            wrapped_dek=sealed.wrapped_dek,
            value=sealed.value,
            created_at=to_micros(self._clock.now()),
            deleted=False,
        )
        writer.insert_version(row, caller=record.caller.spiffe_id)
        return MadeByRequest(incarnation, (version,), writer.revision)

    def _delete_versions(
        self, writer: Writer, record: CallRecord, wanted: Sequence[int], expected: Expected
    ) -> MadeByRequest:
        current = _load_live(writer, record.path)
        if current is None:
            raise NotFoundError("no such secret or version")
        expected.compare(current)
        live = writer.load_live_versions(record.path)
        if not set(wanted) <= set(live):
            raise NotFoundError("no such secret or version")
        versions = tuple(wanted or live)
        writer.mark_deleted(record.path, versions, caller=record.caller.spiffe_id)
        record.detail = "versions " + " ".join(map(str, versions))
        return MadeByRequest(current.incarnation, versions, writer.revision)


def _open(row: VersionRow, serving: Serving) -> bytes:
    sealed = SealedValue(row.kek_id, row.dek_id, row.wrapped_dek, row.value)
    return open_value(sealed, Place(serving.cluster_id, row.path, row.incarnation, row.version), serving.keyring)


def _check_current(used: int, current: int) -> None:
    """Check that a change uses the key that its basis names; 0: an older program left the store, and it names none."""
    if current not in (0, used):
        raise _KeysReplacedError


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


def _load_live(writer: Writer, path: str) -> SecretRow | None:
    """Load the secret, None when every version is deleted."""
    secret = writer.load_secret(path)
    if secret is None:
        return None
    newest = writer.load_version(path, 0)
    if newest is not None and not newest.deleted:
        return secret
    return secret if writer.load_live_versions(path) else None


def _check_version(name: str, version: int) -> None:
    if version > MAX_VERSION:
        raise InvalidArgumentError(f"{name}: got {version}, want at most {MAX_VERSION}")


def _check_request_id(request_id: bytes) -> None:
    if len(request_id) != REQUEST_ID_SIZE:
        raise InvalidArgumentError(f"request_id: got {len(request_id)} bytes, want {REQUEST_ID_SIZE}")
