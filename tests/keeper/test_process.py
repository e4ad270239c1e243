"""The keeper as a process, over mTLS: whom it lets in, what it says, what it leaves behind, and how it ends."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from common.forms.mark import SignedMark
from common.keys.statement import PUT_SHARD
from keeper.v1 import keeper_pb2 as pb
from pilot.dev.provider import IdentityProvider
from tests.kit.authority import Authority
from tests.kit.credentials import Credentials, certify
from tests.kit.keepers import (
    CLUSTER_ID,
    NEXUS_PATH,
    KeeperProcess,
    ask_statement,
    fetch_status,
    make_put,
    name_rpc,
    put_shard,
)
from tests.kit.marks import MarkMaker
from tests.kit.patience import at_most
from tests.kit.raw_calls import call, connect
from tests.kit.refusal import Outcome
from tests.kit.strangers import STRANGERS, MakeStranger
from tests.kit.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.cluster

NEXUS = f"spiffe://example.test{NEXUS_PATH}"
RPCS = [rpc.name for rpc in pb.DESCRIPTOR.services_by_name["KeeperService"].methods]
GOOD_DNS = ["k1.keeper.shardhold"]


def call_as(keeper: KeeperProcess, ca: Authority, credentials: Credentials | None, body: bytes = b"") -> Outcome:
    """Ask the keeper for its status with these credentials."""
    with connect(keeper.port, credentials, ca, server_name=keeper.server_name) as channel:
        return call(channel, name_rpc("GetStatus"), body)


@pytest.fixture
def nexus(keeper: KeeperProcess, ca: Authority) -> Iterator[grpc.Channel]:
    """A channel to the test's own keeper, as its nexus."""
    with connect(keeper.port, certify(ca, uris=[NEXUS]), ca, server_name=keeper.server_name) as channel:
        yield channel


# Who is let in


@pytest.mark.parametrize(("make", "code"), STRANGERS)
@pytest.mark.parametrize("body", [pytest.param(b"", id="good request"), pytest.param(b"\xff", id="garbage")])
def test_strangers_are_refused(
    shared_keeper: KeeperProcess, ca: Authority, make: MakeStranger, code: str, body: bytes
) -> None:
    """A peer that does not prove one SPIFFE ID of the trust domain gets nothing, whatever else its certificate says."""
    assert call_as(shared_keeper, ca, make(ca, NEXUS), body).code is grpc.StatusCode[code]


@pytest.mark.parametrize(
    ("spiffe_id", "dns"),
    [
        pytest.param("spiffe://example.test/team/app", ["nexus.shardhold"], id="a workload with the nexus's DNS SAN"),
        pytest.param(NEXUS + "1", [], id="a nexus that is not configured"),
        pytest.param("spiffe://example.test/shardhold/keeper/k1", GOOD_DNS, id="a keeper"),
        pytest.param("spiffe://example.test/shardhold/pilot/role/superuser/ann", [], id="a superuser"),
    ],
)
def test_only_a_configured_nexus_may_call(
    shared_keeper: KeeperProcess, ca: Authority, spiffe_id: str, dns: list[str]
) -> None:
    """Any other SPIFFE ID of the trust domain is denied."""
    credentials = certify(ca, uris=[spiffe_id], dns=dns)
    assert call_as(shared_keeper, ca, credentials).code is grpc.StatusCode.PERMISSION_DENIED
    assert call_as(shared_keeper, ca, credentials, b"\xff").code is grpc.StatusCode.INVALID_ARGUMENT


def test_every_rpc_is_denied_to_others(shared_keeper: KeeperProcess, ca: Authority) -> None:
    """A workload is denied every RPC; the denial names it and what it asked for."""
    app = "spiffe://example.test/team/app"
    with connect(shared_keeper.port, certify(ca, uris=[app]), ca, server_name=shared_keeper.server_name) as channel:
        for rpc in RPCS:
            outcome = call(channel, name_rpc(rpc))
            assert (outcome.code, outcome.reason) == (grpc.StatusCode.PERMISSION_DENIED, "DENIED")
            assert app in outcome.details
            assert rpc in outcome.details


