"""The SQLite store: its contract, what it refuses to open, and what it does when it is killed or the disk fails."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from common.errors import CorruptRowError, OutcomeUnknownError, StoreUnavailableError
from nexus.store.protocol import Meta, Phase, Store, Writer
from nexus.store.sqlite.connection import APPLICATION_ID, connect_reader, connect_writer
from nexus.store.sqlite.migrations import MIGRATIONS, NEWEST
from nexus.store.sqlite.store import SqliteStore
from tests.kit.seed import make_random
from tests.nexus.store.audit_contract import AuditContract
from tests.nexus.store.contract import CALLER, StoreContract, load_audit, load_meta, make_row, put, request
from tests.nexus.store.keyring_contract import KeyringContract
from tests.nexus.store.position_contract import PositionContract
from tests.nexus.store.request_contract import RequestContract
from tests.nexus.store.versions_contract import VersionsContract

ROOT = Path(__file__).parents[4]
WRITING = [sys.executable, "-m", "tests.nexus.store.sqlite.writing"]


class TestSqliteStore(
    StoreContract, AuditContract, PositionContract, RequestContract, KeyringContract, VersionsContract
):
    """SQLite keeps the contract of a store."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """An empty store in a file of its own."""
        store = SqliteStore.open(tmp_path / "nexus.db")
        yield store
        store.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the store's file is to be."""
    return tmp_path / "nexus.db"


def make_store(file: Path, *, versions: int = 1) -> None:
    """Make a store with some versions of the secret a, and close it."""
    with closing(SqliteStore.open(file)) as store:
        for version in range(1, versions + 1):
            put(store, make_row("a", version))


def test_temporary_data_stays_in_memory(file: Path) -> None:
    """A large sort or statement needs no folder for temporary files, and leaves nothing outside the store's own."""
    make_store(file)
    for connect in (connect_reader, connect_writer):
        with closing(connect(file)) as connection:
            assert connection.execute("PRAGMA temp_store").fetchone() == (2,)


def test_what_is_written_is_there_after_a_restart(file: Path) -> None:
    """A store that is opened again has everything, and its files are the owner's alone whatever the umask."""
    umask = os.umask(0)
    try:
        with closing(SqliteStore.open(file)) as store:
            put(store, make_row("a"), request_id=request(1))
            modes = {path.name: path.stat().st_mode & 0o777 for path in file.parent.iterdir()}
    finally:
        os.umask(umask)
    assert modes == dict.fromkeys(["nexus.db", "nexus.db-wal", "nexus.db-shm", "nexus.db.lock"], 0o600)
    with closing(SqliteStore.open(file)) as store, store.read() as reader:
        assert reader.load_version("a", 0) == make_row("a")
        assert reader.find_request(CALLER, request(1)) is not None
        assert reader.load_meta().revision == 1


def test_a_restored_file_is_taken_away_from_others(file: Path) -> None:
    """A store whose copy came with another mode is the owner's alone after it was opened."""
    make_store(file)
    file.chmod(0o644)
    with closing(SqliteStore.open(file)):
        assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("alias", ["nexus.db", "link.db"])
def test_one_nexus_holds_the_store(file: Path, alias: str) -> None:
    """A second nexus is refused, and told which lock, also when it comes by another name."""
    (file.parent / "link.db").symlink_to(file)
    with closing(SqliteStore.open(file)), pytest.raises(StoreUnavailableError, match=r"nexus\.db\.lock is held"):
        SqliteStore.open(file.parent / alias)
    SqliteStore.open(file).close()


def test_a_missing_directory_is_named(file: Path) -> None:
    """The store makes its file, not the folder of it."""
    with pytest.raises(StoreUnavailableError, match="nowhere does not exist"):
        SqliteStore.open(file.parent / "nowhere" / "nexus.db")


