"""What only `AsyncClient` has: cancellation, event loops, an identity that is opened late.

Its calls, retries, deadlines and errors are tested together with those of `Client`, in test_client.py.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

import grpc
import pytest
from google.protobuf.message import Message

import shardhold
from common.errors import NotFoundError, RecoveringError
from common.server.edge import GrpcServer, Method
from pilot.dev.provider import IdentityProvider
from shardhold import AsyncClient, Client, State
from shardhold._calls import SERVER_NAME
from shardhold.identity import ENDPOINT_VARIABLE, WorkloadAPI
from shardhold.v1 import cluster_pb2, secrets_pb2
from tests.client.servers import NEXUS, Nexus
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most

Eventually: TypeAlias = Callable[..., Awaitable[None]]


class Pause:
    """An answer that waits until the test goes on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, request: Any) -> Message:
        """Wait, and answer with an empty secret."""
        self.go_on.wait(at_most(20))
        return secrets_pb2.GetSecretResponse(path="a")


@pytest.fixture
def nexus(ca: Authority) -> Iterator[Nexus]:
    """Run a nexus that is ready."""
    nexus = Nexus(ca)
    nexus.fail("GetStatus", then=cluster_pb2.GetStatusResponse(state=cluster_pb2.STATE_READY))
    yield nexus
    nexus.stop()


@pytest.fixture
def pause(nexus: Nexus) -> Iterator[Pause]:
    """Make every read wait."""
    nexus.answers["GetSecret"] = pause = Pause()
    yield pause
    pause.go_on.set()


@pytest.fixture
def client(nexus: Nexus, ca: Authority) -> AsyncClient:
    """Make a client, outside any loop; each test enters it."""
    return AsyncClient(nexus.address, FixedIdentity(ca.issue("/team/app")), timeout=at_most(10))


def _check_idle(client: AsyncClient) -> None:
    """Require that no call is left."""
    assert client._channel._calls == set()
    connection = client._channel._connections.current
    assert connection is None or connection.calls == 0