def test_plain_text_is_refused(shared_keeper: KeeperProcess) -> None:
    """A client without TLS gets no answer."""
    with grpc.insecure_channel(f"127.0.0.1:{shared_keeper.port}") as channel:
        assert call(channel, name_rpc("GetStatus"), timeout=at_most(5)).code is grpc.StatusCode.UNAVAILABLE


GARBAGE = [
    pytest.param(b"\xff" * 64, id="no protobuf"),
    pytest.param(b"\x00", id="field number 0"),
    pytest.param(b"\x0a\xff\xff\xff\xff\x0f", id="a length of 4 GiB"),
    pytest.param(b"\x0b" * 2000, id="2000 groups, none closed"),
    pytest.param(os.urandom(4096), id="random bytes"),
]


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("body", GARBAGE)
def test_garbage_is_an_invalid_argument(shared_keeper: KeeperProcess, ca: Authority, rpc: str, body: bytes) -> None:
    """Bytes that are no message are INVALID_ARGUMENT on each RPC, and the keeper goes on."""
    credentials = certify(ca, uris=[NEXUS])
    with connect(shared_keeper.port, credentials, ca, server_name=shared_keeper.server_name) as channel:
        assert call(channel, name_rpc(rpc), body).code is grpc.StatusCode.INVALID_ARGUMENT
        assert not fetch_status(channel).sets


def test_bytes_that_are_no_tls_do_no_harm(shared_keeper: KeeperProcess, ca: Authority) -> None:
    """Connections that send noise, or nothing, leave the keeper serving and its log in lines of JSON."""
    idle = socket.create_connection(("127.0.0.1", shared_keeper.port))
    with idle, socket.create_connection(("127.0.0.1", shared_keeper.port)) as noisy:
        noisy.sendall(os.urandom(4096))
        assert call_as(shared_keeper, ca, None).code is grpc.StatusCode.UNAVAILABLE
        assert call_as(shared_keeper, ca, certify(ca, uris=[NEXUS])).code is grpc.StatusCode.OK
    assert all(json.loads(line)["event"] for line in list(shared_keeper.log))


# What it does with shards


