"""`pilot backup`: what it asks of a nexus, and what it finds in a file without one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from common.errors import BackupError
from common.forms.bech32 import encode_identity, encode_recipient
from common.keys import age
from common.server.edge import Call, GrpcServer, Method
from shardhold.v1 import backup_pb2 as pb
from tests.kit.authority import Authority
from tests.kit.backups import CHAIN, ROWS, make_stream
from tests.kit.chains import make_chain
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.transcript import run_pilot

GENESIS = CHAIN.genesis.fingerprint.hex()
SECRET = bytes(range(32))
RECIPIENT = encode_recipient(X25519PrivateKey.from_private_bytes(SECRET).public_key().public_bytes_raw())
DAMAGED = "shardhold-damaged.age"


class BackedUpNexus:
    """Has two backups, one of which is damaged."""

    def __init__(self, ca: Authority) -> None:
        self.backup = pb.Backup(name="shardhold-whole.age", size=1234, timeline=1, revision=300, generation=3)
        self.backup.created_at.FromSeconds(1_700_000_000)
        self.schedule = pb.BackupSchedule(interval_s=86_400, failures=2, failure="its disk is full")
        self.schedule.next_at.FromSeconds(1_700_086_400)
        name = "/shardhold.v1.BackupService/"
        methods = [
            Method(
                name + "CreateBackup",
                pb.CreateBackupRequest,
                pb.CreateBackupResponse,
                lambda call, request: pb.CreateBackupResponse(backup=self.backup),
            ),
            Method(
                name + "ListBackups",
                pb.ListBackupsRequest,
                pb.ListBackupsResponse,
                lambda call, request: pb.ListBackupsResponse(
                    backups=[self.backup, pb.Backup(name=DAMAGED, held=True)], schedule=self.schedule
                ),
            ),
            Method(
                name + "PruneBackups",
                pb.PruneBackupsRequest,
                pb.PruneBackupsResponse,
                lambda call, request: pb.PruneBackupsResponse(removed=[self.backup] if request.dry_run else []),
            ),
            Method(name + "VerifyBackup", pb.VerifyBackupRequest, pb.VerifyBackupResponse, self._verify),
        ]
        identity = FixedIdentity(ca.issue("/shardhold/nexus/n1", dns="nexus.shardhold"))
        self._server = GrpcServer(methods, address="127.0.0.1:0", identity=identity, trust_domain=ca.trust_domain)
        self.address = f"127.0.0.1:{self._server.start()}"

    def stop(self) -> None:
        self._server.stop(0)

    def _verify(self, call: Call, request: pb.VerifyBackupRequest) -> pb.VerifyBackupResponse:
        if request.name == DAMAGED:
            raise BackupError(f"{DAMAGED}: it is damaged or cut off")
        self.backup.verified_at.FromSeconds(1_700_000_060)
        return pb.VerifyBackupResponse(backup=self.backup, rows={"secrets": 2})


@pytest.fixture
def reach(ca: Authority, svid_dir: Path) -> Iterator[list[str]]:
    """Return the options that lead to a nexus with backups."""
    nexus = BackedUpNexus(ca)
    yield ["--address", nexus.address, "--svid-dir", str(svid_dir)]
    nexus.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup as a nexus makes it, and the identity of its recipient."""
    folder = tmp_path_factory.mktemp("backup")
    with (folder / "b.age").open("wb") as file:
        age.encrypt([make_stream()], file, [RECIPIENT])
    (folder / "identity.txt").write_text(f"# created by hand\n{encode_identity(SECRET)}\n")
    return folder


def test_a_backup_is_made_listed_and_verified(reach: list[str]) -> None:
    """Without any argument: in the directory of the nexus, and the newest one."""
    made = run_pilot("backup", "create", *reach, "-o", "json")
    assert made.code == 0, made
    document = json.loads(made.out)
    assert (document["name"], document["revision"]) == ("shardhold-whole.age", 300)
    assert document["created_at"] == "2023-11-14T22:13:20Z"
    assert document["verified_at"] is None
    verified = json.loads(run_pilot("backup", "verify", *reach, "-o", "json").out)
    assert (verified["verified_at"], verified["rows"]) == ("2023-11-14T22:14:20Z", {"secrets": 2})
    listed = json.loads(run_pilot("backup", "list", *reach, "-o", "json").out)
    assert [backup["name"] for backup in listed["backups"]] == ["shardhold-whole.age", DAMAGED]
    table = run_pilot("backup", "list", *reach).out.splitlines()
    assert table[0].split() == ["name", "created", "size", "generation", "revision", "verified"]


