"""The audit log: what it writes, and what it does when it is killed or the disk fails."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import AuditUnavailableError, ConfigError, SealedError
from common.forms.audit.line import ChangeLine, CheckpointLine, EntryLine, Line, SegmentLine, TornTailLine
from common.forms.audit.verify import TornTail, verify
from nexus.access.audit.log import CHECKPOINT_EVERY, AuditLog
from nexus.access.audit.segment_file import AHEAD, RESERVE
from tests.kit.seed import make_random
from tests.nexus.access.audit.descriptor import replaced
from tests.nexus.access.audit.keyed import make_entry
from tests.nexus.store.contract import threads

ROOT = Path(__file__).parents[4]
WRITING = [sys.executable, "-m", "tests.nexus.access.audit.writing"]
FIRST = "nexus-1.000001.000001.jsonl"

WaitUntil = Callable[..., None]


def open_log(directory: Path, *, timeline: int = 1, segment_size: int = 64 << 20) -> AuditLog:
    """Open the audit of nexus-1."""
    return AuditLog.open(directory, nexus="nexus-1", timeline=timeline, segment_size=segment_size)


def load_lines(directory: Path) -> list[Line]:
    """Load all whole lines, in order, unchecked."""
    decoder = msgspec.json.Decoder(Line)
    files = sorted(directory.glob("*.jsonl"))
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return [decoder.decode(line) for line in lines if line.endswith(b"\n")]


def list_paths(directory: Path) -> list[str]:
    """List the paths in all entries of calls."""
    return [line.entry.path for line in load_lines(directory) if isinstance(line, EntryLine) and line.entry.path]


class Key:
    """A signer."""

    _key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public_key = _key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


class WipedKey:
    """A signer whose key is gone."""

    public_key = bytes(32)

    def sign(self, message: bytes) -> bytes:
        raise SealedError("the audit key was wiped")


def test_an_entry_is_one_line_of_a_chain(tmp_path: Path) -> None:
    """Header, entries in order, a checkpoint at the end, numbered; the files are the owner's alone."""
    with closing(open_log(tmp_path)) as log:
        for path in ("a", "b\nc"):
            log.append(make_entry(path))
    header, first, second, checkpoint = load_lines(tmp_path)
    assert header == SegmentLine(1, 1, "nexus-1", 1, 1, "0" * 64)
    assert (first, second) == (EntryLine(2, make_entry("a")), EntryLine(3, make_entry("b\nc")))
    assert isinstance(checkpoint, CheckpointLine)
    assert not checkpoint.signature
    assert (tmp_path / FIRST).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / FIRST).stat().st_blocks * 512 < 65_536  # what was set aside is given back
    assert not verify(tmp_path).faults


def test_a_new_start_goes_on_with_the_chain(tmp_path: Path) -> None:
    """A log that is opened again appends to the same segment."""
    for path in ("a", "b", "c"):
        with closing(open_log(tmp_path)) as log:
            log.append(make_entry(path))
    assert list_paths(tmp_path) == ["a", "b", "c"]
    assert [line.seq for line in load_lines(tmp_path)] == list(range(1, 8))
    report = verify(tmp_path)
    assert (report.faults, report.chains[0].segments, report.chains[0].seq) == ([], 1, 7)


def test_an_entry_is_written_before_append_returns(tmp_path: Path) -> None:
    """What was appended is in the file at once, synced or not."""
    with closing(open_log(tmp_path)) as log:
        for path in ("a", "b"):
            log.append(make_entry(path))
            assert list_paths(tmp_path)[-1] == path


def test_checkpoints_and_segments(tmp_path: Path, wait_until: WaitUntil) -> None:
    """A checkpoint follows a thousand lines; a segment that is full ends with one, and the next goes on."""
    with closing(open_log(tmp_path, segment_size=500_000)) as log:
        for number in range(CHECKPOINT_EVERY):
            log.append(make_entry(str(number)))
        wait_until(lambda: any(isinstance(line, CheckpointLine) for line in load_lines(tmp_path)))
        for number in range(2 * CHECKPOINT_EVERY):
            log.append(make_entry(str(number)))
        wait_until(lambda: len(list(tmp_path.glob("*.jsonl"))) == 2)
        log.append(make_entry("last"))
    lines = load_lines(tmp_path)
    second = next(index for index, line in enumerate(lines) if isinstance(line, SegmentLine) and line.segment == 2)
    assert isinstance(lines[second - 1], CheckpointLine)
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    assert not verify(tmp_path).faults


