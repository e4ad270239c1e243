"""What a program prints that lets an error of the SDK go: few frames, public names, and no line of gRPC's own log."""

import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import shardhold
from common.errors import DeniedError
from shardhold.identity import Svid
from shardhold.v1 import secrets_pb2
from tests.client.bridge import MakeClient
from tests.client.servers import Nexus
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most

MOST_FRAMES = 6
DENIED = "spiffe://example.org/team/app is not allowed: a policy has to give it read on this path"
SHOWN = f"shardhold.DeniedError: team/app/db: {DENIED}"

USES = {
    "Client": "import sys\n{preface}\nfrom shardhold import Client, SvidFiles\n"
    "with Client(sys.argv[1], SvidFiles(sys.argv[2])) as client:\n    {call}\n",
    "AsyncClient": "import asyncio, sys\n{preface}\nfrom shardhold import AsyncClient, SvidFiles\n"
    "async def main():\n"
    "    async with AsyncClient(sys.argv[1], SvidFiles(sys.argv[2])) as client:\n        {call}\n"
    "asyncio.run(main())\n",
}
GET = {"Client": "client.get('team/app/db')", "AsyncClient": "await client.get('team/app/db')"}
LIST = {"Client": "list(client.list('team'))", "AsyncClient": "[entry async for entry in client.list('team')]"}


@pytest.fixture
def nexus(ca: Authority) -> Iterator[Nexus]:
    """Run a server that denies reads."""
    nexus = Nexus(ca)
    nexus.fail("GetSecret", *[DeniedError(DENIED)] * 9, then=secrets_pb2.GetSecretResponse())
    nexus.fail("ListSecrets", *[DeniedError(DENIED)] * 9, then=secrets_pb2.ListSecretsResponse())
    yield nexus
    nexus.stop()


@pytest.fixture
def svid(ca: Authority, tmp_path: Path) -> Path:
    """Write the SVID of /team/app to files."""
    svid = ca.issue("/team/app")
    files = {"svid.pem": svid.certificates_pem, "svid_key.pem": svid.key_pem, "bundle.pem": svid.bundle_pem}
    for name, pem in files.items():
        (tmp_path / name).write_bytes(pem)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def _run(program: str, *arguments: object, **environment: str) -> str:
    """Return what *program* writes to stderr before it ends with an error."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRPC", "SPIFFE", "SHARDHOLD"))}
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=at_most(60),
    )
    assert ended.returncode == 1, ended.stderr
    return ended.stderr


def _list_frames(stderr: str) -> list[str]:
    """Return the frames of every traceback in *stderr*, without those of asyncio's own runner."""
    frames = re.findall(r'^ *File "([^"]+)", line', stderr, flags=re.M)
    return [frame for frame in frames if "/asyncio/" not in frame]


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
@pytest.mark.parametrize("calls", [pytest.param(GET, id="get"), pytest.param(LIST, id="list")])
def test_a_denied_call(nexus: Nexus, svid: Path, kind: str, calls: dict[str, str]) -> None:
    """It prints one traceback of at most six frames, which names the public class, the path and what to do."""
    stderr = _run(USES[kind].format(preface="", call=calls[kind]), nexus.address, svid)
    assert stderr.count("Traceback") == 1
    assert 0 < len(_list_frames(stderr)) <= MOST_FRAMES
    assert [frame for frame in _list_frames(stderr) if "grpc" in frame] == []
    assert "RpcError" not in stderr
    shown = SHOWN.replace("team/app/db", "team") if calls is LIST else SHOWN
    assert stderr.splitlines()[-1] == shown


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_no_identity(kind: str, tmp_path: Path) -> None:
    """Where there is no Workload API, the traceback is as short."""
    program = USES[kind].format(preface="", call="pass").replace(", SvidFiles(sys.argv[2])", "")
    stderr = _run(program, "127.0.0.1:1", SPIFFE_ENDPOINT_SOCKET=f"unix:{tmp_path}/none.sock")
    assert stderr.count("Traceback") == 1
    assert 0 < len(_list_frames(stderr)) <= MOST_FRAMES
    assert stderr.splitlines()[-1].startswith("shardhold.IdentityUnavailableError: no Workload API at")


class _LostIdentity(FixedIdentity):
    def current(self) -> Svid:
        try:
            raise OSError("no such file")
        except OSError as exc:
            raise shardhold.IdentityUnavailableError("no SVID any more") from exc


def test_an_identity_that_is_lost(make: MakeClient, ca: Authority) -> None:
    """Its error goes through a call as one that the call makes: few frames, and what it came from as its cause."""
    with (
        make("127.0.0.1:1", _LostIdentity(ca.issue("/team/app"))) as client,
        pytest.raises(shardhold.IdentityUnavailableError) as caught,
    ):
        client.get("a")
    assert "current" not in {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}
    assert isinstance(caught.value.cause, OSError)
    assert caught.value.__cause__ is None


LOG_LINE = "ssl_transport_security.cc"


@pytest.mark.parametrize(
    ("preface", "environment", "is_logged"),
    [
        pytest.param("", {}, False, id="nothing set: quiet"),
        pytest.param("", {"GRPC_VERBOSITY": "INFO"}, True, id="set by the application: kept"),
        pytest.param("import grpc", {}, True, id="gRPC loaded before by the application: kept"),
    ],
)
def test_the_log_of_grpc(svid: Path, preface: str, environment: dict[str, str], is_logged: bool) -> None:
    """A refused handshake writes no line of gRPC's C library to stderr, unless the application has it otherwise."""
    foreign = Nexus(Authority("other.org"))
    stderr = _run(USES["Client"].format(preface=preface, call=GET["Client"]), foreign.address, svid, **environment)
    foreign.stop()
    assert (LOG_LINE in stderr) is is_logged
    assert stderr.splitlines()[-1].startswith("shardhold.UnavailableError: ")


def test_the_environment_stays_as_it_was() -> None:
    """Loading the SDK leaves nothing in the environment that child processes would inherit."""
    for value in (None, "INFO"):
        environment = {} if value is None else {"GRPC_VERBOSITY": value}
        code = (
            "import os, sys, shardhold; shardhold.Client; sys.exit('GRPC_VERBOSITY=%s' % os.getenv('GRPC_VERBOSITY'))"
        )
        assert _run(code, **environment).strip() == f"GRPC_VERBOSITY={value}"


def test_the_cause_is_kept(make: MakeClient, nexus: Nexus, ca: Authority) -> None:
    """What gRPC raised is at hand for whoever looks for it, and does not keep frames, which hold values, alive."""
    with (
        make(nexus.address, FixedIdentity(ca.issue("/team/app"))) as client,
        pytest.raises(shardhold.DeniedError) as caught,
    ):
        client.get("team/app/db")
    cause = caught.value.cause
    assert isinstance(cause, grpc.RpcError)
    assert (cause.code(), cause.details()) == (grpc.StatusCode.PERMISSION_DENIED, DENIED)
    assert cause.__traceback__ is None
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
