"""The example in Go, built and run against a real cluster: what docs/other-languages.md asks of a client, it does."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardhold
from pilot.dev.directory import Plan
from pilot.dev.identities import parse_workload
from shardhold.identity import BUNDLE_FILE, ENDPOINT_VARIABLE, SVID_FILE
from tests.examples.answer_losing_relay import AnswerLosingRelay
from tests.kit.authority import Authority
from tests.kit.cluster import Cluster, running
from tests.kit.patience import at_most

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.needs("go")]

EXAMPLES = Path(__file__).parents[2] / "examples"
APP = "/team/app"
SECRET = "team/app/db"
VALUE = b"correct \x00\xff horse"
REFUSED = re.compile(r'shardhold_calls_total\{code="UNAVAILABLE",rpc="GetSecret"\} [1-9]')
TIMEOUT_S = at_most(30)
HOPELESS_S = 2.0  # for a call that fails in any case: long enough for one handshake on a busy machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A ready cluster in which one workload may read and write below team/app/."""
    with running(tmp_path_factory.mktemp("go") / "dev", Plan(keepers=2, threshold=2)) as cluster:
        cluster.allow(APP, ["team/app/**"], ["read", "write"])
        yield cluster


@pytest.fixture(scope="module")
def app(cluster: Cluster) -> shardhold.Client:
    """The SDK with the identity that the example has, too."""
    return cluster.workload(APP)


class Example:
    """The built example, with the SVID of the workload in files."""

    def __init__(self, program: Path, cluster: Cluster, svid_dir: Path) -> None:
        self._program = program
        self._cluster = cluster
        self.svid_dir = svid_dir

    def write_svid(self) -> None:
        """Write the files of the SVID, as the page says."""
        socket = f"unix:{self._cluster.dev.add_identity(parse_workload(APP))}"
        environ = {**os.environ, ENDPOINT_VARIABLE: socket}
        command = [sys.executable, str(EXAMPLES / "svid_files.py"), str(self.svid_dir)]
        subprocess.run(command, env=environ, check=True, timeout=TIMEOUT_S)

    @contextlib.contextmanager
    def running(
        self, *arguments: str, address: str = "", timeout_s: float = TIMEOUT_S
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """Run it during the block, by default towards the nexus."""
        command = [str(self._program), f"-address={address or self._cluster.dev.address}", f"-svid-dir={self.svid_dir}"]
        process = subprocess.Popen(
            [*command, f"-timeout={timeout_s}s", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def run(
        self, *arguments: str, value: bytes = VALUE, address: str = "", timeout_s: float = TIMEOUT_S
    ) -> tuple[int, bytes, str]:
        """Run it with *value* on its standard input; return its exit code, and what it printed and complained of."""
        with self.running(*arguments, address=address, timeout_s=timeout_s) as process:
            return finish(process, value)


def finish(process: "subprocess.Popen[bytes]", value: bytes = VALUE) -> tuple[int, bytes, str]:
    """Return the exit code, what was printed, and what was complained of."""
    printed, complaint = process.communicate(value, timeout=2 * TIMEOUT_S)
    return process.returncode, printed, complaint.decode()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built as its page says."""
    target = tmp_path_factory.mktemp("build") / "shardhold-example"
    subprocess.run([EXAMPLES / "go" / "build", target], check=True, timeout=at_most(120))
    return target


@pytest.fixture
def example(program: Path, cluster: Cluster, tmp_path: Path) -> Example:
    example = Example(program, cluster, tmp_path / "svid")
    example.write_svid()
    return example


def test_it_puts_and_gets(example: Example, app: shardhold.Client) -> None:
    """Bytes for bytes, and the SDK reads the same."""
    assert example.run("put", SECRET, "password") == (0, b"version 1\n", "")
    assert example.run("get", SECRET, "password") == (0, VALUE, "")
    assert app.get(SECRET).fields == {"password": VALUE}


def test_it_says_why_it_was_refused(example: Example) -> None:
    """The reason of the ErrorInfo comes first, whatever the message is."""
    code, printed, complaint = example.run("get", "team/other/db", "password")
    assert (code, printed) == (1, b"")
    assert complaint.startswith("shardhold-example: error: DENIED: ")


def test_a_lost_answer_writes_nothing_twice(example: Example, cluster: Cluster, app: shardhold.Client) -> None:
    """A put whose answer is lost is repeated under its request id, and tells what the first one wrote."""
    path, value = "team/app/lost-answer", VALUE * 4000
    port = cluster.dev.state.ports["nexus"].grpc

    def is_there() -> bool:
        try:
            return bool(app.get(path).version)
        except shardhold.NotFoundError:
            return False

    relay = AnswerLosingRelay(port, call_size=len(value), was_made=is_there)
    try:
        assert example.run("put", path, "password", value=value, address=relay.address) == (0, b"version 1\n", "")
    finally:
        relay.close()
    assert relay.is_lost.is_set()
    assert app.get(path).version == 1


def test_it_waits_for_a_nexus_and_reads_its_files_anew(example: Example, cluster: Cluster) -> None:
    """While no nexus runs and its certificate is not its key's it tries again, until both are mended."""
    (example.svid_dir / SVID_FILE).write_bytes(example.svid_dir.joinpath(BUNDLE_FILE).read_bytes())
    cluster.kill("nexus")
    with example.running("get", SECRET, "password") as process:
        cluster.start_nexus()
        assert process.poll() is None
        example.write_svid()
        assert finish(process) == (0, VALUE, "")


def test_it_waits_for_a_root_key(example: Example, cluster: Cluster) -> None:
    """While the nexus recovers its key, a call is repeated."""
    cluster.freeze("keeper-1")
    cluster.kill("nexus")
    cluster.run("nexus")
    with example.running("get", SECRET, "password") as process:
        cluster.wait("a get was refused", lambda: bool(REFUSED.search(cluster.fetch("nexus", "/metrics"))))
        cluster.thaw("keeper-1")
        assert finish(process) == (0, VALUE, "")


def test_it_trusts_only_its_bundle(example: Example) -> None:
    """A server whose authority is not in the bundle gets no call."""
    (example.svid_dir / BUNDLE_FILE).write_bytes(Authority("dev.shardhold").bundle_pem)
    code, printed, complaint = example.run("get", SECRET, "password", timeout_s=HOPELESS_S)
    assert (code, printed) == (1, b"")
    assert "certificate signed by unknown authority" in complaint


def test_it_talks_to_a_nexus_only(example: Example, cluster: Cluster) -> None:
    """Another server of the trust domain, here a keeper, gets no call."""
    keeper = f"127.0.0.1:{cluster.dev.state.ports['keeper-1'].grpc}"
    code, printed, complaint = example.run("get", SECRET, "password", address=keeper, timeout_s=HOPELESS_S)
    assert (code, printed) == (1, b"")
    assert "keeper-1.keeper.shardhold, not nexus.shardhold" in complaint


def test_it_does_not_wait_for_custodians(example: Example, cluster: Cluster) -> None:
    """A sealed nexus is said at once: only people can change that."""
    cluster.superuser.seal()
    code, printed, complaint = example.run("get", SECRET, "password", timeout_s=100 * TIMEOUT_S)
    assert (code, printed) == (1, b"")
    assert complaint.startswith("shardhold-example: error: NEXUS_SEALED: ")