def make_foreign(file: Path) -> None:
    """Make another program's database, with something in its WAL."""
    with closing(sqlite3.connect(file)) as foreign:
        foreign.execute("PRAGMA journal_mode = WAL")
        foreign.execute("CREATE TABLE meta (x)")
        foreign.execute("INSERT INTO meta VALUES (1)")
        foreign.commit()
        for name in ("nexus.db", "nexus.db-wal"):
            shutil.copy(file.with_name(name), file.with_name(f"kept-{name}"))
    for name in ("nexus.db", "nexus.db-wal"):
        file.with_name(f"kept-{name}").rename(file.with_name(name))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        pytest.param(make_foreign, "another database", id="another program's database"),
        pytest.param(lambda file: file.write_bytes(b"not a database\n" * 500), "not a SQLite database", id="garbage"),
        pytest.param(lambda file: file.write_bytes(b"x"), "another database", id="one byte"),
        pytest.param(Path.mkdir, "not a file", id="a folder"),
    ],
)
def test_what_is_no_store_is_refused_and_left_alone(file: Path, make: object, match: str) -> None:
    """A file of somebody else is named and not changed by a byte, nor its WAL."""
    assert callable(make)
    make(file)

    def look() -> dict[str, bytes]:
        paths = [path for path in file.parent.iterdir() if path.is_file() and path.suffix != ".lock"]
        return {path.name: path.read_bytes() for path in paths}

    before = look()
    with pytest.raises(CorruptRowError, match=match):
        SqliteStore.open(file)
    assert look() == before


def test_a_newer_schema_is_refused_by_name(file: Path) -> None:
    """An older program does not touch what a newer one wrote."""
    make_store(file)
    with closing(sqlite3.connect(file)) as newer:
        newer.execute(f"PRAGMA user_version = {NEWEST + 1}")
    with pytest.raises(StoreUnavailableError, match=f"schema {NEWEST + 1}, want at most {NEWEST}"):
        SqliteStore.open(file)


def test_a_store_of_the_first_schema_is_brought_up_to_date(file: Path) -> None:
    """What it holds stays; no epoch was ever given out there."""
    with closing(sqlite3.connect(file)) as first:
        first.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in MIGRATIONS[0]:
            first.execute(statement)
        first.execute("UPDATE meta SET phase = 'initialised', cluster_id = x'63', timeline = 2, control_revision = 5")
        first.execute("PRAGMA user_version = 1")
        first.commit()
    store = SqliteStore.open(file)
    assert load_meta(store) == Meta(Phase.INITIALISED, b"c", False, 2, 0, 5, 0, 0, 0, 0, 0)
    store.close()


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        pytest.param("CREATE TRIGGER t AFTER INSERT ON versions BEGIN SELECT 1; END", "t", id="a trigger"),
        pytest.param("CREATE INDEX i ON requests (made_at)", "i", id="an index more"),
        pytest.param("DROP TABLE deletions", "deletions", id="a table less"),
        pytest.param("ALTER TABLE secrets ADD COLUMN x INTEGER", "secrets", id="a column more"),
    ],
)
def test_an_edited_schema_is_refused_by_name(file: Path, statement: str, name: str) -> None:
    """The schema has to be exactly what the migrations make."""
    make_store(file)
    with closing(sqlite3.connect(file)) as edited:
        edited.execute(statement)
        edited.commit()
    with pytest.raises(CorruptRowError, match=f"differs from the program's in {name}$"):
        SqliteStore.open(file)


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param([], id="an empty file"),
        pytest.param([f"PRAGMA application_id = {APPLICATION_ID}"], id="marked as ours"),
        pytest.param([f"PRAGMA application_id = {APPLICATION_ID}", "PRAGMA journal_mode = WAL"], id="in WAL mode"),
    ],
)
def test_a_start_that_was_cut_short_goes_on(file: Path, statements: list[str]) -> None:
    """What a process leaves that dies while it makes a store is made a store by the next."""
    file.touch(0o600)
    with closing(sqlite3.connect(file)) as half:
        for statement in statements:
            half.execute(statement)
    make_store(file)
    with closing(SqliteStore.open(file)) as store:
        assert load_meta(store).revision == 1


def test_a_checkpoint_that_was_killed_is_no_foreign_file(file: Path, tmp_path: Path) -> None:
    """The main file has its new first page and not yet the pages after it; with its WAL it is the store."""
    put_back = tmp_path / "killed" / file.name
    put_back.parent.mkdir()
    make_store(file)
    with closing(SqliteStore.open(file)) as store:
        before = load_meta(store).revision
        for number in range(40):
            put(store, make_row(f"path-{number}"))
        for suffix in ("", "-wal"):
            shutil.copy(f"{file}{suffix}", f"{put_back}{suffix}")
    write_first_page_of_wal(put_back)
    with closing(SqliteStore.open(put_back)) as store:
        assert load_meta(store).revision == before + 40