def test_a_new_timeline_is_a_new_chain_behind_the_old_one(tmp_path: Path) -> None:
    """The chain of a new timeline begins after the last line of the one before, at once or at the next start."""
    with closing(open_log(tmp_path, timeline=0)) as log:
        log.append(make_entry("a"))
        log.start_timeline(1)
        log.start_timeline(1)
        log.append(make_entry("b"))
    with closing(open_log(tmp_path, timeline=2)) as log:
        log.append(make_entry("c"))
    report = verify(tmp_path)
    assert report.faults == []
    assert [(chain.timeline, chain.seq) for chain in report.chains] == [(0, 3), (1, 3), (2, 3)]
    assert list_paths(tmp_path) == ["a", "b", "c"]
    (tmp_path / "nexus-1.000001.000001.jsonl").unlink()
    assert [fault.file for fault in verify(tmp_path).faults] == ["nexus-1.000002.000001.jsonl"]


def test_an_older_timeline_goes_on(tmp_path: Path) -> None:
    """A nexus on a restored store writes on in the older chain, and the newer one still follows from it."""
    for timeline, path in [(1, "a"), (2, "b"), (1, "c"), (2, "d")]:
        with closing(open_log(tmp_path, timeline=timeline)) as log:
            log.append(make_entry(path))
    assert list_paths(tmp_path) == ["a", "c", "b", "d"]
    assert verify(tmp_path).faults == []


def test_appends_of_many_threads_are_one_chain(tmp_path: Path) -> None:
    """Threads do not tear each other's lines."""
    with closing(open_log(tmp_path)) as log, threads(lambda name: append_many(log, name), 8):
        pass
    assert sorted(list_paths(tmp_path)) == sorted(f"{name}/{number}" for name in range(8) for number in range(200))
    assert not verify(tmp_path).faults


def append_many(log: AuditLog, name: int) -> None:
    """Append 200 entries."""
    for number in range(200):
        log.append(make_entry(f"{name}/{number}"))


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """A missing directory, a second writer and a name that is no file name are refused."""
    with pytest.raises(AuditUnavailableError, match="nowhere cannot be opened: No such file"):
        open_log(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="name: got 'a/b'"):
        AuditLog.open(tmp_path, nexus="a/b", timeline=1)
    with closing(open_log(tmp_path)), pytest.raises(AuditUnavailableError, match=r"nexus-1\.lock is held"):
        open_log(tmp_path)
    open_log(tmp_path).close()


def test_failures_are_counted_when_they_begin(tmp_path: Path, wait_until: WaitUntil) -> None:
    """Not again while they last, and apart for the files and for the export of changes."""
    with closing(open_log(tmp_path)) as log:
        assert log.failures == 0
        with replaced(tmp_path / FIRST, by="/dev/full"):
            for _ in range(3):
                with pytest.raises(AuditUnavailableError):
                    log.append(make_entry("a"), reserve=True)
        assert log.failures == 1
        for reason in ("store is busy", "store is gone", "", "store is busy"):
            log.set_export_failing(reason)
        assert log.failures == 3


def test_lines_that_a_power_cut_would_take_are_counted(tmp_path: Path) -> None:
    """None once they are synced."""
    with closing(open_log(tmp_path)) as log:
        log.sync()
        assert log.unsynced_lines == 0
        with log._syncing:  # as long as a sync takes
            for path in ("a", "b"):
                log.append(make_entry(path))
            assert log.unsynced_lines == 2
        log.sync()
        assert log.unsynced_lines == 0


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    """After close every append is refused, also those from the reserve."""
    log = open_log(tmp_path)
    log.close()
    log.close()
    for reserve in (False, True):
        with pytest.raises(AuditUnavailableError, match="closed"):
            log.append(make_entry("a"), reserve=reserve)
    with pytest.raises(AuditUnavailableError, match="closed"):
        log.sync()


