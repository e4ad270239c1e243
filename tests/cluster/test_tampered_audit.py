"""The audit of a real nexus under somebody who writes its database or its files, and has no key."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest

import shardhold
from common.forms.audit.entry import Entry
from common.forms.audit.verify import verify
from pilot.dev.directory import Plan
from tests.kit.cluster import Cluster, running
from tests.kit.patience import at_most

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP, PATH = "/audited/app", "audited/secret"
OPERATOR, AUDITOR = "/shardhold/pilot/role/operator/olga", "/shardhold/pilot/role/auditor/aud"
FORGED = Entry(at=1, actor="spiffe://dev.shardhold/evil", action="secret.write", path="audited/forged")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two keepers, and a secret."""
    with running(tmp_path_factory.mktemp("audited") / "dev", Plan(keepers=2, threshold=2)) as cluster:
        cluster.allow(APP, ["audited/**"], ["read", "write"])
        cluster.workload(APP).put(PATH, {"value": b"v"})
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """The same, ready."""
    shared.wait_ready()
    return shared


def list_lines(cluster: Cluster) -> list[Mapping[str, Any]]:
    """List all lines of the audit files."""
    files = sorted(cluster.directory.audit.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def list_exported(cluster: Cluster) -> list[tuple[int, str]]:
    """List revision and path of each exported change."""
    changes = [line for line in list_lines(cluster) if line["kind"] == "change"]
    return [(line["revision"], line["entry"].get("path", "")) for line in changes]


def list_said(cluster: Cluster, action: str) -> list[str]:
    """List what the nexus says of its audit, in the audit."""
    entries = [line["entry"] for line in list_lines(cluster) if line["kind"] == "entry"]
    return [entry["detail"] for entry in entries if entry["action"] == action]


def forge(cluster: Cluster, revision: int) -> None:
    """Insert an entry into the outbox of the running nexus, with a statement that every version's table takes."""
    sql = "INSERT INTO audit_outbox (revision, position, entry) VALUES (?, 0, ?)"
    file = cluster.directory.data / "nexus.db"
    with closing(sqlite3.connect(file, timeout=at_most(10), isolation_level=None)) as database:
        database.execute(sql, (revision, FORGED.encode()))


def put(cluster: Cluster) -> int:
    """Put a version; return the revision of the store then."""
    cluster.workload(APP).put(PATH, {"value": b"w"})
    return int(cluster.status()["revision"])


@pytest.mark.parametrize(
    "distance", [pytest.param(1, id="the place of the next change"), pytest.param(1 << 61, id="beyond all changes")]
)
def test_an_inserted_row_forges_no_entry_and_silences_none(cluster: Cluster, distance: int) -> None:
    """The entries of later changes reach the files, and that of the row does not; it is named, and counted."""
    forge(cluster, int(cluster.status()["revision"]) + distance)
    true = [(put(cluster), PATH), (put(cluster), PATH)]
    cluster.wait("both are exported", lambda: set(true) <= set(list_exported(cluster)))
    assert FORGED.path not in {path for _, path in list_exported(cluster)}
    if distance > 1:  # the other may give way to the true row before it is looked at
        digest = hashlib.sha256(FORGED.encode()).hexdigest()
        cluster.wait("it is named", lambda: digest in str(list_said(cluster, "audit.refused-row")))
        assert "shardhold_audit_refused_rows_total 0.0" not in cluster.fetch("nexus", "/metrics")


def cut_off(cluster: Cluster) -> None:
    """Drop the last 100 lines."""
    path = max(cluster.directory.audit.glob("*.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-100]))


def edit_newest(cluster: Cluster) -> None:
    """Change the newest line, which a crash might have torn."""
    path = max(cluster.directory.audit.glob("*.jsonl"))
    *before, newest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(before) + newest.replace(b'"at":1', b'"at":2'))


def remove_all(cluster: Cluster) -> None:
    """Leave an empty directory."""
    shutil.rmtree(cluster.directory.audit)
    cluster.directory.audit.mkdir(mode=0o700)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(cut_off, "the audit files do not reach line", id="the last 100 lines dropped"),
        pytest.param(edit_newest, "is another one than the store remembers", id="the newest line edited"),
        pytest.param(remove_all, "the audit files do not reach line", id="the directory emptied"),
    ],
)
def test_audit_files_changed_while_the_nexus_is_down(
    cluster: Cluster, damage: Callable[[Cluster], None], says: str
) -> None:
    """The nexus is blocked and says why, the check finds it, and an operator's word begins a new chain that says so."""
    for _ in range(110):
        cluster.workload(APP).get(PATH)
    cluster.stop("nexus")
    damage(cluster)
    cluster.run("nexus")
    status = cluster.wait_status("it is blocked by its audit", lambda status: says in str(status["blocked_by"]))
    assert status["state"] == "recovering"
    assert says in cluster.fetch("nexus", "/readyz")
    with pytest.raises(shardhold.UnavailableError):
        cluster.workload(APP).put(PATH, {"value": b"w"})
    assert "is missing" in cluster.pilot("audit", "verify", exit_code=1).stderr
    cluster.pilot("audit", "accept-new-chain", "--reason", "a drill", path=OPERATOR)
    cluster.wait_ready()
    (accepted,) = [said for said in list_said(cluster, "audit.new-chain") if says in said][-1:]
    assert accepted.startswith("a drill: ")
    put(cluster)
    told = cluster.pilot("audit", "verify")
    assert "accepted a new chain" in told.stderr
    cluster.stop("nexus")
    cluster.run("nexus")
    cluster.wait_ready()