def write_first_page_of_wal(file: Path) -> None:
    """Do the first step of a checkpoint by hand: the newest page 1 of the WAL goes into the main file."""
    wal = Path(f"{file}-wal").read_bytes()
    page_size = int.from_bytes(wal[8:12], "big")
    frames = [wal[at : at + 24 + page_size] for at in range(32, len(wal), 24 + page_size)]
    newest = next(frame for frame in reversed(frames) if int.from_bytes(frame[:4], "big") == 1)
    with file.open("r+b") as main:
        main.write(newest[24:])


@pytest.mark.final
def test_kill_loses_nothing_acknowledged(file: Path) -> None:
    """After `kill -9` at any moment all that was acknowledged is there, once, and the lock is free."""
    moments = make_random("kills")
    acknowledged: list[tuple[str, int]] = []
    for _ in range(10):
        with subprocess.Popen([*WRITING, "threads", str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as writing:
            assert writing.stdout is not None
            lines = [writing.stdout.readline() for _ in range(moments.randrange(11, 40))]  # it writes
            killer = threading.Timer(moments.uniform(0, 0.02), writing.send_signal, [signal.SIGKILL])
            killer.start()
            lines += writing.stdout.readlines()
            killer.join()
        assert writing.returncode == -signal.SIGKILL
        acknowledged += [(line.split()[0], int(line.split()[1])) for line in lines if line.endswith("\n")]
    assert len(set(acknowledged)) == len(acknowledged) > 100
    with closing(SqliteStore.open(file)) as store, store.read() as reader:
        for path, version in acknowledged:
            assert reader.load_version(path, version) == make_row(path, version)
            name = int(path.removeprefix("team/"))
            made = reader.find_request(CALLER, request(name << 64 | version))
            assert made is not None
            assert made.made.versions == (version,)
        written = sum(len(reader.load_live_versions(f"team/{name}")) for name in range(4))
        assert written == reader.load_meta().revision == len(load_audit(store))


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("fault", "outcomes"),
    [
        # Of the WAL, the first sync is of its header, the second of put 1, the third of put 2, then of the close.
        pytest.param(
            "fdatasync:error=EIO:when=3",
            ["ok 1", "StoreUnavailableError 1", "ok 2", "ok 3"],
            id="sync fails once: its frames are gone after the reopen, and it says so",
        ),
        pytest.param(
            "fdatasync:error=EIO:when=3..4",
            ["ok 1", "ok 2", "ok 3", "ok 4"],
            id="sync fails twice: the reopen finds it committed, and makes it durable",
        ),
        pytest.param(
            "fdatasync:error=EIO:when=3+",
            ["ok 1", *["OutcomeUnknownError None"] * 3],
            id="sync fails for good: nobody can tell, and every further call is refused",
        ),
        pytest.param(
            "pwrite64:error=ENOSPC:when=20",
            ["ok 1", "StoreUnavailableError 1", "ok 2", "ok 3"],
            id="disk full while a commit is written",
        ),
        pytest.param(
            "pwrite64:error=EIO:when=20+",
            ["ok 1", *["StoreUnavailableError 1"] * 3],
            id="writing fails for good: reads go on",
        ),
    ],
)
def test_a_commit_that_raises_is_answered_truly(file: Path, fault: str, outcomes: list[str]) -> None:
    """What a put answers after its COMMIT raised is what a new process finds."""
    make_store(file, versions=0)
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", f"{file}-wal"]
    call = fault.split(":")[0]
    command = [*strace, "-e", f"trace={call}", "-e", f"inject={fault}", *WRITING, "puts", str(file), "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == outcomes
    with closing(SqliteStore.open(file)) as store, store.read() as reader:
        found = reader.load_live_versions("a")
        assert reader.load_meta().revision == len(found)
    acknowledged = outcomes.count("ok 1") + sum(line.startswith("ok ") for line in outcomes[1:])
    unknown = any(line.startswith("Outcome") for line in outcomes)
    assert len(found) in ({acknowledged, acknowledged + 1} if unknown else {acknowledged})


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("fault", "outcomes"),
    [
        # Of the WAL, the first sync is of its header, the second of the first put, the third of the batch.
        pytest.param("when=9", ["ConflictError", "made", "newest 2"], id="committed: the repetition finds the put"),
        pytest.param("when=3", ["StoreUnavailableError", "StoreUnavailableError", "newest 1"], id="not committed"),
        pytest.param("when=3+", ["OutcomeUnknownError", "OutcomeUnknownError", "newest None"], id="not known"),
    ],
)
def test_nothing_of_a_batch_is_answered_before_its_commit(file: Path, fault: str, outcomes: list[str]) -> None:
    """A repeated request that found the first one's change in its own batch shares the outcome of the commit."""
    make_store(file, versions=0)
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", f"{file}-wal", "-e", "trace=fdatasync"]
    command = [*strace, "-e", f"inject=fdatasync:error=EIO:{fault}", *WRITING, "repeated", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *answers, newest = done.stdout.splitlines()
    assert [*sorted(answers), newest] == outcomes


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, ZeroDivisionError])
def test_whatever_breaks_a_batch_leaves_no_outcome_open(file: Path, error: type[BaseException]) -> None:
    """No change of a batch answers as if it were committed when something raises that no change has raised."""
    with closing(SqliteStore.open(file)) as store:
        put(store, make_row("a", 1))
        store._writer = cast(sqlite3.Connection, _BrokenCommit(store._writer, error))
        unknown = StoreUnavailableError if error is MemoryError else OutcomeUnknownError
        with pytest.raises(unknown):
            put(store, make_row("a", 2))
    with closing(SqliteStore.open(file)) as store, store.read() as reader:
        assert reader.load_live_versions("a") == [1]


