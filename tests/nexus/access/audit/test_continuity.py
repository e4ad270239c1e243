"""Whether the audit files are those that the store remembers."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from common.forms.mark import AuditEnd
from nexus.access.audit.continuity import Continuity
from nexus.access.audit.directory import ChainPosition
from nexus.access.audit.log import AuditLog
from nexus.keys.outbox import is_authentic_head, make_head
from nexus.store.protocol import AuditHead, Writer
from nexus.store.sqlite.store import SqliteStore
from tests.kit.manual_clock import ManualClock
from tests.nexus.access.audit.keyed import NEXUS, FixedKey, change, forge, make_entry
from tests.nexus.access.audit.test_log import FIRST, open_log

KEY = FixedKey()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """A store in timeline 1."""
    (tmp_path / "data").mkdir()
    store = SqliteStore.open(tmp_path / "data" / "nexus.db")
    store.write(lambda writer: writer.save_meta(replace(writer.load_meta(), timeline=1)))
    yield store
    store.close()


@pytest.fixture
def written(tmp_path: Path, store: SqliteStore) -> AuditHead:
    """The head of ten synced entries, which the store remembers."""
    with closing(open_log(tmp_path)) as log:
        for number in range(10):
            log.append(make_entry(str(number)))
        synced = log.sync()
    head = make_head(KEY, NEXUS, synced.timeline, synced.seq, synced.digest, revision=5)
    store.discard_audit([], head)
    return head


def find_gap(store: SqliteStore, directory: Path, *, has_begun: bool = True, remembered: AuditEnd | None = None) -> str:
    """Open the audit as a new process does, and look."""
    with closing(open_log(directory)) as log:
        log.append(make_entry("later"))
        return Continuity(store, log).find_gap(KEY, has_begun=has_begun, remembered=remembered)


def edit_lines(edit: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    """Make what edits the lines of the file."""

    def run(directory: Path) -> None:
        path = directory / FIRST
        path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))

    return run


UNREACHED, ANOTHER = "do not reach line 11 of timeline 1", "line 11 of timeline 1 of the audit files is another one"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(edit_lines(lambda lines: lines), "", id="nothing"),
        pytest.param(edit_lines(lambda lines: lines[:11]), "", id="what came after it was torn"),
        pytest.param(edit_lines(lambda lines: [*lines[:11], b'{"kind"']), "", id="a torn tail after it"),
        pytest.param(edit_lines(lambda lines: lines[:5]), UNREACHED, id="cut off far before it"),
        pytest.param(edit_lines(lambda lines: lines[:10]), ANOTHER, id="cut off just before it"),
        pytest.param(
            edit_lines(lambda lines: [*lines[:10], lines[10].replace(b'"9"', b'"8"'), *lines[11:]]),
            ANOTHER,
            id="its line edited",
        ),
        pytest.param(
            edit_lines(lambda lines: [line.replace(b'"9"', b'"8"') for line in lines[:11]]),
            ANOTHER,
            id="its line edited, the last one",
        ),
        pytest.param(lambda directory: (directory / FIRST).unlink(), UNREACHED, id="all files removed"),
    ],
)
def test_files_are_held_against_the_head(
    tmp_path: Path, store: SqliteStore, written: AuditHead, damage: Callable[[Path], None], says: str
) -> None:
    """What was synced has to be there as it was; what came after may be torn."""
    damage(tmp_path)
    found = find_gap(store, tmp_path)
    assert says in found
    assert bool(found) is bool(says)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(edit_lines(lambda lines: lines), "", id="nothing"),
        pytest.param(edit_lines(lambda lines: lines[:5]), UNREACHED, id="cut off far before it"),
        pytest.param(edit_lines(lambda lines: lines[:10]), ANOTHER, id="cut off just before it"),
    ],
)
def test_files_are_held_against_what_keepers_remember(
    tmp_path: Path, store: SqliteStore, written: AuditHead, damage: Callable[[Path], None], says: str
) -> None:
    """An older head that was put back, and fits files that were cut, hides nothing."""
    store.discard_audit([], make_head(KEY, NEXUS, 1, 0, bytes(32), revision=0))
    damage(tmp_path)
    found = find_gap(store, tmp_path, remembered=AuditEnd(NEXUS, 1, written.seq, written.digest))
    assert says in found
    assert found.endswith("keepers remember") is bool(says)


@pytest.mark.parametrize("has_begun", [False, True], ids=["no audit has begun", "the audit has begun"])
def test_a_head_that_is_missing(tmp_path: Path, store: SqliteStore, has_begun: bool) -> None:
    """It was removed, unless the store knows of no audit of this nexus yet."""
    assert ("does not say any more" in find_gap(store, tmp_path, has_begun=has_begun)) is has_begun


def test_the_end_that_marks_carry_is_synced(tmp_path: Path, store: SqliteStore) -> None:
    """A mark of lines that a power cut takes back would block the nexus."""
    with closing(AuditLog.open(tmp_path, nexus=NEXUS, timeline=1, clock=ManualClock())) as log:
        continuity = Continuity(store, log)
        before = continuity.find_end()
        with log._syncing:  # nothing is synced meanwhile
            log.append(make_entry("a"))
            assert log.position.seq == before.seq + 1
            assert continuity.find_end() == before
        log.sync()
        assert continuity.find_end() == (NEXUS, *log.position)


def test_a_head_that_nobody_with_the_key_wrote(tmp_path: Path, store: SqliteStore, written: AuditHead) -> None:
    """A changed head blocks, whatever the files are."""
    for head in (replace(written, seq=3), replace(written, revision=1 << 40), replace(written, seq=-1)):
        store.discard_audit([], head)
        assert find_gap(store, tmp_path) == "what the store says of the audit files was changed outside Shardhold"


def test_a_head_of_an_earlier_timeline_says_nothing(tmp_path: Path, store: SqliteStore, written: AuditHead) -> None:
    """A store that was restored and accepted needs no audit files of the time before."""
    store.write(lambda writer: writer.save_meta(replace(writer.load_meta(), timeline=2)))
    (tmp_path / FIRST).unlink()
    with closing(AuditLog.open(tmp_path, nexus=NEXUS, timeline=2)) as log:
        continuity = Continuity(store, log)
        end = AuditEnd(NEXUS, 1, written.seq, written.digest)
        assert continuity.find_gap(KEY, has_begun=True, remembered=None) == ""
        assert continuity.find_gap(KEY, has_begun=True, remembered=end) == ""


@pytest.mark.parametrize("is_changed", [False, True], ids=["authentic", "changed"])
def test_a_new_chain_keeps_what_is_still_in_the_outbox(
    tmp_path: Path, store: SqliteStore, written: AuditHead, is_changed: bool
) -> None:
    """The new head names the last revision that is out of it; a changed head is not believed."""
    if is_changed:
        store.discard_audit([], replace(written, revision=1 << 40))
    for path in "abcdef":
        change(store, path)  # revisions 2 to 7
    forge(tmp_path / "data" / "nexus.db", -3)
    position = ChainPosition(1, 12, bytes(32))

    def save(writer: Writer) -> None:
        with closing(open_log(tmp_path)) as log:
            Continuity(store, log).save_head(writer, KEY, position)

    store.write(save, counts=False)
    with store.read() as reader:
        head = reader.load_audit_head(NEXUS)
    assert head is not None
    assert is_authentic_head(KEY, head)
    assert (head.seq, head.revision) == (12, 1 if is_changed else 5)