def forget_head(cluster: Cluster, before: tuple[object, ...]) -> None:
    """Remove what the store says of the audit files."""
    change_store(cluster, "DELETE FROM audit_head", ())


def put_head_back(cluster: Cluster, before: tuple[object, ...]) -> None:
    """Put back what the store said before, which is authentic."""
    change_store(cluster, "REPLACE INTO audit_head VALUES (?, ?, ?, ?, ?, ?)", before)


def change_store(cluster: Cluster, sql: str, parameters: tuple[object, ...]) -> None:
    with closing(sqlite3.connect(cluster.directory.data / "nexus.db", isolation_level=None)) as database:
        database.execute(sql, parameters)


def load_head(cluster: Cluster) -> tuple[object, ...]:
    """Load what the store says of the audit files."""
    file = f"file:{cluster.directory.data / 'nexus.db'}?mode=ro"
    with closing(sqlite3.connect(file, uri=True, timeout=at_most(10))) as database:
        head: tuple[object, ...] = database.execute(
            "SELECT nexus, timeline, seq, hash, revision, mac FROM audit_head"
        ).fetchone()
        return head


def cut_after(cluster: Cluster, seq: int) -> None:
    """Leave nothing of the files after line *seq*."""
    for path in sorted(cluster.directory.audit.glob("*.jsonl"), reverse=True):
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if int(json.loads(line)["seq"]) <= seq]
        if kept:
            path.write_bytes(b"".join(kept))
            return
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(forget_head, "the store does not say any more how far", id="what the store says is removed"),
        pytest.param(put_head_back, "keepers remember", id="what the store said before is put back"),
    ],
)
def test_files_that_are_cut_to_fit_an_edited_store(
    cluster: Cluster, damage: Callable[[Cluster, tuple[object, ...]], None], says: str
) -> None:
    """Whoever writes files and database, and has no key, cannot make the newest lines unsaid."""
    revision = put(cluster)
    cluster.wait("the head has the change", lambda: int(str(load_head(cluster)[4])) >= revision)
    before = load_head(cluster)
    cluster.workload(APP).get(PATH)
    (end,) = [line["seq"] for line in list_lines(cluster) if line.get("entry", {}).get("action") == "secret.read"][-1:]
    cluster.wait("a keeper remembers the line", lambda: find_remembered(cluster) >= end)
    cluster.kill("nexus")
    damage(cluster, before)
    cut_after(cluster, int(str(before[2])))
    cluster.run("nexus")
    cluster.wait_status("it is blocked by its audit", lambda status: says in str(status["blocked_by"]))
    cluster.pilot("audit", "accept-new-chain", "--reason", "a drill", path=OPERATOR)
    cluster.wait_ready()
    cluster.wait_filled()
    put(cluster)
    cluster.rerun("nexus")
    cluster.wait_ready()


def find_remembered(cluster: Cluster) -> int:
    """Find the last line of the audit that a keeper remembers."""
    mark = cluster.fetch_mark("keeper-1")
    return mark.audit.seq if mark is not None else 0


