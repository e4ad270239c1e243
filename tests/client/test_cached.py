"""`Cached` and `AsyncCached`, with real clients against a server over mTLS whose answers each test writes.

Every test of `TestBoth` runs with both; the asyncio one is called through a loop in a thread.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

import shardhold
from common.errors import (
    DeniedError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    SealedError,
    ShardholdError,
)
from shardhold import AsyncCached, AsyncClient, Cached, Client, Secret
from shardhold.v1 import secrets_pb2
from tests.client.bridge import LoopThread
from tests.client.conftest import Eventually, WaitUntil
from tests.client.servers import Nexus
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most

PATH = "team/app/db"
MakeCached = Callable[..., Cached]


@pytest.fixture
def nexus(ca: Authority) -> Iterator[Nexus]:
    """Run a server that has version 1."""
    nexus = Nexus(ca)
    write(nexus, 1)
    yield nexus
    nexus.stop()


@pytest.fixture
def identity(ca: Authority) -> FixedIdentity:
    """Return the SVID of a workload."""
    return FixedIdentity(ca.issue("/team/app"))


@pytest.fixture(params=["Cached", "AsyncCached"])
def make(request: pytest.FixtureRequest, nexus: Nexus, identity: FixedIdentity) -> Iterator[MakeCached]:
    """Return a function that makes either kind, refreshed ten times a second and closed in the end."""
    made: list[Cached] = []

    def make(**options: Any) -> Cached:
        made.append(make_one(client, PATH, **{"interval": 0.1, **options}))
        return made[-1]

    with LoopThread() as loop:
        make_client, make_one = (Client, Cached) if request.param == "Cached" else (loop.make_client, make_in(loop))
        with make_client(nexus.address, identity, timeout=at_most(5)) as client:
            yield make
            for one in made:
                one.close()


def make_in(loop: LoopThread) -> MakeCached:
    """Return a function that makes an `AsyncCached` in *loop* behind the interface of `Cached`."""

    def make(client: Any, path: str, **options: Any) -> Cached:
        return cast(Cached, Bridge(loop, AsyncCached(client._client, path, **options)))

    return make


class Bridge:
    """One `AsyncCached`. Its methods may be called from any thread."""

    def __init__(self, loop: LoopThread, cached: AsyncCached) -> None:
        self._loop = loop
        self._cached = cached
        loop.run(cached.start())

    def __repr__(self) -> str:
        return repr(self._cached)

    def close(self) -> None:
        """Close it."""
        self._loop.run(self._cached.close())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cached, name)


def write(nexus: Nexus, version: int) -> None:
    """Have the server answer with this version from now on."""
    nexus.fail(
        "GetSecret",
        then=secrets_pb2.GetSecretResponse(
            path=PATH, version=version, incarnation=bytes(16), fields={"password": b"canary-%d" % version}
        ),
    )


def refuse(nexus: Nexus, error: ShardholdError) -> None:
    """Have the server answer with this error from now on."""

    def answer(_: Any) -> Any:
        raise error

    nexus.answers["GetSecret"] = answer


class TestBoth:
    """What holds for either kind."""

    def test_is_ready_when_made(self, make: MakeCached, nexus: Nexus) -> None:
        """The first value is there at once, with its age, and asking for it makes no call."""
        cached = make(interval=60)
        assert cached.current.fields == {"password": b"canary-1"}
        assert (cached.current is cached.current, cached.error, cached.path) == (True, None, PATH)
        assert cached.age > 0
        assert len(nexus.requests) == 1
        assert repr(cached) in ("Cached('team/app/db')", "AsyncCached('team/app/db')")

    def test_follows_changes(self, make: MakeCached, nexus: Nexus, wait_until: WaitUntil) -> None:
        """A change becomes current, and then the callback gets it; the first value and repeats are no change."""
        told: list[tuple[int, int]] = []
        cached: Cached = make(on_change=lambda secret: told.append((secret.version, cached.current.version)))
        wait_until(lambda: len(nexus.requests) >= 3)
        assert told == []
        write(nexus, 2)
        wait_until(lambda: told == [(2, 2)])
        write(nexus, 1)
        wait_until(lambda: told == [(2, 2), (1, 1)])

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            pytest.param(DeniedError("not allowed"), shardhold.DeniedError, id="denied"),
            pytest.param(NotFoundError("no secret"), shardhold.NotFoundError, id="no such secret"),
            pytest.param(InvalidArgumentError("path"), shardhold.InvalidArgumentError, id="no path"),
        ],
    )
    def test_refusals_end_the_start(
        self, make: MakeCached, nexus: Nexus, error: ShardholdError, kind: type[shardhold.Error]
    ) -> None:
        """What time does not change is raised after one call."""
        refuse(nexus, error)
        with pytest.raises(kind):
            make()
        assert len(nexus.requests) == 1

    def test_start_waits_through_an_outage(self, make: MakeCached, nexus: Nexus) -> None:
        """A nexus that is sealed when the program starts, and unsealed soon, is waited for."""
        answer = nexus.answers["GetSecret"]({})
        nexus.fail("GetSecret", SealedError("sealed"), OverloadedError("busy"), then=answer)
        assert make(start_timeout=at_most(20)).current.version == 1
        assert len(nexus.requests) == 3

    def test_start_ends_in_time(self, make: MakeCached, nexus: Nexus) -> None:
        """A nexus that stays sealed is an error when the time of the start is over."""
        refuse(nexus, SealedError("sealed"))
        with pytest.raises(shardhold.SealedError):
            make(start_timeout=1.2)

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            pytest.param(SealedError("sealed"), shardhold.SealedError, id="sealed"),
            pytest.param(DeniedError("not allowed"), shardhold.DeniedError, id="revoked"),
            pytest.param(NotFoundError("no secret"), shardhold.NotFoundError, id="deleted"),
        ],
    )
    def test_keeps_the_last_good_value(
        self,
        make: MakeCached,
        nexus: Nexus,
        wait_until: WaitUntil,
        error: ShardholdError,
        kind: type[shardhold.Error],
    ) -> None:
        """It is served with its age and the reason; what is written meanwhile arrives afterwards."""
        cached = make()
        refuse(nexus, error)
        wait_until(lambda: isinstance(cached.error, kind))
        age = cached.age
        assert cached.current.version == 1
        wait_until(lambda: cached.age > age + 0.2)
        write(nexus, 2)
        wait_until(lambda: cached.current.version == 2)
        assert cached.error is None

    def test_max_age(self, make: MakeCached, nexus: Nexus, wait_until: WaitUntil) -> None:
        """A value that was not confirmed for so long is not given out; the error names the reason."""
        cached = make(max_age=0.2)
        refuse(nexus, DeniedError("not allowed"))
        wait_until(lambda: cached.age > 0.2)
        with pytest.raises(shardhold.UnavailableError, match=r"team/app/db: the value was confirmed") as caught:
            _ = cached.current
        assert isinstance(caught.value.__cause__, shardhold.DeniedError)

    def test_a_callback_that_fails(
        self, make: MakeCached, nexus: Nexus, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its exception is logged without the value, and refreshing goes on."""

        def fail(secret: Secret) -> None:
            raise RuntimeError(f"no connection with version {secret.version}")

        cached = make(on_change=fail)
        for version in (2, 3):
            write(nexus, version)
            wait_until(lambda: cached.current.version == version)  # noqa: B023 — it is called at once
        wait_until(lambda: caplog.text.count("team/app/db: on_change raised") == 2)
        assert "no connection with version 3" in caplog.text
        assert "canary" not in caplog.text
        assert cached.error is None

    def test_close(self, make: MakeCached) -> None:
        """After it no thread or task is left that could ask, and the last value stays."""
        cached = make()
        cached.close()
        cached.close()
        assert "shardhold-cached" not in {thread.name for thread in threading.enumerate()}
        assert cached.current.version == 1

    def test_is_closed_while_it_waits(self, make: MakeCached) -> None:
        """A long interval does not hold `close` up."""
        make(interval=3600).close()