@pytest.mark.parametrize(
    ("rest", "seq"),
    [
        pytest.param(b'{"kind":"entry","seq":5,"ent', 4, id="half a line"),
        pytest.param(bytes(4096), 4, id="a block of zeros"),
        pytest.param(b"x\ny\n", 4, id="lines that are none"),
        pytest.param(None, 0, id="half a header"),
    ],
)
def test_a_torn_tail_is_named_and_kept(tmp_path: Path, rest: bytes | None, seq: int) -> None:
    """What a crash left stays where it is; the next segment says so in an entry, and the chain goes on."""
    with closing(open_log(tmp_path)) as log:
        for path in ("a", "b"):
            log.append(make_entry(path))
    whole = (tmp_path / FIRST).read_bytes()
    torn = whole[:50] if rest is None else whole + rest
    (tmp_path / FIRST).write_bytes(torn)
    with closing(open_log(tmp_path)) as log:
        log.append(make_entry("c"))
    assert (tmp_path / FIRST).read_bytes() == torn
    report = verify(tmp_path)
    offset = len(whole) if rest is not None else 0
    assert report.faults == []
    assert report.torn_tails == [TornTail(FIRST, offset, len(torn) - offset, is_named=True)]
    decoder = msgspec.json.Decoder(Line)
    second = (tmp_path / FIRST.replace("1.jsonl", "2.jsonl")).read_bytes()
    header, named, entry, _ = map(decoder.decode, second.splitlines())
    assert isinstance(header, SegmentLine)
    assert isinstance(named, TornTailLine)
    assert isinstance(entry, EntryLine)
    assert header.seq == seq + 1
    assert named.entry.action == "audit.torn-tail"
    assert entry.entry.path == "c"


def test_an_empty_segment_is_begun_again(tmp_path: Path) -> None:
    """A file that was made just before a crash is taken for the segment that it was to be."""
    (tmp_path / FIRST).touch()
    with closing(open_log(tmp_path)) as log:
        log.append(make_entry("a"))
    assert [file.name for file in tmp_path.glob("*.jsonl")] == [FIRST]
    assert not verify(tmp_path).faults


def test_the_end_of_a_long_segment_is_found(tmp_path: Path, wait_until: WaitUntil) -> None:
    """A torn tail is found at the end of a segment that is not read whole, however long its lines are."""
    with closing(open_log(tmp_path)) as log:
        for number in range(CHECKPOINT_EVERY * 5):
            log.append(make_entry(str(number), detail="x" * 2_000))
            if number % CHECKPOINT_EVERY == 0:
                log.sync()
    with (tmp_path / FIRST).open("ab") as file:
        file.write(b"torn")
    open_log(tmp_path).close()
    report = verify(tmp_path)
    assert (report.faults, len(report.torn_tails)) == ([], 1)


