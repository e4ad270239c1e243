"""`pilot audit`: what it shows of a nexus's audit, and what it finds wrong with it."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import WrongStateError
from common.forms.audit.entry import Entry
from common.forms.genesis import Genesis
from common.server.edge import Call, GrpcServer, Method
from nexus.access.audit.log import AuditLog
from shardhold.v1 import audit_pb2, cluster_pb2
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.transcript import run_pilot

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
GENESIS = Genesis(bytes(16), 1, bytes(32), KEY.public_key().public_bytes_raw(), bytes(1216), bytes(32))


class Signer:
    """Signs for the genesis."""

    public_key = GENESIS.audit_public_key

    def sign(self, message: bytes) -> bytes:
        return KEY.sign(message)


class AuditedNexus:
    """Hands out the lines of a real audit."""

    def __init__(self, ca: Authority, log: AuditLog) -> None:
        self.head: audit_pb2.AuditHead | None = None
        self.reasons: list[str] = []
        self._log = log
        name = "/shardhold.v1.AuditService/"
        methods = [
            Method(
                "/shardhold.v1.ClusterService/GetStatus",
                cluster_pb2.GetStatusRequest,
                cluster_pb2.GetStatusResponse,
                lambda call, request: cluster_pb2.GetStatusResponse(genesis=GENESIS.fingerprint),
            ),
            Method(name + "TailAudit", audit_pb2.TailAuditRequest, audit_pb2.TailAuditResponse, self._tail),
            Method(
                name + "AcceptNewChain", audit_pb2.AcceptNewChainRequest, audit_pb2.AcceptNewChainResponse, self._accept
            ),
        ]
        identity = FixedIdentity(ca.issue("/shardhold/nexus/n1", dns="nexus.shardhold"))
        self._server = GrpcServer(methods, address="127.0.0.1:0", identity=identity, trust_domain=ca.trust_domain)
        self.address = f"127.0.0.1:{self._server.start()}"

    def stop(self) -> None:
        self._server.stop(0)

    def _tail(self, call: Call, request: audit_pb2.TailAuditRequest) -> audit_pb2.TailAuditResponse:
        after = request.after_seq if request.HasField("after_seq") else None
        timeline = request.timeline if request.HasField("timeline") else 1
        lines = self._log.read_lines(timeline, after=after, limit=min(request.limit, 3))  # pages of three
        return audit_pb2.TailAuditResponse(nexus="n1", timeline=1, lines=lines, timelines=[1], head=self.head)

    def _accept(self, call: Call, request: audit_pb2.AcceptNewChainRequest) -> audit_pb2.AcceptNewChainResponse:
        if self.reasons:
            raise WrongStateError("there is nothing to accept")
        self.reasons.append(request.reason)
        return audit_pb2.AcceptNewChainResponse(timeline=1, seq=12)


def make_entry(path: str) -> Entry:
    return Entry(at=1_700_000_000_000_000, actor="spiffe://example.test/app", action="secret.read", path=path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the audit files."""
    folder = tmp_path / "audit"
    folder.mkdir()
    return folder


@pytest.fixture
def log(folder: Path) -> Iterator[AuditLog]:
    """Ten entries, and a signed checkpoint."""
    with closing(AuditLog.open(folder, nexus="n1", timeline=1)) as log:
        log.set_signer(Signer(), [GENESIS.encode()])
        for number in range(10):
            log.append(make_entry(f"a/{number}"))
        log.end_stretch()
        yield log


@pytest.fixture
def nexus(ca: Authority, log: AuditLog) -> Iterator[AuditedNexus]:
    """A nexus with that audit."""
    nexus = AuditedNexus(ca, log)
    yield nexus
    nexus.stop()


@pytest.fixture
def reach(nexus: AuditedNexus, svid_dir: Path) -> list[str]:
    """Return the options that lead to the nexus."""
    return ["--address", nexus.address, "--svid-dir", str(svid_dir)]