@pytest.mark.parametrize("has_committed", [True, False], ids=["committed", "not committed"])
def test_a_discard_whose_commit_raised_is_not_known_and_can_be_repeated(file: Path, has_committed: bool) -> None:
    """It is never told as not committed; what is in the WAL is made durable, and the store goes on."""
    with closing(SqliteStore.open(file)) as store:
        put(store, make_row("a", 1))
        rows = load_audit(store)
        fail_next_commit(store, "SQLITE_IOERR_FSYNC", has_committed=has_committed)
        with pytest.raises(StoreUnavailableError, match="SQLITE_IOERR_FSYNC; it may be committed") as caught:
            store.discard_audit(rows)
        assert not isinstance(caught.value, OutcomeUnknownError)
        assert load_audit(store) == ([] if has_committed else rows)
        store.discard_audit(rows)
        assert load_audit(store) == []
        put(store, make_row("a", 2))


def test_a_discard_on_a_full_disk_is_not_committed(file: Path) -> None:
    """The WAL then lacks a frame of it; nothing is copied, since the disk has no room for that either."""
    with closing(SqliteStore.open(file)) as store:
        put(store, make_row("a", 1))
        fail_next_commit(store, "SQLITE_FULL", has_committed=False)
        with pytest.raises(StoreUnavailableError, match="commit: SQLITE_FULL$"):
            store.discard_audit(load_audit(store))


@pytest.mark.parametrize("has_committed", [True, False], ids=["committed", "not committed"])
def test_a_seal_without_a_key_whose_commit_raised_is_told_by_its_epoch(file: Path, has_committed: bool) -> None:
    """It takes no revision; committed and not committed are told apart all the same."""

    def seal(writer: Writer) -> None:
        meta = writer.load_meta()
        writer.save_meta(replace(meta, sealed=True, epoch=meta.epoch + 1))

    with closing(SqliteStore.open(file)) as store:
        fail_next_commit(store, "SQLITE_IOERR_FSYNC", has_committed=has_committed)
        if has_committed:
            store.write(seal, counts=False, alone=True)
        else:
            with pytest.raises(StoreUnavailableError, match="commit: SQLITE_IOERR_FSYNC$"):
                store.write(seal, counts=False, alone=True)
        assert load_meta(store).sealed is has_committed


@pytest.mark.parametrize("has_committed", [True, False], ids=["committed", "not committed"])
def test_a_flip_whose_commit_raised_is_told_by_its_keys(file: Path, has_committed: bool) -> None:
    """Whoever swaps the keys does so if it is committed, and never if it is not."""
    told: list[int] = []

    def flip(writer: Writer) -> int:
        writer.save_meta(replace(writer.load_meta(), generation=2, kek_id=3))
        return writer.revision

    with closing(SqliteStore.open(file)) as store:
        fail_next_commit(store, "SQLITE_IOERR_FSYNC", has_committed=has_committed)
        if has_committed:
            store.write(flip, alone=True, on_commit=told.append)
        else:
            with pytest.raises(StoreUnavailableError, match="commit: SQLITE_IOERR_FSYNC$"):
                store.write(flip, alone=True, on_commit=told.append)
        assert told == [1] * has_committed
        assert load_meta(store).kek_id == 3 * has_committed