@pytest.mark.final
def test_kill_loses_no_entry(tmp_path: Path) -> None:
    """After `kill -9` at any moment every entry whose append returned is in the chain, and the chain holds."""
    moments = make_random("kills")
    acknowledged: list[str] = []
    for _ in range(10):
        with subprocess.Popen(
            [*WRITING, "threads", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as writing:
            assert writing.stdout is not None
            lines = [writing.stdout.readline() for _ in range(moments.randrange(11, 40))]
            killer = threading.Timer(moments.uniform(0, 0.02), writing.send_signal, [signal.SIGKILL])
            killer.start()
            lines += writing.stdout.readlines()
            killer.join()
        assert writing.returncode == -signal.SIGKILL
        acknowledged += [line.strip() for line in lines if line.endswith("\n")]
    open_log(tmp_path).close()
    assert len(acknowledged) > 100
    assert set(acknowledged) <= set(list_paths(tmp_path))
    assert not verify(tmp_path).faults


@pytest.mark.needs("tmpfs")
def test_a_full_disk_refuses_all_but_the_reserve(tmp_path: Path) -> None:
    """On a full disk appends are refused, those from the reserve written; with room again all are; nothing is torn."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    size = AHEAD + 4 * RESERVE
    script = f'mount -t tmpfs -o size={size} tmpfs "$0" && head -c 2000000 /dev/zero > "$0/filler" || exit; shift;'
    script += ' "$@" && cp "$0"/*.jsonl "$KEPT"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "env", f"KEPT={kept}", "sh", "-c", script, str(disk)]
    command += ["-", *WRITING, "fill", str(disk), str(disk / "filler")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "full: audit is failing: No space left on device",
        "reserve of a mebibyte: True",
        "ok",
    ]
    report = verify(kept)
    assert (report.faults, report.torn_tails) == ([], [])
    actions = [line.entry.action for line in load_lines(kept) if isinstance(line, EntryLine)]
    assert actions.count("audit.restored") == 1


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("fault", "outcomes"),
    [
        pytest.param("fdatasync:error=EIO:when=4", ["ok", "ok", "AuditUnavailableError", "ok"], id="a sync fails"),
        pytest.param("pwrite64:error=EIO:when=4", ["ok", "ok", "AuditUnavailableError", "ok"], id="a write fails"),
        pytest.param(
            "pwrite64:retval=20:when=4", ["ok", "ok", "AuditUnavailableError", "ok"], id="a write falls short"
        ),
    ],
)
def test_a_failing_disk_refuses_until_it_works_again(tmp_path: Path, fault: str, outcomes: list[str]) -> None:
    """A write or sync that fails refuses that append and those after it; a probe finds that the disk works again."""
    call = fault.split(":")[0]
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(tmp_path / FIRST)]
    command = [*strace, "-e", f"trace={call}", "-e", f"inject={fault}", *WRITING, "appends", str(tmp_path), "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == outcomes
    report = verify(tmp_path)
    assert (report.faults, report.torn_tails) == ([], [])
    assert {"0", "1", "3"} <= set(list_paths(tmp_path))


def test_a_checkpoint_whose_key_is_wiped_meanwhile_is_not_signed(tmp_path: Path, wait_until: WaitUntil) -> None:
    """A seal does not wait for the audit, and the audit does not fail by it."""
    with closing(open_log(tmp_path)) as log:
        log.set_signer(WipedKey())
        for number in range(CHECKPOINT_EVERY):
            log.append(make_entry(str(number)))
        wait_until(lambda: any(isinstance(line, CheckpointLine) for line in load_lines(tmp_path)))
        assert not log.failing
    report = verify(tmp_path)
    assert (report.faults, report.chains[0].signed) == ([], 0)


def test_changes_are_found_again(tmp_path: Path) -> None:
    """Entries of changes are found by revision in the last two segments, those in a torn tail left out."""
    with closing(open_log(tmp_path)) as log:
        for revision in (1, 2, 2, 3):
            log.append_change(revision, make_entry(str(revision)).encode())
        log.append(make_entry("x"))
        assert log.load_recent_changes(since=2) == {2: {make_entry("2").encode()}, 3: {make_entry("3").encode()}}
    data = (tmp_path / FIRST).read_bytes().replace(b'"path":"3"', b'"path":"4"')
    (tmp_path / FIRST).write_bytes(data)
    with closing(open_log(tmp_path)) as log:
        assert log.load_recent_changes(since=0).keys() == {1, 2}
    assert any(isinstance(line, ChangeLine) for line in load_lines(tmp_path))


def test_changes_are_found_again_after_crash_upon_crash(tmp_path: Path) -> None:
    """Each torn tail begins a segment; the entries of changes are found after any number of them."""
    with closing(open_log(tmp_path)) as log:
        log.append_change(1, make_entry("1").encode())
    for _ in range(4):
        with max(tmp_path.glob("*.jsonl")).open("ab") as last:
            last.write(b'{"kind":"ent')
        with closing(open_log(tmp_path)) as log:
            assert log.load_recent_changes(since=1) == {1: {make_entry("1").encode()}}
    for number in (6, 7):  # cut off in their first line
        (tmp_path / f"nexus-1.000001.{number:06}.jsonl").write_bytes(b'{"kind":"seg')
    with closing(open_log(tmp_path)) as log:
        assert log.load_recent_changes(since=1) == {1: {make_entry("1").encode()}}
    report = verify(tmp_path)
    assert (report.faults, len(report.torn_tails)) == ([], 6)


# Files that are not where they were


def rename_directory(directory: Path, aside: Path) -> None:
    """Take the directory away."""
    directory.rename(aside)


def replace_directory(directory: Path, aside: Path) -> None:
    """Put another directory in its place."""
    directory.rename(aside)
    directory.mkdir()


def rename_file(directory: Path, aside: Path) -> None:
    """Take the file away."""
    (directory / FIRST).rename(aside)


def replace_file(directory: Path, aside: Path) -> None:
    """Put a copy in the place of the file."""
    (directory / FIRST).rename(aside)
    (directory / FIRST).write_bytes(aside.read_bytes())


def put_back(directory: Path, aside: Path) -> None:
    """Undo whatever it was."""
    place = directory if aside.is_dir() else directory / FIRST
    if place.is_dir():
        place.rmdir()
    aside.replace(place)


@pytest.mark.parametrize(
    ("displace", "says"),
    [
        pytest.param(rename_directory, "directory .* was removed or replaced", id="directory renamed"),
        pytest.param(replace_directory, "directory .* was removed or replaced", id="directory replaced"),
        pytest.param(rename_file, f"file {FIRST} was removed or replaced", id="file renamed"),
        pytest.param(replace_file, f"file {FIRST} was removed or replaced", id="file replaced"),
    ],
)
def test_a_log_whose_files_went_away_refuses_until_they_are_back(
    tmp_path: Path, wait_until: WaitUntil, displace: Callable[[Path, Path], None], says: str
) -> None:
    """It notices by itself, says what is gone, and goes on where it was once that is back."""
    directory, aside = tmp_path / "audit", tmp_path / "aside"
    directory.mkdir()
    with closing(open_log(directory)) as log:
        log.append(make_entry("a"))
        displace(directory, aside)
        wait_until(lambda: log.failing)
        assert log.is_displaced
        with pytest.raises(AuditUnavailableError, match=says):
            log.append(make_entry("b"))
        with pytest.raises(AuditUnavailableError, match=says):
            log.sync()
        assert re.search(says, "".join(log.list_obstacles()))
        put_back(directory, aside)
        wait_until(lambda: not log.failing)
        log.append(make_entry("c"))
    assert list_paths(directory) == ["a", "c"]
    assert verify(directory).faults == []


@pytest.mark.parametrize("displace", [replace_directory, replace_file])
def test_a_new_chain_begins_with_what_was_accepted(
    tmp_path: Path, wait_until: WaitUntil, displace: Callable[[Path, Path], None]
) -> None:
    """In the directory as it is by then, after whatever is there; no other process can write it from then on."""
    directory, aside = tmp_path / "audit", tmp_path / "aside"
    directory.mkdir()
    with closing(open_log(directory)) as log:
        log.append(make_entry("a"))
        displace(directory, aside)
        wait_until(lambda: log.failing)
        position = log.begin_anew(make_entry("accepted"))
        assert not log.failing
        assert log.find_digest(1, position.seq) == position.digest
        log.append(make_entry("b"))
        assert log.sync().seq == position.seq + 1
        with pytest.raises(AuditUnavailableError, match="held"):
            open_log(directory)
    assert list_paths(directory)[-2:] == ["accepted", "b"]
    assert verify(directory).faults == []


def test_without_a_directory_no_new_chain_begins(tmp_path: Path, wait_until: WaitUntil) -> None:
    """The log goes on refusing."""
    directory = tmp_path / "audit"
    directory.mkdir()
    with closing(open_log(directory)) as log:
        directory.rename(tmp_path / "aside")
        with pytest.raises(AuditUnavailableError, match="No such file"):
            log.begin_anew(make_entry("accepted"))
        wait_until(lambda: log.failing)
