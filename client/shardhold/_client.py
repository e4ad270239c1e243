"""The client: one method for each call of a workload, with deadlines, safe retries and errors of our own."""

import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType, TracebackType

from shardhold import _calls
from shardhold._calls import FAILURES, SERVER_NAME, TIMEOUT_S, Call, Item, Page, Result
from shardhold._errors import IdentityUnavailableError, shorten
from shardhold._public import public
from shardhold._results import Deleted, Destroyed, Entry, Secret, Status, Undeleted, Updated, Version, Written
from shardhold._retries import Tries
from shardhold.channel import PinnedChannel
from shardhold.identity import IdentitySource, WorkloadAPI


@public
class Client:
    """Secrets of a Shardhold cluster, for the workload that this process is. Thread-safe; one per process is enough.

    Args:
        address: host:port of the nexus; None: SHARDHOLD_ADDRESS.
        identity: Where the SVID comes from; `close` leaves it open. None: the Workload API at SPIFFE_ENDPOINT_SOCKET.
        timeout: Seconds that a call may take with all its retries, unless the call says otherwise.

    Raises:
        InvalidArgumentError: The address or the time-out is not usable.
        IdentityUnavailableError: The Workload API gave no SVID.
    """

    def __init__(
        self, address: str | None = None, identity: IdentitySource | None = None, *, timeout: float = TIMEOUT_S
    ) -> None:
        self._address = _calls.choose_address(address)
        self._timeout = _calls.check_timeout(timeout)
        try:
            source = WorkloadAPI() if identity is None else identity
        except IdentityUnavailableError as exc:
            raise shorten(exc) from None
        self._own_identity = source if identity is None else None
        self._channel = PinnedChannel(self._address, source, server_name=SERVER_NAME)
        self._methods = _calls.find_methods(self._channel)

    def __repr__(self) -> str:
        return f"Client({self._address!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the calls in flight and disconnect; those calls raise `ClientClosedError`. Idempotent."""
        self._channel.close()
        if self._own_identity is not None:
            self._own_identity.close()

    def put(
        self,
        path: str,
        fields: Mapping[str, bytes | str],
        *,
        expected_version: int | None = None,
        expected_incarnation: bytes | None = None,
        request_id: bytes | None = None,
        timeout: float | None = None,
    ) -> Written:
        """Write the next version of the secret at *path*, which has these fields and no others; `patch` sets some.

        Values are bytes; text is sent as UTF-8. *expected_version* is a check-and-set: the version that must be
        current, or 0 for a secret that must not exist. The same call again with the same *request_id* (16 random
        bytes), within 24 hours, writes nothing new and returns what the first one wrote, whatever became of that
        since: use one to find out what became of a call that ended in a `DeadlineError`.

        Raises:
            ConflictError: The current version is not the expected one.
            DeniedError: No policy allows it.
            InvalidArgumentError: Path, fields or sizes break a rule, or *request_id* was used for another call.
            Error: See `shardhold.Error` for the others.
        """
        call = _calls.put_secret(
            path,
            fields,
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=request_id,
        )
        return self._make(call, timeout)

    def patch(
        self,
        path: str,
        fields: Mapping[str, bytes | str] = MappingProxyType({}),
        *,
        remove: Iterable[str] = (),
        expected_version: int | None = None,
        expected_incarnation: bytes | None = None,
        request_id: bytes | None = None,
        timeout: float | None = None,
    ) -> Written:
        """Write the next version: the current one with *fields* set, and with the fields named in *remove* taken out.

        All other fields stay as they are. A name in *remove* that the current version lacks is no error. The rest is as
        in `put`, except that *expected_version* cannot be 0.

        Raises:
            NotFoundError: There is no current version: the secret does not exist, or its newest version is deleted.
            ConflictError: The current version is not the expected one.
            DeniedError: No policy allows it.
            InvalidArgumentError: Path, fields or sizes break a rule, or no field would be left.
            Error: See `shardhold.Error` for the others.
        """
        call = _calls.patch_secret(
            path,
            fields,
            remove=remove,
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=request_id,
        )
        return self._make(call, timeout)

    def get(self, path: str, *, version: int = 0, timeout: float | None = None) -> Secret:
        """Read the secret at *path*: the given version, or the current one.

        Raises:
            NotFoundError: There is none, or it is deleted.
            DeniedError: No policy allows it; the error does not reveal whether the path exists.
            Error: See `shardhold.Error` for the others.
        """
        return self._make(_calls.get_secret(path, version=version), timeout)

    def list(
        self, prefix: str = "", *, include_deleted: bool = False, page_size: int = 0, timeout: float | None = None
    ) -> Iterator[Entry]:
        """Yield the entries at and below *prefix* that this caller may list; all of them for an empty prefix.

        With *include_deleted* also secrets of which every version is deleted. Pages are fetched as they are needed,
        each with its own time-out; *page_size* is at most 1000, 0 lets the server choose. Errors are raised where the
        iteration reaches them.
        """
        return self._walk(_calls.list_secrets(prefix, include_deleted=include_deleted, page_size=page_size), timeout)

    def versions(self, path: str, *, page_size: int = 0, timeout: float | None = None) -> Iterator[Version]:
        """Yield the versions of the secret at *path*, the newest first, deleted and destroyed ones too.

        Pages and errors are as in `list`. Versions that *max_versions* destroyed are not listed.

        Raises:
            NotFoundError: There is no such secret.
            DeniedError: No policy allows it; the error does not reveal whether the path exists.
            Error: See `shardhold.Error` for the others.
        """
        return self._walk(_calls.list_versions(path, page_size=page_size), timeout)

    def delete(
        self,
        path: str,
        versions: Iterable[int] | None = None,
        *,
        expected_version: int | None = None,
        expected_incarnation: bytes | None = None,
        request_id: bytes | None = None,
        timeout: float | None = None,
    ) -> Deleted:
        """Mark versions of the secret at *path* as deleted: the given ones, or all that are left.

        `undelete` brings them back, as long as no put has begun a new incarnation after the last one was deleted. An
        empty list of versions is refused, so that a list that came out empty by mistake does not delete everything.
        *request_id* is as in `put`: repeated, it deletes nothing new.

        Raises:
            NotFoundError: There is nothing to delete.
            ConflictError: The current version is not the expected one.
            Error: See `shardhold.Error` for the others.
        """
        call = _calls.delete_secret(
            path,
            versions,
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=request_id,
        )
        return self._make(call, timeout)

    def undelete(
        self, path: str, versions: Iterable[int], *, request_id: bytes | None = None, timeout: float | None = None
    ) -> Undeleted:
        """Bring deleted *versions* of the secret at *path* back; *request_id* is as in `put`.

        Raises:
            NotFoundError: One of them is not there, or not deleted; then none is brought back.
            Error: See `shardhold.Error` for the others.
        """
        return self._make(_calls.undelete_secret(path, versions, request_id=request_id), timeout)

    def destroy(
        self,
        path: str,
        versions: Iterable[int] | None,
        *,
        expected_version: int | None = None,
        expected_incarnation: bytes | None = None,
        request_id: bytes | None = None,
        timeout: float | None = None,
    ) -> Destroyed:
        """Destroy versions of the secret at *path* for good, deleted or not: the given ones, or None for all.

        Their values and data keys are gone from the files of the store before this returns; copies of the store and
        backups made before still have them. An empty list of versions is refused; *request_id* is as in `put`.

        Raises:
            NotFoundError: There is nothing to destroy.
            ConflictError: The current version is not the expected one.
            UnavailableError: With the reason NOT_SCRUBBED they are destroyed, but the files may still have them after
                all tries: the same call with the same *request_id* tries again.
            Error: See `shardhold.Error` for the others.
        """
        call = _calls.destroy_secret(
            path,
            versions,
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=request_id,
        )
        return self._make(call, timeout)

    def update_metadata(
        self, path: str, *, max_versions: int, request_id: bytes | None = None, timeout: float | None = None
    ) -> Updated:
        """Set how many versions of the secret at *path* are kept; 0: as the nexus's configuration says.

        Older ones are destroyed at once, and with each new version from then on. *request_id* is as in `put`.

        Raises:
            NotFoundError: There is no such secret.
            Error: See `shardhold.Error` for the others.
        """
        return self._make(_calls.update_metadata(path, max_versions=max_versions, request_id=request_id), timeout)

    def status(self, *, timeout: float | None = None) -> Status:
        """Return the status of the nexus; served in every state and to every caller with an SVID."""
        return self._make(_calls.get_status(), timeout)

    def _walk(self, call: Call[Page[Item]] | None, timeout: float | None) -> Iterator[Item]:
        while call is not None:
            page = self._make(call, timeout)
            yield from page.items
            call = page.following

    def _make(self, call: Call[Result], timeout: float | None) -> Result:
        """Make one call, retrying while that is safe and may help, all within the time-out."""
        tries = Tries(self._timeout if timeout is None else _calls.check_timeout(timeout))
        method = self._methods[call.rpc]
        while True:
            try:
                response = method(call.request, timeout=tries.left())
            except FAILURES as exc:
                wait_s = tries.wait_after(exc)
                if wait_s is None:
                    raise call.explain(tries.choose(exc)) from None
            else:
                return call.read(response)
            time.sleep(wait_s)
