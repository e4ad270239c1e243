"""The client: one method for each call of a workload, with deadlines, safe retries and errors of our own."""

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import tenacity

from shardhold import _calls
from shardhold._calls import SERVER_NAME, TIMEOUT_S, Call, Deadline, Result
from shardhold._results import Deleted, Entry, Secret, Status, Written
from shardhold.channel import PinnedChannel
from shardhold.identity import IdentitySource, WorkloadAPI


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
        source = WorkloadAPI() if identity is None else identity
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
        """Cancel the calls in flight and disconnect. Idempotent."""
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
        """Write the next version of the secret at *path*.

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

    def get(self, path: str, *, version: int = 0, timeout: float | None = None) -> Secret:
        """Read the secret at *path*: the given version, or the current one.

        Raises:
            NotFoundError: There is none.
            DeniedError: No policy allows it; the error does not reveal whether the path exists.
            Error: See `shardhold.Error` for the others.
        """
        return self._make(_calls.get_secret(path, version=version), timeout)

    def list(self, prefix: str = "", *, page_size: int = 0, timeout: float | None = None) -> Iterator[Entry]:
        """Yield the entries at and below *prefix* that this caller may list; all of them for an empty prefix.

        Pages are fetched as they are needed, each with its own time-out; *page_size* is at most 1000, 0 lets the server
        choose. Errors are raised where the iteration reaches them.
        """
        call: Call[_calls.Page] | None = _calls.list_secrets(prefix, page_size=page_size)
        while call is not None:
            page = self._make(call, timeout)
            yield from page.entries
            call = page.following

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
        """Delete versions of the secret at *path*: the given ones, or all that are left.

        An empty list of versions is refused, so that a list that came out empty by mistake does not delete everything.
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

    def status(self, *, timeout: float | None = None) -> Status:
        """Return the status of the nexus; served in every state and to every caller with an SVID."""
        return self._make(_calls.get_status(), timeout)

    def _make(self, call: Call[Result], timeout: float | None) -> Result:
        """Make one call, retrying while that is safe and may help, all within the time-out."""
        deadline = Deadline(self._timeout if timeout is None else _calls.check_timeout(timeout))
        method = self._methods[call.rpc]

        def attempt() -> Any:
            with _calls.translated():
                return method(call.request, timeout=deadline.left())

        return call.read(tenacity.Retrying(**deadline.retry_rules())(attempt))
