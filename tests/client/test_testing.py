"""The switches of the fake nexus, and how services use it; what it does like a real one is in test_contract.py."""

import asyncio
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import shardhold
from shardhold import AsyncClient, Client, State, VersionState
from shardhold.testing import FakeAsyncClient, FakeClient, FakeNexus
from tests.kit.patience import at_most

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nexus() -> FakeNexus:
    """Return a nexus with one secret."""
    nexus = FakeNexus()
    nexus.client().put("team/app/db", {"password": "canary-5f1c"})
    return nexus


def test_fakes_are_clients(nexus: FakeNexus) -> None:
    """A function that wants a client takes a fake one, also under a type checker; all clients see the same secrets."""

    def read(client: Client) -> str:
        return client.get("team/app/db").text("password")

    async def read_async(client: AsyncClient) -> str:
        async with client:
            return (await client.get("team/app/db")).text("password")

    assert read(nexus.client()) == asyncio.run(read_async(nexus.async_client())) == "canary-5f1c"


def test_a_client_alone() -> None:
    """A fake client without a nexus makes one of its own."""
    client = FakeClient()
    client.put("a", {"value": b"1"})
    assert client.nexus.client().get("a")["value"] == b"1"
    assert FakeAsyncClient().nexus is not FakeAsyncClient().nexus


def test_seal(nexus: FakeNexus) -> None:
    """A sealed nexus tells its status and nothing else; unsealed, it has what it had."""
    client = nexus.client()
    nexus.seal()
    assert client.status().state is State.SEALED
    for attempt in (lambda: client.get("team/app/db"), lambda: list(client.list()), lambda: client.delete("a")):
        with pytest.raises(shardhold.SealedError) as caught:
            attempt()
        assert caught.value.reason == "NEXUS_SEALED"
    nexus.unseal()
    assert client.status().state is State.READY
    assert client.get("team/app/db").version == 1


def test_fail_next(nexus: FakeNexus) -> None:
    """The next calls fail, one for each error and in their order, and change nothing."""
    client = nexus.client()
    nexus.fail_next(shardhold.UnavailableError("away"), shardhold.RecoveringError("2 of 3 shards"))
    with pytest.raises(shardhold.UnavailableError, match="away"):
        client.put("team/app/db", {"password": b"2"})
    with pytest.raises(shardhold.RecoveringError):
        client.get("team/app/db")
    assert client.get("team/app/db").version == 1


def test_fail_next_in_asyncio(nexus: FakeNexus) -> None:
    """The client of asyncio fails alike."""

    async def use() -> None:
        async with nexus.async_client() as client:
            nexus.fail_next(shardhold.OverloadedError("full"))
            with pytest.raises(shardhold.OverloadedError, match="full"):
                await client.get("team/app/db")

    asyncio.run(use())


@pytest.mark.parametrize("failure", [shardhold.NotFoundError, OSError("gone")], ids=["class", "of another kind"])
def test_fail_next_with_what_no_call_raises(nexus: FakeNexus, failure: object) -> None:
    """What a real client cannot raise is an error of the test."""
    with pytest.raises(TypeError, match="want errors of shardhold"):
        nexus.fail_next(failure)  # type: ignore[arg-type]
    assert nexus.client().get("team/app/db").version == 1


def test_lost_answer(nexus: FakeNexus) -> None:
    """A change whose answer is lost was made, and its request id tells so."""
    client, request_id = nexus.client(), bytes(16)
    nexus.fail_next(shardhold.DeadlineError("no answer"), made=True)
    with pytest.raises(shardhold.DeadlineError):
        client.put("team/app/db", {"password": b"2"}, request_id=request_id)
    assert client.get("team/app/db").version == 2
    assert client.put("team/app/db", {"password": b"2"}, request_id=request_id).version == 2


@pytest.mark.parametrize(
    ("glob", "permissions", "path", "is_denied"),
    [
        pytest.param("team/app/db", [], "team/app/db", True, id="the path"),
        pytest.param("team/app/db", [], "team/app/db2", False, id="another"),
        pytest.param("team/app", [], "team/app/db", False, id="above"),
        pytest.param("team/**", [], "team/app/db", True, id="all below"),
        pytest.param("team/**", [], "team", True, id="all below, and itself"),
        pytest.param("**/db", [], "team/app/db", True, id="anywhere"),
        pytest.param("team/*", [], "team/app/db", False, id="one segment only"),
        pytest.param("team/*/d*b", [], "team/app/db", True, id="part of a segment"),
        pytest.param("**", ["write", "delete"], "team/app/db", False, id="other permissions"),
        pytest.param("**", ["write", "read"], "team/app/db", True, id="this permission among others"),
    ],
)
def test_deny(glob: str, permissions: list[str], path: str, is_denied: bool) -> None:
    """Globs match as those of policies do."""
    nexus = FakeNexus(caller="spiffe://example.org/me")
    client = nexus.client()
    client.put(path, {"value": b"1"})
    nexus.deny(glob, *permissions)
    if is_denied:
        with pytest.raises(shardhold.DeniedError, match=f"^{path}: spiffe://example.org/me is not allowed"):
            client.get(path)
    else:
        assert client.get(path)["value"] == b"1"
    nexus.allow_all()
    assert client.get(path).version == 1