def test_replays_other_clusters_and_older_sets_are_refused(keeper: KeeperProcess, nexus: grpc.Channel) -> None:
    """A right request is taken only when it is also new, of this cluster, and not older."""
    first = make_put(ask_statement(nexus), number=7)
    assert put_shard(nexus, first).code is grpc.StatusCode.OK
    replayed = put_shard(nexus, first)
    assert (replayed.code, replayed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATEMENT")
    older = put_shard(nexus, make_put(ask_statement(nexus), number=6))
    assert (older.code, older.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SET_NOT_NEWER")
    foreign = put_shard(nexus, make_put(ask_statement(nexus), cluster_id=b"d" * 16, number=8))
    assert foreign.code is grpc.StatusCode.FAILED_PRECONDITION
    changed = make_put(ask_statement(nexus), number=8, x=3)
    changed.x = 4
    assert put_shard(nexus, changed).code is grpc.StatusCode.INVALID_ARGUMENT
    assert [held.label.set_number for held in fetch_status(nexus).sets] == [7]
    assert put_shard(nexus, make_put(ask_statement(nexus), number=7)).code is grpc.StatusCode.OK


def test_marks_are_kept_through_a_seal_and_gone_with_the_process(
    provider: IdentityProvider, ca: Authority, tmp_path: Path
) -> None:
    """The newest mark of the pinned cluster is given back, also after all sets were dropped; a new start has none."""
    keeper, marks = KeeperProcess(tmp_path, provider), MarkMaker(cluster_id=CLUSTER_ID)
    ask = pb.GetMarkRequest(cluster_id=CLUSTER_ID).SerializeToString()

    def put_mark(channel: grpc.Channel, signed: SignedMark) -> tuple[grpc.StatusCode, str]:
        mark = pb.RollbackMark(mark=signed.mark, signature=signed.signature, chain=signed.chain)
        outcome = call(channel, name_rpc("PutMark"), pb.PutMarkRequest(mark=mark).SerializeToString())
        return outcome.code, outcome.reason

    keeper.start()
    with connect(keeper.port, certify(ca, uris=[NEXUS]), ca, server_name=keeper.server_name) as channel:
        assert put_mark(channel, marks.make()) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
        request = make_put(ask_statement(channel), genesis=marks.genesis)
        assert put_shard(channel, request).code is grpc.StatusCode.OK
        assert call(channel, name_rpc("GetMark"), ask).code is grpc.StatusCode.NOT_FOUND
        for revision in (12, 11):
            assert put_mark(channel, marks.make(revision=revision))[0] is grpc.StatusCode.OK
        forged = replace(marks.make(revision=13), signature=bytes(64))
        assert put_mark(channel, forged) == (grpc.StatusCode.INVALID_ARGUMENT, "MARK")
        drop = pb.DropSetRequest(cluster_id=CLUSTER_ID, set_id=request.label.set_id)
        assert call(channel, name_rpc("DropSet"), drop.SerializeToString()).code is grpc.StatusCode.OK
        held = pb.GetMarkResponse.FromString(call(channel, name_rpc("GetMark"), ask).answer)
        assert held.mark.mark == marks.make(revision=12).mark
    assert keeper.stop() == 0
    keeper.start()
    with connect(keeper.port, certify(ca, uris=[NEXUS]), ca, server_name=keeper.server_name) as channel:
        assert call(channel, name_rpc("GetMark"), ask).code is grpc.StatusCode.NOT_FOUND
    assert keeper.stop() == 0


def test_everything_is_forgotten_at_the_end(provider: IdentityProvider, ca: Authority, tmp_path: Path) -> None:
    """A keeper that was restarted is empty, unpinned, and has another boot id."""
    keeper = KeeperProcess(tmp_path, provider)
    seen = []
    for _ in range(2):
        keeper.start()
        with connect(keeper.port, certify(ca, uris=[NEXUS]), ca, server_name=keeper.server_name) as channel:
            seen.append(fetch_status(channel))
            assert put_shard(channel, make_put(ask_statement(channel))).code is grpc.StatusCode.OK
        assert keeper.stop() == 0
    assert [(status.cluster_id, status.genesis, len(status.sets)) for status in seen] == 2 * [(b"", b"", 0)]
    assert seen[0].boot_id != seen[1].boot_id


def test_no_file_is_written(provider: IdentityProvider, ca: Authority, tmp_path: Path) -> None:
    """A keeper that may not write a single byte to a file works, and leaves none behind."""
    keeper = KeeperProcess(tmp_path, provider)
    keeper.spawn({"PYTHONDONTWRITEBYTECODE": "1"})
    try:
        resource.prlimit(keeper.pid, resource.RLIMIT_FSIZE, (0, 0))
        keeper.wait_serving()
        with connect(keeper.port, certify(ca, uris=[NEXUS]), ca, server_name=keeper.server_name) as channel:
            assert put_shard(channel, make_put(ask_statement(channel))).code is grpc.StatusCode.OK
            held = fetch_status(channel).sets
            assert len(held) == 1
            if os.access(f"/proc/{keeper.pid}/fd", os.R_OK):  # its owner may not: it is not dumpable
                opened = [str(entry.readlink()) for entry in Path(f"/proc/{keeper.pid}/fd").iterdir()]
                named = [name for name in opened if name.startswith("/") and not name.startswith("/dev/")]
                assert not named, "opened files"
        assert keeper.stop() == 0
        assert list(keeper.work.iterdir()) == []
        assert sorted(tmp_path.iterdir()) == [keeper.config, keeper.work]
    finally:
        keeper.close()


def test_no_shard_and_no_key_in_the_log(keeper: KeeperProcess, nexus: grpc.Channel) -> None:
    """The log tells of puts and fetches in lines of JSON, and holds neither shard nor sealed shard."""
    request = make_put(ask_statement(nexus))
    assert put_shard(nexus, request).code is grpc.StatusCode.OK
    fetch = pb.FetchShardRequest(cluster_id=CLUSTER_ID, set_id=request.label.set_id, public_key=b"\x09" + bytes(31))
    assert call(nexus, name_rpc("FetchShard"), fetch.SerializeToString()).code is grpc.StatusCode.OK
    keeper.stop()
    text = "".join(keeper.log)
    assert {json.loads(line)["event"] for line in keeper.log} >= {"shard held", "shard given", "keeper ended"}
    assert request.sealed_shard.hex() not in text
    assert request.commitment.hex() not in text


# How it starts and ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_with_0(provider: IdentityProvider, ca: Authority, tmp_path: Path, number: int) -> None:
    """A signal ends a keeper at once although a client watches its health: it does not sit out a ten-minute grace."""
    keeper = KeeperProcess(tmp_path, provider, extra="[shutdown]\ndrain_s = 600.0\n").start()
    with connect(keeper.port, certify(ca, uris=[NEXUS]), ca, server_name=keeper.server_name) as channel:
        watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
        stream = watch(b"", timeout=at_most(WAIT_S))
        assert next(stream) == b"\x08\x01"
        assert keeper.stop(number) == 0
        assert set(stream) == {b"\x08\x02"}
    assert keeper.find_log("told to end")
    assert keeper.find_log("keeper ended")


def test_it_waits_for_its_identity(provider: IdentityProvider, ca: Authority, tmp_path: Path) -> None:
    """A keeper without a Workload API tries again and opens no port; it serves once there is one."""
    with IdentityProvider(tmp_path / "s", ca, lifetime=timedelta(hours=1)) as late:
        keeper = KeeperProcess(tmp_path, provider, socket=tmp_path / "s" / "k1.sock")
        keeper.spawn()
        try:
            wait_until(lambda: keeper.find_log("no svid yet, trying again"), what="complaint")
            assert not keeper.find_log("keeper serves")
            late.add(keeper.spiffe_path, keeper.server_name, name="k1.sock")
            keeper.wait_serving()
            assert call_as(keeper, ca, certify(ca, uris=[NEXUS])).code is grpc.StatusCode.OK
        finally:
            keeper.close()


def test_signal_ends_the_wait_for_an_identity(provider: IdentityProvider, tmp_path: Path) -> None:
    """A keeper that waits for its identity ends with 0 when it is told to."""
    keeper = KeeperProcess(tmp_path, provider, socket=tmp_path / "nothing.sock")
    keeper.spawn()
    try:
        wait_until(lambda: keeper.find_log("no svid yet, trying again"), what="complaint")
        assert keeper.stop() == 0
    finally:
        keeper.close()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keeper", *arguments],
        capture_output=True,
        text=True,
        timeout=at_most(WAIT_S),
        check=False,
    )


def test_wrong_configuration_exits_with_2(shared_keeper: KeeperProcess, tmp_path: Path) -> None:
    """A wrong option is named on stderr; --check-config checks and does nothing else."""
    assert run("--config", str(shared_keeper.config), "--check-config").returncode == 0
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(shared_keeper.config.read_text().replace("[listen]", "[listen]\nworker = 3"))
    for arguments in (["--config", str(wrong)], ["--config", str(wrong), "--check-config"]):
        ended = run(*arguments)
        assert ended.returncode == 2
        assert ended.stderr.startswith("keeper: error: listen.worker: no such option")
    assert run("--config", str(tmp_path / "missing.toml")).returncode == 2
    assert run().returncode == 2


def test_taken_port_exits_with_2(shared_keeper: KeeperProcess, provider: IdentityProvider, tmp_path: Path) -> None:
    """A second keeper does not share the first one's port in silence."""
    second = KeeperProcess(tmp_path, provider, port=shared_keeper.port)
    second.spawn()
    assert second.wait() == 2
    assert "keeper: error: listen.address: cannot bind" in "".join(second.log)


def test_identity_of_another_trust_domain_exits_with_2(
    shared_keeper: KeeperProcess, provider: IdentityProvider, tmp_path: Path
) -> None:
    """A keeper whose SVID is not of the configured trust domain does not start."""
    text = shared_keeper.config.read_text().replace("example.test", "other.test")
    config = tmp_path / "other.toml"
    config.write_text(text)
    ended = run("--config", str(config))
    assert (ended.returncode, "identity.trust_domain: got 'other.test'" in ended.stderr) == (2, True), ended


def test_health_command(provider: IdentityProvider, tmp_path: Path) -> None:
    """`keeper health` exits with 0 while the keeper serves, and with 1 when there is none."""
    keeper = KeeperProcess(tmp_path, provider).start()
    text = keeper.config.read_text()
    keeper.config.write_text(text.replace('address = "127.0.0.1:0"', f'address = "0.0.0.0:{keeper.port}"'))
    healthy = run("health", "--config", str(keeper.config))
    assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n")
    assert keeper.stop() == 0
    ended = run("health", "--config", str(keeper.config))
    assert ended.returncode == 1
    assert "keeper: error: no health" in ended.stderr


def test_health_tells_whether_a_shard_is_held(keeper: KeeperProcess, nexus: grpc.Channel) -> None:
    """`keeper health --holds-shard` exits with 1 while a keeper that serves holds none, and with 0 once it does."""
    text = keeper.config.read_text()
    keeper.config.write_text(text.replace('address = "127.0.0.1:0"', f'address = "127.0.0.1:{keeper.port}"'))
    command = ("health", "--holds-shard", "--config", str(keeper.config))
    empty = run(*command)
    assert (empty.returncode, empty.stdout) == (1, "NOT_SERVING\n")
    assert run("health", "--config", str(keeper.config)).returncode == 0
    assert put_shard(nexus, make_put(ask_statement(nexus))).code is grpc.StatusCode.OK
    full = run(*command)
    assert (full.returncode, full.stdout) == (0, "SERVING\n")


def test_holds_shard_is_an_option_of_health_alone() -> None:
    """A keeper that runs ignores nothing that it was given."""
    ended = run("--holds-shard")
    assert (ended.returncode, "--holds-shard belongs to 'keeper health'" in ended.stderr) == (2, True)


def test_configuration_has_a_default_place() -> None:
    """Without --config it is where the image and the systemd units have it."""
    ended = run("health")
    assert ended.returncode == 2
    assert "keeper: error: configuration file /etc/shardhold/keeper.toml cannot be read" in ended.stderr


def test_probes_and_metrics(keeper: KeeperProcess, nexus: grpc.Channel) -> None:
    """Probes answer, and metrics tell sets, level and calls."""
    assert put_shard(nexus, make_put(ask_statement(nexus))).code is grpc.StatusCode.OK
    pages = {}
    for path in ("livez", "readyz", "metrics"):
        with urllib.request.urlopen(f"http://127.0.0.1:{keeper.http_port}/{path}", timeout=at_most(10)) as answer:
            assert answer.status == 200
            pages[path] = answer.read().decode()
    assert "shardhold_keeper_sets 1.0" in pages["metrics"]
    assert 'shardhold_calls_total{code="OK",rpc="PutShard"} 1.0' in pages["metrics"]
    level = fetch_status(nexus).memory_protection
    assert f"shardhold_memory_protection_level {level}.0" in pages["metrics"]


def test_svid_rotation_is_followed(
    keeper: KeeperProcess, nexus: grpc.Channel, provider: IdentityProvider, ca: Authority
) -> None:
    """After a rotation the statement is signed by the new SVID, and the open connection goes on."""

    def fetch_leaf() -> bytes:
        request = pb.GetSealingKeyRequest(cluster_id=CLUSTER_ID, purpose=PUT_SHARD, nonce=bytes(32))
        outcome = call(nexus, name_rpc("GetSealingKey"), request.SerializeToString())
        return pb.GetSealingKeyResponse.FromString(outcome.answer).certificates[0]

    before = fetch_leaf()
    provider.rotate()
    pause = 1.0  # a statement lives 60 s, and 64 may be open
    wait_until(lambda: fetch_leaf() != before, what="rotation", pause=pause)
    assert call_as(keeper, ca, certify(ca, uris=[NEXUS])).code is grpc.StatusCode.OK