class TestCancellation:
    """Giving up a task cancels its call."""

    async def test_in_flight(self, client: AsyncClient, nexus: Nexus, pause: Pause, eventually: Eventually) -> None:
        """A cancelled task ends at once, its call is cancelled at the server, and nothing of it is left."""
        async with client:
            task = asyncio.create_task(client.get("a"))
            await eventually(lambda: nexus.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            _check_idle(client)
            await eventually(lambda: nexus.cancelled == ["GetSecret"])
            assert (await client.status()).state is State.READY

    async def test_of_many(self, client: AsyncClient, nexus: Nexus, pause: Pause, eventually: Eventually) -> None:
        """A failure in a task group cancels the group's calls and no others."""
        async with client:
            other = asyncio.create_task(client.get("other"))

            async def fail() -> None:
                await eventually(lambda: len(nexus.requests) >= 4)
                raise LookupError("enough")

            async def work() -> None:
                async with asyncio.TaskGroup() as group:
                    for path in ("a", "b", "c"):
                        group.create_task(client.get(path))
                    group.create_task(fail())

            with pytest.raises(ExceptionGroup) as caught:
                await work()
            assert [type(error) for error in caught.value.exceptions] == [LookupError]
            await eventually(lambda: len(nexus.cancelled) == 3)
            pause.go_on.set()
            assert (await other).path == "a"
            _check_idle(client)

    async def test_by_a_timeout_of_asyncio(self, client: AsyncClient, nexus: Nexus, pause: Pause) -> None:
        """`asyncio.timeout` around a call works as it does around anything else."""
        async with client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.get("a")
            _check_idle(client)

    async def test_between_two_tries(self, client: AsyncClient, nexus: Nexus, eventually: Eventually) -> None:
        """A task that is cancelled while it waits for its next try makes no more tries."""
        nexus.fail("GetSecret", *[RecoveringError("1 of 3 shards")] * 1000, then=secrets_pb2.GetSecretResponse())
        async with client:
            task = asyncio.create_task(client.get("a"))
            await eventually(lambda: len(nexus.requests) >= 3 and not client._channel._calls)
            tried = len(nexus.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(nexus.requests) == tried
            _check_idle(client)

    async def test_list_left_early(self, client: AsyncClient, nexus: Nexus) -> None:
        """A list that is left in the middle fetches no further page and leaves nothing open."""
        page = secrets_pb2.ListSecretsResponse(
            secrets=[secrets_pb2.SecretEntry(path=path) for path in "ab"], next_page_token="more"
        )
        nexus.fail("ListSecrets", then=page)
        async with client:
            async for entry in client.list():
                assert entry.path == "a"
                break
            assert len(nexus.requests) == 1
            _check_idle(client)


class TestClosing:
    """What `close` does to calls, tasks and identities."""

    async def test_calls_in_flight(
        self, client: AsyncClient, nexus: Nexus, pause: Pause, eventually: Eventually
    ) -> None:
        """A call that `close` cuts off raises the SDK's error: its task was not cancelled, and goes on."""
        tasks = [asyncio.create_task(client.get(path)) for path in "abc"]
        await eventually(lambda: len(nexus.requests) == 3)
        await client.close()
        for task in tasks:
            with pytest.raises(shardhold.ClientClosedError, match="closed during the call") as caught:
                await task
            assert caught.value.code is grpc.StatusCode.CANCELLED
        await eventually(lambda: len(nexus.cancelled) == 3)
        _check_idle(client)

    async def test_cancelled_and_closed(
        self, client: AsyncClient, nexus: Nexus, pause: Pause, eventually: Eventually
    ) -> None:
        """A cancelled task stays cancelled even if the client is closed as well."""
        task = asyncio.create_task(client.get("a"))
        await eventually(lambda: nexus.requests)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_again_and_at_once(self, client: AsyncClient) -> None:
        """Several tasks may close a client at once; a closed client makes no call, even when it is entered again."""
        await asyncio.gather(client.close(), client.close())
        async with client:
            with pytest.raises(shardhold.ClientClosedError, match="the channel is closed"):
                await client.get("a")

    async def test_own_identity(
        self, nexus: Nexus, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The client closes the Workload API that it opened, and makes no call afterwards."""
        monkeypatch.setenv(ENDPOINT_VARIABLE, str(provider.add("/team/app")))
        client = AsyncClient(nexus.address)
        async with client:
            await client.status()
        assert "shardhold-identity" not in {thread.name for thread in threading.enumerate()}
        with pytest.raises(shardhold.ClientClosedError):
            await client.status()


class TestLoops:
    """One client belongs to one event loop."""

    def test_made_without_a_loop(self, client: AsyncClient) -> None:
        """A client may be created before there is a loop."""

        async def use() -> State:
            async with client:
                return (await client.status()).state

        assert asyncio.run(use()) is State.READY

    def test_another_loop(self, client: AsyncClient) -> None:
        """A second loop is refused by calls, lists, `async with` and `close`, and the first one goes on."""

        async def use() -> None:
            await client.status()

        async def walk() -> None:
            async for _ in client.list():
                pass

        async def enter() -> None:
            async with client:
                pass

        with asyncio.Runner() as runner:
            runner.run(use())
            failures: list[str] = []

            def use_elsewhere() -> None:
                for attempt in (use, walk, enter, client.close):
                    with pytest.raises(RuntimeError, match="belongs to another event loop"):
                        asyncio.run(attempt())
                    failures.append(attempt.__name__)

            thread = threading.Thread(target=use_elsewhere)
            thread.start()
            thread.join()
            assert failures == ["use", "walk", "enter", "close"]
            runner.run(use())
            runner.run(client.close())

    async def test_from_a_thread(self, client: AsyncClient) -> None:
        """Another thread can move its call to the client's loop."""
        async with client:
            loop = asyncio.get_running_loop()

            def ask() -> State:
                return asyncio.run_coroutine_threadsafe(client.status(), loop).result(10).state

            assert await asyncio.to_thread(ask) is State.READY

    def test_a_client_in_each(self, nexus: Nexus, ca: Authority, caplog: pytest.LogCaptureFixture) -> None:
        """Loops in several threads, each with a client, work beside a `Client`; all may share one identity."""
        identity, statuses = FixedIdentity(ca.issue("/team/app")), []

        async def use() -> None:
            async with AsyncClient(nexus.address, identity, timeout=at_most(20)) as client:
                for _ in range(30):
                    statuses.append(await client.status())

        threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(3)]
        with (
            caplog.at_level(logging.WARNING, logger="asyncio"),
            Client(nexus.address, identity, timeout=at_most(20)) as client,
        ):
            for thread in threads:
                thread.start()
            statuses += [client.status() for _ in range(30)]
            for thread in threads:
                thread.join()
        assert len(statuses) == 120
        assert not identity.closed
        assert [record.message for record in caplog.records if record.name == "asyncio"] == []


class TestLateIdentity:
    """The Workload API of the environment, opened when it is first needed."""

    async def test_several_at_once(
        self, nexus: Nexus, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first calls, made at once without `async with`, open the Workload API once for all of them."""
        monkeypatch.setenv(ENDPOINT_VARIABLE, str(provider.add("/team/app")))
        client = AsyncClient(nexus.address)
        assert "shardhold-identity" not in {thread.name for thread in threading.enumerate()}
        statuses = await asyncio.gather(*(client.status() for _ in range(5)))
        assert {status.state for status in statuses} == {State.READY}
        assert [thread.name for thread in threading.enumerate()].count("shardhold-identity") == 1
        assert len(nexus.certificates) == 1
        await client.close()

    async def test_none_yet(
        self, nexus: Nexus, provider: IdentityProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A call that finds no Workload API fails, and the next one tries again."""
        place = tmp_path / "late.sock"
        monkeypatch.setenv(ENDPOINT_VARIABLE, str(place))
        client = AsyncClient(nexus.address)
        for _ in range(2):
            with pytest.raises(shardhold.IdentityUnavailableError, match="no Workload API at"):
                await client.status()
        place.symlink_to(provider.add("/team/app"))
        assert (await client.status()).state is State.READY
        await client.close()

    async def test_that_hesitates(
        self, nexus: Nexus, provider: IdentityProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A call waits for the first SVID no longer than its time-out, the loop goes on, and a later call gets it."""
        place = tmp_path / "slow.sock"
        monkeypatch.setenv(ENDPOINT_VARIABLE, str(place))
        client, turns = AsyncClient(nexus.address), 0
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(place))
            mute.listen()
            call = asyncio.create_task(client.status(timeout=1.0))
            while not call.done():
                turns += 1
                await asyncio.sleep(0.01)
            with pytest.raises(shardhold.IdentityUnavailableError, match="waited"):
                await call
            assert turns >= 10
            place.unlink()
            place.symlink_to(provider.add("/team/app"))
        assert (await client.status(timeout=at_most(20))).state is State.READY
        await client.close()

    async def test_closed_while_it_opens(
        self, nexus: Nexus, provider: IdentityProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A source that is still opening when its client is closed or its task cancelled closes itself."""
        place = tmp_path / "slow.sock"
        monkeypatch.setenv(ENDPOINT_VARIABLE, str(place))
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(place))
            mute.listen()
            client = AsyncClient(nexus.address)
            entering = asyncio.create_task(client.__aenter__())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(entering, 0.2)
            place.unlink()
            place.symlink_to(provider.add("/team/app"))
        await asyncio.get_running_loop().shutdown_default_executor()
        assert "shardhold-identity" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.slow
async def test_short_svids_under_load(
    ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """With SVIDs of 10 s on both sides, which all expire meanwhile, no read fails and no connection is left."""
    with IdentityProvider(tmp_path / "sockets", ca, lifetime=timedelta(seconds=10)) as provider:
        server_identity = WorkloadAPI(str(provider.add(NEXUS, SERVER_NAME)))
        nexus = Nexus(ca, identity=server_identity)
        nexus.fail("GetSecret", then=secrets_pb2.GetSecretResponse(path="a", fields={"value": b"x"}))
        monkeypatch.setenv(ENDPOINT_VARIABLE, str(provider.add("/team/app")))
        read, stop = [0] * 8, asyncio.Event()

        async with AsyncClient(nexus.address) as client:

            async def read_on(number: int) -> None:
                while not stop.is_set():
                    assert (await client.get("a", timeout=at_most(10))).fields["value"] == b"x"
                    read[number] += 1

            began = monotonic()
            async with asyncio.TaskGroup() as tasks:
                for number in range(len(read)):
                    tasks.create_task(read_on(number))
                await eventually(lambda: len(nexus.certificates) >= 4 and monotonic() > began + 12, timeout=60)
                stop.set()
            assert client._channel._connections.retired == set()
            _check_idle(client)
        assert min(read) > 10
        await asyncio.to_thread(nexus.stop)
        await asyncio.to_thread(server_identity.close)


async def test_our_own_edge(ca: Authority) -> None:
    """Our servers' edge answers the client; an older grpcio cannot see TLS 1.3 there, and the edge refuses by name."""

    def get(call: Any, request: secrets_pb2.GetSecretRequest) -> secrets_pb2.GetSecretResponse:
        if request.path == "none":
            raise NotFoundError("no such secret")
        return secrets_pb2.GetSecretResponse(path=request.path, fields={"caller": call.caller.encode()})

    method = Method(
        "/shardhold.v1.SecretService/GetSecret", secrets_pb2.GetSecretRequest, secrets_pb2.GetSecretResponse, get
    )
    identity = FixedIdentity(ca.issue(NEXUS, dns=SERVER_NAME))
    server = GrpcServer([method], address="127.0.0.1:0", identity=identity, trust_domain="example.org")
    address = f"127.0.0.1:{server.start()}"
    async with AsyncClient(address, FixedIdentity(ca.issue("/team/app"))) as client:
        if tuple(int(part) for part in grpc.__version__.split(".")[:2]) >= (1, 85):
            assert (await client.get("a")).fields == {"caller": b"spiffe://example.org/team/app"}
            with pytest.raises(shardhold.NotFoundError, match="no such secret") as caught:
                await client.get("none")
            assert caught.value.reason == "NOT_FOUND"
            with pytest.raises(shardhold.UnsupportedError):
                await client.put("a", {"value": b""})
        else:
            with pytest.raises(shardhold.UnauthenticatedError, match="not TLS 1.3"):
                await client.get("a")
    await asyncio.to_thread(server.stop, 0)