def test_the_schedule_is_shown(reach: list[str]) -> None:
    """How many there are, which is verified, when the next is due, and why the last run failed."""
    told = run_pilot("backup", "status", *reach, "-o", "json")
    assert json.loads(told.out) == {
        "backups": 2,
        "held": 1,
        "newest": "shardhold-whole.age",
        "verified": None,
        "every_hours": 24,
        "next_at": "2023-11-15T22:13:20Z",
        "failures": 2,
        "failure": "its disk is full",
    }
    shown = run_pilot("backup", "status", *reach).out
    assert "every hours  24" in shown
    assert "verified     -" in shown


def test_prune_shows_what_goes(reach: list[str]) -> None:
    """Without removing it, if asked so."""
    told = run_pilot("backup", "prune", "--dry-run", *reach, "-o", "json")
    document = json.loads(told.out)
    assert document["dry_run"] is True
    assert [one["name"] for one in document["removed"]] == ["shardhold-whole.age"]
    assert "would be removed" in run_pilot("backup", "prune", "--dry-run", *reach).out
    assert json.loads(run_pilot("backup", "prune", *reach, "-o", "json").out) == {"dry_run": False, "removed": []}


def test_a_damaged_backup_fails(reach: list[str]) -> None:
    """With the words of the nexus, and exit code 1."""
    told = run_pilot("backup", "verify", DAMAGED, *reach)
    assert (told.code, told.out) == (1, "")
    assert told.err.splitlines()[0] == f"pilot: error: {DAMAGED}: it is damaged or cut off"


def test_a_file_is_verified_without_a_nexus(folder: Path) -> None:
    """With the identity of a recipient; the genesis of the share cards says whose it is."""
    command: list[str | Path] = ["backup", "verify", folder / "b.age", "--identity", folder / "identity.txt"]
    told = run_pilot(*command, "--genesis", GENESIS, "-o", "json")
    assert (told.code, told.err) == (0, "")
    document = json.loads(told.out)
    assert (document["genesis"], document["generation"], document["revision"]) == (GENESIS, 3, 300)
    assert document["rows"] == {name: len(rows) for name, rows in ROWS.items()}
    told = run_pilot(*command)
    assert told.code == 0
    assert "2 secrets, 3 versions" in told.out
    assert "is the genesis the one on the share cards?" in told.err


@pytest.mark.parametrize(
    ("backup", "identity", "more", "code", "error"),
    [
        pytest.param("b.age", "identity.txt", ["--genesis", "00" * 32], 1, "another cluster", id="another cluster"),
        pytest.param("cut.age", "identity.txt", [], 1, "cut.age: it is damaged or cut off", id="cut off"),
        pytest.param("identity.txt", "identity.txt", [], 1, "it is no file of age", id="no backup"),
        pytest.param("forged.age", "identity.txt", [], 1, "no nexus of this cluster made it", id="forged"),
        pytest.param("b.age", "other.txt", [], 1, "not for this identity", id="another identity"),
        pytest.param("b.age", "b.age", [], 2, "not protected by a passphrase in the way", id="encrypted identity"),
        pytest.param("b.age", "forged.txt", [], 2, "holds no identity of age", id="no identity"),
        pytest.param("b.age", "none.txt", [], 1, "none.txt: No such file", id="no identity file"),
        pytest.param("none.age", "identity.txt", [], 1, "none.age: No such file", id="no file"),
    ],
)
def test_what_does_not_verify(folder: Path, backup: str, identity: str, more: list[str], code: int, error: str) -> None:
    """Each says what is wrong, and shows nothing of what it read."""
    (folder / "cut.age").write_bytes((folder / "b.age").read_bytes()[:-1])
    (folder / "other.txt").write_text(encode_identity(bytes(32)))
    (folder / "forged.txt").write_text(f"{encode_identity(bytes(32))}\nsomething else")
    with (folder / "forged.age").open("wb") as file:
        age.encrypt([make_stream(sign=make_chain(1).key.sign)], file, [RECIPIENT])
    told = run_pilot("backup", "verify", folder / backup, "--identity", folder / identity, *more)
    assert (told.code, told.out) == (code, ""), told
    assert error in told.err
    assert "AGE-SECRET-KEY" not in told.err


@pytest.mark.parametrize("command", [["--identity", "identity.txt"], ["b.age", "--genesis", GENESIS]])
def test_what_does_not_go_together_is_named(command: list[str]) -> None:
    """A file and its identity; a genesis for a nexus, which knows its own."""
    told = run_pilot("backup", "verify", *command)
    assert told.code == 2
    assert told.err.startswith("pilot: error: --")