def fail_next_commit(store: SqliteStore, name: str, *, has_committed: bool) -> None:
    """Let the next COMMIT raise the error *name* of SQLite, after it *has_committed* or instead."""
    error = sqlite3.OperationalError("disk")
    error.sqlite_errorname, error.sqlite_errorcode = name, getattr(sqlite3, name)
    store._writer = cast(sqlite3.Connection, _BrokenCommit(store._writer, error, has_committed=has_committed))


class _BrokenCommit:
    """A connection whose COMMIT raises *error* and commits nothing, as when memory has run out, or has committed."""

    def __init__(
        self, connection: sqlite3.Connection, error: type[BaseException] | BaseException, *, has_committed: bool = False
    ) -> None:
        self._connection = connection
        self._error = error
        self._has_committed = has_committed

    def execute(self, sql: str) -> sqlite3.Cursor:
        if sql == "COMMIT":
            if self._has_committed:
                self._connection.execute(sql)
            raise self._error
        return self._connection.execute(sql)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


@pytest.mark.needs("tmpfs")
def test_a_full_disk_refuses_writes_and_serves_reads(tmp_path: Path) -> None:
    """On a full disk puts are refused and reads go on; with room again, puts go on without a restart."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=3m tmpfs "$0" && head -c 1000000 /dev/zero > "$0/filler" && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(disk)]
    command += [*WRITING, "fill", str(disk / "nexus.db"), str(disk / "filler")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["StoreUnavailableError True", "ok True"]


def test_a_flipped_bit_never_empties_the_store(file: Path) -> None:
    """A secret is read or an error names the damage, whichever bit of the file is flipped; it never looks missing.

    (Flips inside a stored value are for the encryption above to find.)
    """
    with closing(SqliteStore.open(file)) as store:
        for path in (f"team/{number:02}" for number in range(40)):
            put(store, make_row(path))
            put(store, make_row(path, 2))
    good = file.read_bytes()
    bits = make_random("bits")
    named: list[str] = []
    for _ in range(120):
        flipped = bytearray(good)
        flipped[bits.randrange(len(good))] ^= 1 << bits.randrange(8)
        file.write_bytes(flipped)
        try:
            with closing(SqliteStore.open(file)) as store, store.read() as reader:
                for path in (f"team/{number:02}" for number in range(40)):
                    assert reader.load_version(path, 0) is not None
                    assert reader.load_version(path, 1) is not None
        except (CorruptRowError, StoreUnavailableError) as exc:
            named.append(str(exc))
    assert len(named) > 5
    assert not [message for message in named if "team/" in message]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param("DELETE FROM versions WHERE version = 2", "lost a version of a secret", id="newest version lost"),
        pytest.param("DELETE FROM versions WHERE version = 1", "lost a version of a secret", id="older version lost"),
        pytest.param("DELETE FROM secrets", "or the secret of a version", id="secret lost"),
        pytest.param("UPDATE secrets SET current_version = 1", "lost a version of a secret", id="newest forgotten"),
        pytest.param("UPDATE secrets SET path = 'b'", "or the secret of a version", id="secret under another path"),
        pytest.param("UPDATE versions SET deleted = 1", "as deleted that nobody deleted", id="mark of deletion"),
    ],
)
def test_what_is_lost_is_not_passed_off_as_missing_or_older(file: Path, damage: str, says: str) -> None:
    """The newest version is never answered with the one before it, and what is there never as if it were not."""
    make_store(file, versions=2)
    with closing(sqlite3.connect(file)) as database, database:
        assert database.execute(damage).rowcount
    with closing(SqliteStore.open(file)) as store, store.read() as reader, pytest.raises(CorruptRowError, match=says):
        list(map(reader.load_version, ("a", "a"), (0, 1)))


def test_a_reader_that_stays_does_not_hold_up_writers(file: Path) -> None:
    """Changes commit while a read is open, as long as the disk is well."""
    with closing(SqliteStore.open(file)) as store, store.read() as reader:
        assert reader.load_meta().revision == 0
        for version in range(1, 20):
            put(store, make_row("a", version))
        assert reader.load_version("a", 0) is None
