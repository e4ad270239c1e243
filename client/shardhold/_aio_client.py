"""The asyncio twin of `shardhold.Client`: the same calls, defaults, deadlines, retries and errors, awaited."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType

from shardhold import _calls
from shardhold._aio_channel import AioPinnedChannel
from shardhold._calls import FAILURES, SERVER_NAME, TIMEOUT_S, Call, Item, Page, Result
from shardhold._errors import ClientClosedError, IdentityUnavailableError, shorten
from shardhold._public import public
from shardhold._quiet import grpc
from shardhold._results import Deleted, Destroyed, Entry, Secret, Status, Undeleted, Updated, Version, Written
from shardhold._retries import Tries
from shardhold.identity import IdentitySource, Svid, WorkloadAPI


@public
class AsyncClient:
    """Secrets of a Shardhold cluster, for the tasks of one event loop. Anything not described here is as in `Client`.

    It can be created anywhere, even before there is a loop, and does nothing until it is used: `async with`, or the
    first call, opens the Workload API, in a thread since that may wait. It belongs to the event loop of its first use;
    every use in another loop, and so in another thread, raises `RuntimeError`. Each loop may have a client of its own,
    and all of them, `Client` included, may share one *identity*.

    Cancelling a task, for example by `asyncio.timeout`, cancels its call at the server; a change may then have been
    made or not, as after a `DeadlineError`.

    Args:
        address: host:port of the nexus; None: SHARDHOLD_ADDRESS.
        identity: Where the SVID comes from; `close` leaves it open. None: the Workload API at SPIFFE_ENDPOINT_SOCKET.
        timeout: Seconds that a call may take with all its retries, unless the call says otherwise.

    Raises:
        InvalidArgumentError: The address or the time-out is not usable.
    """

    def __init__(
        self, address: str | None = None, identity: IdentitySource | None = None, *, timeout: float = TIMEOUT_S
    ) -> None:
        self._address = _calls.choose_address(address)
        self._timeout = _calls.check_timeout(timeout)
        late = _LateWorkloadAPI()
        self._own_identity = late if identity is None else None
        self._channel = AioPinnedChannel(self._address, late if identity is None else identity, server_name=SERVER_NAME)
        self._methods = _calls.find_methods(self._channel)

    def __repr__(self) -> str:
        return f"AsyncClient({self._address!r})"

    async def __aenter__(self) -> "AsyncClient":
        """Open the Workload API, unless an identity was given.

        Raises:
            IdentityUnavailableError: It gave no SVID; the client is then closed.
        """
        self._channel.bind_loop()
        try:
            await self._open_identity()
        except IdentityUnavailableError as exc:
            await self.close()
            raise shorten(exc) from None
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel the calls in flight and disconnect; those calls raise `ClientClosedError`. Idempotent."""
        await self._channel.close()
        if self._own_identity is not None:
            await asyncio.to_thread(self._own_identity.close)

    async def put(
        self,
        path: str,
        fields: Mapping[str, bytes | str],
        *,
        expected_version: int | None = None,
        expected_incarnation: bytes | None = None,
        request_id: bytes | None = None,
        timeout: float | None = None,
    ) -> Written:
        """Write the next version of the secret at *path*, with these fields and no others; see `Client.put`."""
        call = _calls.put_secret(
            path,
            fields,
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=request_id,
        )
        return await self._make(call, timeout)

    async def patch(
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
        """Write the next version: the current one with some fields set and some taken out; see `Client.patch`."""
        call = _calls.patch_secret(
            path,
            fields,
            remove=remove,
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=request_id,
        )
        return await self._make(call, timeout)

    async def get(self, path: str, *, version: int = 0, timeout: float | None = None) -> Secret:
        """Read the secret at *path*: the given version, or the current one; see `Client.get`."""
        return await self._make(_calls.get_secret(path, version=version), timeout)

    def list(
        self, prefix: str = "", *, include_deleted: bool = False, page_size: int = 0, timeout: float | None = None
    ) -> AsyncIterator[Entry]:
        """Yield the entries at and below *prefix* that this caller may list; `async for`, see `Client.list`."""
        return self._walk(_calls.list_secrets(prefix, include_deleted=include_deleted, page_size=page_size), timeout)

    def versions(self, path: str, *, page_size: int = 0, timeout: float | None = None) -> AsyncIterator[Version]:
        """Yield the versions of the secret at *path*, the newest first; `async for`, see `Client.versions`."""
        return self._walk(_calls.list_versions(path, page_size=page_size), timeout)

    async def delete(
        self,
        path: str,
        versions: Iterable[int] | None = None,
        *,
        expected_version: int | None = None,
        expected_incarnation: bytes | None = None,
        request_id: bytes | None = None,
        timeout: float | None = None,
    ) -> Deleted:
        """Mark versions of the secret at *path* as deleted: the given ones, or all left; see `Client.delete`."""
        call = _calls.delete_secret(
            path,
            versions,
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=request_id,
        )
        return await self._make(call, timeout)

    async def undelete(
        self, path: str, versions: Iterable[int], *, request_id: bytes | None = None, timeout: float | None = None
    ) -> Undeleted:
        """Bring deleted *versions* of the secret at *path* back; see `Client.undelete`."""
        return await self._make(_calls.undelete_secret(path, versions, request_id=request_id), timeout)

    async def destroy(
        self,
        path: str,
        versions: Iterable[int] | None,
        *,
        expected_version: int | None = None,
        expected_incarnation: bytes | None = None,
        request_id: bytes | None = None,
        timeout: float | None = None,
    ) -> Destroyed:
        """Destroy versions of the secret at *path* for good: the given ones, or None for all; see `Client.destroy`."""
        call = _calls.destroy_secret(
            path,
            versions,
            expected_version=expected_version,
            expected_incarnation=expected_incarnation,
            request_id=request_id,
        )
        return await self._make(call, timeout)

    async def update_metadata(
        self, path: str, *, max_versions: int, request_id: bytes | None = None, timeout: float | None = None
    ) -> Updated:
        """Set how many versions of the secret at *path* are kept; see `Client.update_metadata`."""
        return await self._make(_calls.update_metadata(path, max_versions=max_versions, request_id=request_id), timeout)

    async def status(self, *, timeout: float | None = None) -> Status:
        """Return the status of the nexus; served in every state and to every caller with an SVID."""
        return await self._make(_calls.get_status(), timeout)

    async def _walk(self, call: Call[Page[Item]] | None, timeout: float | None) -> AsyncIterator[Item]:
        while call is not None:
            page = await self._make(call, timeout)
            for item in page.items:
                yield item
            call = page.following

    async def _make(self, call: Call[Result], timeout: float | None) -> Result:
        """Make one call, retrying while that is safe and may help, all within the time-out."""
        tries = Tries(self._timeout if timeout is None else _calls.check_timeout(timeout))
        method = self._methods[call.rpc]
        self._channel.bind_loop()
        while True:
            try:
                await self._open_identity(tries.left())
                response = await method(call.request, timeout=tries.left())
            except asyncio.CancelledError:
                if not self._was_cut_off():
                    raise
                raise ClientClosedError("the client was closed during the call", grpc.StatusCode.CANCELLED) from None
            except FAILURES as exc:
                wait_s = tries.wait_after(exc)
                if wait_s is None:
                    raise call.explain(tries.choose(exc)) from None
            else:
                return call.read(response)
            await asyncio.sleep(wait_s)

    def _was_cut_off(self) -> bool:
        """Whether `close` cancelled the call, rather than somebody the task: gRPC says the same of both."""
        task = asyncio.current_task()
        return self._channel.is_closed and not (task is not None and task.cancelling())

    async def _open_identity(self, timeout: float | None = None) -> None:
        if self._own_identity is not None and not self._channel.is_closed:
            await self._own_identity.open(timeout)


class _LateWorkloadAPI:
    """The Workload API at SPIFFE_ENDPOINT_SOCKET, opened when it is first needed, by a thread that may wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._source: WorkloadAPI | None = None
        self._is_closed = False
        self._opening: asyncio.Task[None] | None = None

    async def open(self, timeout: float | None = None) -> None:
        """Return once there is an SVID. Concurrent callers wait for the same opening.

        Raises:
            IdentityUnavailableError: There is none, or not within *timeout* seconds; the next call tries again.
        """
        if self._source is not None:
            return
        if self._opening is None:
            self._opening = asyncio.create_task(asyncio.to_thread(self._open_source))
            self._opening.add_done_callback(self._forget_opening)
        try:
            async with asyncio.timeout(timeout):
                # A caller that gives up ends only its own wait.
                await asyncio.shield(self._opening)
        except TimeoutError as exc:
            raise IdentityUnavailableError(f"no SVID from the Workload API yet, waited {timeout:g} s") from exc

    def current(self) -> Svid:
        """Return the newest SVID, without waiting."""
        if self._source is None:
            raise IdentityUnavailableError("the Workload API is not open")
        return self._source.current()

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Refuse: subscribers are not notified, the channel asks."""
        raise NotImplementedError("a client's own identity has no subscribers")

    def close(self) -> None:
        """Close the Workload API; an opening still in progress closes it at once. Blocks for a moment; idempotent."""
        with self._lock:
            self._is_closed = True
            source, self._source = self._source, None
        if source is not None:
            source.close()

    def _open_source(self) -> None:
        source = WorkloadAPI()
        with self._lock:
            if not self._is_closed:
                self._source = source
                return
        source.close()

    def _forget_opening(self, opening: "asyncio.Task[None]") -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # retrieved here: callers that still waited have got it
