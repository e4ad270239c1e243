"""Every example of the SDK's README runs, and gives what it says."""

import ast
import asyncio
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

import shardhold
from common import errors as server_errors
from pilot.dev.provider import IdentityProvider
from shardhold import AsyncClient, Client, Error
from shardhold.identity import ENDPOINT_VARIABLE
from shardhold.testing import FakeNexus
from tests.client.servers import Nexus
from tests.kit.authority import Authority
from tests.kit.patience import at_most

README = (Path(__file__).parents[2] / "client" / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
CALLS = [example for example in EXAMPLES if "Client() as client" in example]
TESTS = [example for example in EXAMPLES if "pytest" in example]
OTHERS = [example for example in EXAMPLES if example not in CALLS + TESTS]

KINDS = {
    shardhold.NotFoundError: server_errors.NotFoundError,
    shardhold.ConflictError: server_errors.ConflictError,
}


@pytest.fixture(autouse=True)
def nexus(ca: Authority, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve what a fake nexus answers over mTLS, to the client that the environment describes."""
    fake = FakeNexus()
    nexus = Nexus(ca)

    def serve(rpc: str) -> Callable[[Any], Message]:
        def answer(request: Any) -> Message:
            try:
                return fake._answer(rpc, request)  # type: ignore[no-any-return]
            except Error as exc:
                raise KINDS[type(exc)](exc.message) from exc

        return answer

    for rpc in fake._handlers._handlers:
        nexus.answers[rpc] = serve(rpc)
    monkeypatch.setenv("SHARDHOLD_ADDRESS", nexus.address)
    monkeypatch.setenv(ENDPOINT_VARIABLE, f"unix://{provider.add('/team/app')}")
    yield
    nexus.stop()


def _check_results(example: str) -> tuple[str, int]:
    """Turn every line `expression  # value` into an assertion; return the program and how many there are."""

    def check(line: re.Match[str]) -> str:
        try:
            ast.literal_eval(line[3])
        except (SyntaxError, ValueError):  # a remark
            return line[0]
        return f"{line[1]}assert ({line[2]}) == ({line[3]})"

    program = re.sub(r"^( *)(\S.*?)  # (.+)$", check, example, flags=re.M)
    return program, program.count("assert (")


@pytest.mark.parametrize("example", CALLS, ids=range(len(CALLS)))
def test_calls(example: str) -> None:
    """An example that calls a nexus runs with a real client, and gives the results beside its lines."""
    program, _ = _check_results(example)
    code = compile(program, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, {})
    if inspect.iscoroutine(result):
        asyncio.run(result)


def test_results_are_checked() -> None:
    """Results are found in the examples, so that the test above can fail."""
    assert sum(_check_results(example)[1] for example in CALLS) == 6
    assert len(CALLS) == 4


def test_tests(tmp_path: Path) -> None:
    """The example of a conftest.py and the tests that use it pass."""
    conftest, tests = TESTS
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_service.py").write_text(tests)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=at_most(120),
    )
    assert (ended.returncode, "4 passed" in ended.stdout) == (0, True), ended.stdout


def test_other_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example that passes address and identity makes such clients."""
    made: list[tuple[object, ...]] = []
    (example,) = OTHERS
    for name in ("Client", "WorkloadAPI", "SvidFiles"):
        assert callable(getattr(shardhold, name))
        monkeypatch.setitem(vars(shardhold), name, lambda *arguments, name=name: made.append((name, *arguments)))
    exec(compile(example, "README.md", "exec"), {})
    assert [one[:2] for one in made if one[0] != "Client"] == [
        ("WorkloadAPI", "unix:/run/spire/agent.sock"),
        ("SvidFiles", "/run/svid"),
    ]
    assert [one[1] for one in made if one[0] == "Client"] == ["nexus.example.org:8553"] * 2


def test_table_of_calls() -> None:
    """The table has every call, with parameters that it takes."""
    rows = dict(re.findall(r"^\| `(\w+)\((.*?)\) → \w+", README, flags=re.M))
    calls = {name for name, call in vars(Client).items() if inspect.isfunction(call) and name[0] != "_"} - {"close"}
    assert set(rows) == calls
    for name, parameters in rows.items():
        named = {part.partition("=")[0].strip() for part in parameters.split(",")} - {"*", "…", ""}
        for kind in (Client, AsyncClient):
            assert named <= set(inspect.signature(getattr(kind, name)).parameters), name


def test_table_of_errors() -> None:
    """The table has every error that is public, and no other."""
    named = set(re.findall(r"^\| `(\w+Error)`", README, flags=re.M))
    public = {name for name in shardhold.__all__ if name.endswith("Error")} - {"Error"}
    assert named == public