def test_a_kill_blocks_nothing(cluster: Cluster) -> None:
    """What a crash tears was not yet remembered by the store."""
    put(cluster)
    cluster.workload(APP).get(PATH)
    cluster.kill("nexus")
    with max(cluster.directory.audit.glob("*.jsonl")).open("ab") as newest:
        newest.write(b'{"kind":"entry","seq":')
    cluster.run("nexus")
    cluster.wait_ready()
    assert not verify(cluster.directory.audit).faults


def test_an_audit_directory_that_goes_away_while_the_nexus_runs(cluster: Cluster) -> None:
    """Every call is refused, by name, until it is back, or until an operator accepts that a new chain begins."""
    audit, aside = cluster.directory.audit, cluster.directory.root / "aside"
    client = cluster.workload(APP)
    obstacle = f"directory {audit} was removed or replaced"
    audit.rename(aside)
    cluster.wait("readiness goes down", lambda: obstacle in cluster.fetch("nexus", "/readyz"))
    for call in (lambda: client.get(PATH), lambda: client.put(PATH, {"value": b"x"})):
        with pytest.raises(shardhold.UnavailableError):
            call()
    assert obstacle in str(cluster.status()["blocked_by"])
    aside.rename(audit)
    cluster.wait_ready()
    assert client.get(PATH).fields == {"value": b"w"}, "what was refused was not made"
    audit.rename(aside)
    audit.mkdir(mode=0o700)
    cluster.wait("readiness goes down", lambda: obstacle in cluster.fetch("nexus", "/readyz"))
    cluster.pilot("audit", "accept-new-chain", "--reason", "the disk was replaced", path=OPERATOR)
    cluster.wait_ready()
    revision = put(cluster)
    cluster.wait("it is exported", lambda: (revision, PATH) in list_exported(cluster))
    cluster.kill("nexus")
    cluster.run("nexus")
    cluster.wait_ready()
    assert not verify(audit).faults


def test_the_tail_and_the_check_of_a_whole_audit(cluster: Cluster) -> None:
    """An auditor reads both; the check takes the genesis of the card, with and without the nexus, and no other."""
    genesis = str(cluster.status()["genesis"])
    told = cluster.pilot("audit", "tail", "-n", "5", path=AUDITOR)
    assert "status.get" in told.stdout
    cluster.pilot("audit", "tail", path=APP, exit_code=4)
    cluster.pilot("audit", "verify", "--genesis", genesis, path=AUDITOR)
    cluster.stop("nexus")
    folder = str(cluster.directory.audit)
    document = json.loads(cluster.pilot("audit", "verify", folder, "--genesis", genesis, "-o", "json").stdout)
    last = document["chains"][-1]
    assert last["signed_through"] == last["lines"], "the last line of a stopped nexus is a signed checkpoint"
    cluster.pilot("audit", "verify", folder, "--genesis", "00" * 32, exit_code=1)
    cluster.run("nexus")
    cluster.wait_ready()
    cluster.pilot("audit", "verify", "--genesis", "00" * 32, path=AUDITOR, exit_code=1)


def test_a_seal_leaves_a_signed_checkpoint_and_its_own_entry(cluster: Cluster) -> None:
    """Both come after the wipe: the one was signed before it, the other is known by its digest."""
    genesis = bytes.fromhex(str(cluster.status()["genesis"]))
    cluster.workload(APP).get(PATH)
    cluster.superuser.seal("a drill")
    cluster.wait("its entry is in the files", lambda: is_seal_exported(cluster))
    report = verify(cluster.directory.audit, genesis=genesis)
    assert report.faults == []
    lines = list_lines(cluster)
    read = max(line["seq"] for line in lines if line.get("entry", {}).get("action") == "secret.read")
    assert report.chains[-1].signed_seq > read
    cluster.rerun("nexus")
    cluster.unseal()
    cluster.wait_ready()
    cluster.wait_filled()
    put(cluster)
    assert is_seal_exported(cluster)
    assert list_said(cluster, "audit.missing-row") == []


def is_seal_exported(cluster: Cluster) -> bool:
    """Whether the seal's entry is in the files, exactly once."""
    changes = [line for line in list_lines(cluster) if line["kind"] == "change"]
    return [line["entry"]["action"] for line in changes].count("seal") == 1