def test_tail_shows_entries(reach: list[str]) -> None:
    """As a table; and as JSON the lines, as they stand in the files."""
    told = run_pilot("audit", "tail", "-n", "3", *reach)
    assert told.code == 0, told
    assert told.out.splitlines()[0].split() == ["at", "actor", "action", "path", "decision", "outcome", "detail"]
    assert [line.split()[:4] for line in told.out.splitlines()[2:]] == [
        ["2023-11-14T22:13:20Z", "spiffe://example.test/app", "secret.read", f"a/{number}"] for number in (8, 9)
    ]
    lines = [json.loads(line) for line in run_pilot("audit", "tail", "-n", "2", "-o", "json", *reach).out.splitlines()]
    assert [line["kind"] for line in lines] == ["entry", "checkpoint"]


def test_verify_of_a_whole_audit(reach: list[str], log: AuditLog) -> None:
    """Page by page, up to the hash of the last line."""
    told = run_pilot("audit", "verify", *reach)
    assert told.code == 0, told
    assert told.out.splitlines()[2].split() == ["n1", "1", "1", "12", "12", log.position.digest.hex()]
    told = run_pilot("audit", "verify", "--genesis", GENESIS.fingerprint.hex(" ", 2), "-o", "json", *reach)
    (chain,) = json.loads(told.out)["chains"]
    assert (chain["lines"], chain["signed_checkpoints"], chain["signed_through"]) == (12, 1, 12)


def test_verify_finds_what_is_missing(nexus: AuditedNexus, reach: list[str]) -> None:
    """Another genesis than the card's, and a line that the store or an earlier check knows."""
    told = run_pilot("audit", "verify", "--genesis", "00" * 32, *reach)
    assert (told.code, "line 12: checkpoint is signed by a key that this genesis does not lead to" in told.err) == (
        1,
        True,
    )
    told = run_pilot("audit", "verify", "--known", f"1:12:{'0' * 64}", *reach)
    assert (told.code, "line 12 of timeline 1" in told.err) == (1, True)
    nexus.head = audit_pb2.AuditHead(timeline=1, seq=99, hash=bytes(32))
    told = run_pilot("audit", "verify", *reach)
    assert (told.code, "the audit is not whole: line 99 of timeline 1" in told.err) == (1, True)


def test_verify_of_files(folder: Path, log: AuditLog) -> None:
    """Without a nexus, and without an identity."""
    genesis = ["--genesis", GENESIS.fingerprint.hex()]
    position = log.position
    told = run_pilot("audit", "verify", folder, *genesis, "--known", f"1:{position.seq}:{position.digest.hex()}")
    assert told.code == 0, told
    (file,) = folder.glob("*.jsonl")
    file.write_bytes(file.read_bytes().replace(b"a/5", b"a/6"))
    told = run_pilot("audit", "verify", folder, *genesis)
    assert (told.code, f"the audit is not whole: {file.name}, line 7: hash does not match" in told.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["."], "DIR needs --genesis", id="a folder without a genesis"),
        pytest.param(["--genesis", "12"], "--genesis: got '12', want 64", id="a short genesis"),
        pytest.param(["--known", "1:2"], "--known: got '', want 64", id="a line without a hash"),
        pytest.param(["--known", "x:2:00"], "--known: got 'x:2:00', want TIMELINE:LINE:HASH", id="no number"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str) -> None:
    """Each is named before anything is read."""
    told = run_pilot("audit", "verify", *arguments)
    assert (told.code, says in told.err) == (2, True), told


def test_a_folder_without_audit_files(tmp_path: Path) -> None:
    """Nothing is not whole."""
    told = run_pilot("audit", "verify", tmp_path, "--genesis", "00" * 32)
    assert (told.code, "there are no audit files" in told.err) == (1, True)
    told = run_pilot("audit", "verify", tmp_path / "none", "--genesis", "00" * 32)
    assert (told.code, "No such file" in told.err) == (1, True)


def test_accept_new_chain(nexus: AuditedNexus, reach: list[str]) -> None:
    """The reason is needed, and goes to the nexus; its refusal is told in its own words."""
    told = run_pilot("audit", "accept-new-chain", *reach)
    assert (told.code, "--reason" in told.err) == (2, True)
    told = run_pilot("audit", "accept-new-chain", "--reason", "a drill", *reach)
    assert told.out.splitlines() == ["accepted   a drill", "new chain  timeline 1, line 12"]
    assert nexus.reasons == ["a drill"]
    told = run_pilot("audit", "accept-new-chain", "--reason", "a drill", *reach)
    assert (told.code, "there is nothing to accept" in told.err) == (1, True)