def test_deny_lists(nexus: FakeNexus) -> None:
    """A list leaves out what is denied, and is refused where all of it is."""
    client = nexus.client()
    client.put("team/other", {"value": b"1"})
    nexus.deny("team/app/**", "list")
    assert [entry.path for entry in client.list()] == ["team/other"]
    nexus.deny("**", "list")
    with pytest.raises(shardhold.DeniedError, match="^team: .* give it list on some path"):
        list(client.list("team"))
    assert client.get("team/app/db").version == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("team/**", "raed"), "permission: got 'raed', want read, write, list, delete"),
        (("team//db",), "glob: got 'team//db'"),
        (("team/a**",), "glob: got 'team/a\\*\\*'"),
    ],
)
def test_deny_nonsense(nexus: FakeNexus, arguments: tuple[str, ...], words: str) -> None:
    """A denial that would deny nothing is an error of the test."""
    with pytest.raises(ValueError, match=words):
        nexus.deny(*arguments)


def test_time_and_limit() -> None:
    """Tests may bring their own clock, and say how many versions are kept."""
    moments = [datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 10)]
    nexus = FakeNexus(now=iter(moments).__next__, max_versions=2)
    client = nexus.client()
    for number in range(3):
        client.put("a", {"value": str(number)})
    client.destroy("a", [2])
    versions = list(client.versions("a"))
    assert [(version.number, version.created_at) for version in versions] == [(3, moments[2]), (2, moments[1])]
    assert (versions[1].state, versions[1].destroyed_at) == (VersionState.DESTROYED, moments[3])
    assert client.get("a").created_at - moments[0] == timedelta(days=2)


def test_closed(nexus: FakeNexus) -> None:
    """A closed fake makes no call, as a closed client does not."""
    client = nexus.client()
    client.close()
    with pytest.raises(shardhold.ClientClosedError, match="the channel is closed"):
        client.get("team/app/db")

    async def use() -> None:
        client = nexus.async_client()
        await client.close()
        with pytest.raises(shardhold.ClientClosedError, match="the channel is closed"):
            await client.get("team/app/db")

    asyncio.run(use())


def test_arguments_of_clients() -> None:
    """Fakes refuse what the clients refuse before a call is made."""
    client = FakeClient(timeout=3)
    with pytest.raises(shardhold.InvalidArgumentError, match="timeout"):
        client.get("a", timeout=0)
    with pytest.raises(TypeError, match="'pin' is int"):
        client.put("a", {"pin": 4711})  # type: ignore[dict-item]


def test_a_loop_each(nexus: FakeNexus) -> None:
    """A fake client of asyncio belongs to one loop, so a test finds out what a real one would refuse."""
    client = nexus.async_client()

    async def get() -> None:
        await client.get("team/app/db")

    asyncio.run(get())
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        asyncio.run(get())


def test_tasks_have_their_turn(nexus: FakeNexus) -> None:
    """A call gives other tasks a turn, so a test finds races that it would otherwise hide."""
    order: list[str] = []

    async def use() -> None:
        client = nexus.async_client()

        async def get(name: str) -> None:
            order.append(f"{name} begins")
            await client.get("team/app/db")
            order.append(f"{name} ends")

        await asyncio.gather(get("a"), get("b"))

    asyncio.run(use())
    assert order == ["a begins", "b begins", "a ends", "b ends"]


def test_threads() -> None:
    """Threads may share a nexus: no version is lost."""
    nexus = FakeNexus(max_versions=0)

    def write() -> None:
        client = nexus.client()
        for _ in range(50):
            client.put("a", {"value": b"1"})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [version.number for version in nexus.client().versions("a")] == list(range(200, 0, -1))


def test_text_form_has_no_value(nexus: FakeNexus) -> None:
    """Nothing of the fake shows a value by itself, as a failed assertion would print it."""
    client = nexus.client()
    for shown in (nexus, client, nexus._handlers._vault._secrets, list(client.versions("team/app/db"))):
        assert "canary" not in repr(shown)


def test_fixtures(tmp_path: Path) -> None:
    """The fixtures are known once conftest.py names the plug-in, and each test has a nexus of its own."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["shardhold.testing.pytest"]\n')
    (tmp_path / "test_service.py").write_text(
        "import asyncio\n"
        "import pytest\n"
        "@pytest.mark.parametrize('number', [1, 2])\n"
        "def test_it(shardhold_nexus, shardhold_client, shardhold_async_client, number):\n"
        "    assert list(shardhold_client.list()) == []\n"
        "    shardhold_client.put('a', {'value': b'1'})\n"
        "    assert shardhold_client.nexus is shardhold_async_client.nexus is shardhold_nexus\n"
        "    assert asyncio.run(shardhold_async_client.get('a'))['value'] == b'1'\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=at_most(120),
    )
    assert (ended.returncode, "2 passed" in ended.stdout) == (0, True), ended.stdout