class Faulty:
    """A client whose second call fails as none should."""

    def __init__(self) -> None:
        self.calls = 0

    def get(self, path: str, *, timeout: float | None = None) -> Secret:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("no new thread")
        response = secrets_pb2.GetSecretResponse(version=self.calls)
        return Secret(path, self.calls, b"", {}, response.created_at.ToDatetime())


def test_refreshing_survives_a_bug(wait_until: WaitUntil) -> None:
    """An exception that no client should raise does not end the thread."""
    with Cached(cast(Client, Faulty()), PATH, interval=0.1) as cached:
        wait_until(lambda: isinstance(cached.error, shardhold.InternalError))
        wait_until(lambda: cached.current.version > 2)


def test_closed_by_its_callback(
    nexus: Nexus, identity: FixedIdentity, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    """A program may close it when the secret changes, from the thread that refreshes."""
    with Client(nexus.address, identity, timeout=at_most(5)) as client:
        cached = Cached(client, PATH, interval=0.1, on_change=lambda _: cached.close())
        write(nexus, 2)
        wait_until(lambda: "shardhold-cached" not in {thread.name for thread in threading.enumerate()})
        assert cached.current.version == 2
    assert caplog.messages == []


def test_a_callback_that_ends_its_thread(
    nexus: Nexus, identity: FixedIdentity, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    """`sys.exit` in the callback ends nothing but itself, and is logged: the secret is kept fresh all the same."""
    with (
        Client(nexus.address, identity, timeout=at_most(5)) as client,
        Cached(client, PATH, interval=0.1, on_change=lambda _: sys.exit(1)) as cached,
    ):
        for version in (2, 3):
            write(nexus, version)
            wait_until(lambda version=version: cached.current.version == version)
        wait_until(lambda: caplog.messages == [f"{PATH}: on_change raised"] * 2)


def test_closed_without_waiting(
    nexus: Nexus, identity: FixedIdentity, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    """A refresh that gets no answer holds nobody up, ends with its client, and is no failure then."""
    go_on = threading.Event()

    def hang(_: Any) -> Any:
        go_on.wait(at_most(20))
        return secrets_pb2.GetSecretResponse()

    with Client(nexus.address, identity, timeout=at_most(600)) as client:
        cached = Cached(client, PATH, interval=0.1)
        nexus.answers["GetSecret"] = hang
        wait_until(lambda: len(nexus.requests) > 1)
        cached.close(wait=False)
    cached.close()
    assert (cached.current.version, cached.error, caplog.messages) == (1, None, [])
    go_on.set()


class TestAsync:
    """What only the asyncio one has."""

    async def test_started_by_two_tasks(self, nexus: Nexus, identity: FixedIdentity) -> None:
        """One of them is refused at once: a second task that refreshes would be closed by nobody."""
        async with AsyncClient(nexus.address, identity, timeout=at_most(5)) as client:
            cached = AsyncCached(client, PATH)
            ends = await asyncio.gather(cached.start(), cached.start(), return_exceptions=True)
            assert list(map(type, ends)) == [type(None), RuntimeError]
            await cached.close()
            assert [task.get_name() for task in asyncio.all_tasks() if "shardhold" in task.get_name()] == []

    async def test_a_callback_whose_work_is_cancelled(
        self, nexus: Nexus, identity: FixedIdentity, eventually: Eventually, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A callback that awaits what somebody cancels is logged, and the secret is kept fresh all the same."""

        async def await_cancelled(_: Secret) -> None:
            work = asyncio.create_task(asyncio.sleep(3600))
            asyncio.get_running_loop().call_soon(work.cancel)
            await work

        async with (
            AsyncClient(nexus.address, identity, timeout=at_most(5)) as client,
            AsyncCached(client, PATH, interval=0.1, on_change=await_cancelled) as cached,
        ):
            write(nexus, 2)
            await eventually(lambda: cached.current.version == 2)
            write(nexus, 3)
            await eventually(lambda: cached.current.version == 3)
            await eventually(lambda: caplog.messages == [f"{PATH}: on_change awaited what was cancelled"] * 2)

    async def test_closed_by_its_callback(self, nexus: Nexus, identity: FixedIdentity, eventually: Eventually) -> None:
        """A callback that is a coroutine is awaited, and may close it."""
        done: list[int] = []

        async def stop(secret: Secret) -> None:
            await cached.close()
            await asyncio.sleep(0)
            done.append(secret.version)

        async with AsyncClient(nexus.address, identity, timeout=at_most(5)) as client:
            cached = AsyncCached(client, PATH, interval=0.1, on_change=stop)
            await cached.start()
            write(nexus, 2)
            await eventually(lambda: done == [2])

    async def test_is_started_once(self, nexus: Nexus, identity: FixedIdentity) -> None:
        """Before the start there is no value; it starts once, and not after it was closed."""
        async with AsyncClient(nexus.address, identity, timeout=at_most(5)) as client:
            cached = AsyncCached(client, PATH)
            with pytest.raises(RuntimeError, match="not started"):
                _ = cached.current
            async with cached:
                with pytest.raises(RuntimeError, match="started or closed before"):
                    await cached.start()
            assert cached.current.version == 1
            with pytest.raises(RuntimeError, match="started or closed before"):
                await cached.start()

    async def test_close_cancels_a_refresh(self, nexus: Nexus, identity: FixedIdentity, eventually: Eventually) -> None:
        """A refresh that gets no answer does not hold `close` up."""
        go_on = threading.Event()

        def hang(_: Any) -> Any:
            go_on.wait(at_most(20))
            return secrets_pb2.GetSecretResponse()

        async with AsyncClient(nexus.address, identity, timeout=at_most(600)) as client:
            async with AsyncCached(client, PATH, interval=0.1):
                nexus.answers["GetSecret"] = hang
                await eventually(lambda: len(nexus.requests) > 1)
            await eventually(lambda: nexus.cancelled == ["GetSecret"])
            go_on.set()

    async def test_a_start_can_be_cancelled(
        self, nexus: Nexus, identity: FixedIdentity, eventually: Eventually
    ) -> None:
        """A task that is cancelled while it waits for the first value leaves nothing behind."""
        refuse(nexus, SealedError("sealed"))
        async with AsyncClient(nexus.address, identity, timeout=at_most(5)) as client:
            start = asyncio.create_task(AsyncCached(client, PATH, start_timeout=600).start())
            await eventually(lambda: nexus.requests)
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
