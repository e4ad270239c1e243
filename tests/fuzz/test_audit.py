"""Audit files written by someone who can write files but has no key: read, verified and continued."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CorruptRowError
from common.forms.audit.entry import Entry
from common.forms.audit.line import (
    NO_HASH,
    ChangeLine,
    CheckpointLine,
    EntryLine,
    Line,
    SegmentLine,
    TornTailLine,
    decode_first_line,
    decode_line,
)
from common.forms.audit.verify import verify
from common.forms.codec import fields
from nexus.access.audit.directory import find_tail, load_recent_changes
from nexus.access.audit.log import AuditLog
from tests.fuzz.budget import budget
from tests.fuzz.mutations import hostile, hostile_json
from tests.kit.manual_clock import ManualClock

NEXUS = "n1"
FIRST, SECOND = f"{NEXUS}.000001.000001.jsonl", f"{NEXUS}.000001.000002.jsonl"
ENTRY = Entry(at=1, actor="spiffe://example.org/a", action="secret.get", path="a/b", version=3)
NOTHING = hashlib.sha256(b"").hexdigest()
LINES: tuple[Line, ...] = (
    EntryLine(2, ENTRY),
    ChangeLine(3, 7, msgspec.Raw(ENTRY.encode())),
    CheckpointLine(4, 1, b"", b"", []),
    CheckpointLine(4, 1, b"k" * 32, b"s" * 64, [b"genesis"]),
    TornTailLine(5, ENTRY, SECOND, 0, 0, NOTHING),
    TornTailLine(5, ENTRY, FIRST, 100, 0, NOTHING),
    SegmentLine(6, 1, NEXUS, 1, 2, NO_HASH.hex()),
    SegmentLine(6, 1, NEXUS, 1, 1, "no hex"),
)
HEADER = SegmentLine(1, 1, NEXUS, 1, 1, NO_HASH.hex())
SEEDS = [msgspec.json.encode(line) for line in (HEADER, *LINES)]
RECORD = st.sampled_from(SEEDS) | st.sampled_from(SEEDS).flatmap(hostile_json)


def chain(records: Sequence[bytes], *, renumber: bool) -> bytes:
    """Make lines of *records*, each with a correct hash: the chain alone needs no key."""
    lines, previous = [], NO_HASH
    for number, record in enumerate(records, start=1):
        if renumber:
            record = _set_number(record, number)
        previous = hashlib.sha256(fields(b"shardhold-audit-line-v1", previous, record)).digest()
        lines.append(record[:-1] + b',"hash":"' + previous.hex().encode() + b'"}\n')
    return b"".join(lines)


def _set_number(record: bytes, number: int) -> bytes:
    try:
        document = json.loads(record)
    except (ValueError, RecursionError):
        return record
    if not isinstance(document, dict):
        return record
    return json.dumps({**document, "seq": number}, separators=(",", ":")).encode()


def test_a_change_that_does_not_decode_ends_the_search() -> None:
    """A starting nexus looks for changes already exported, and no line in the files may stop it."""
    tower = b"[" * 200_000 + b"]" * 200_000
    for entry in (tower, b'{"at":1,"actor":"\xff","action":"x"}'):
        lines = [SEEDS[2], b'{"kind":"change","seq":3,"revision":8,"entry":' + tower + b"}"]
        torn = b'{"kind":"torn-tail","seq":1,"entry":%b,"file":"a","offset":1,"size":1,"sha256":""}' % entry
        with directory_of(chain([SEEDS[0], *lines], renumber=False), chain([SEEDS[0], torn], renumber=False)) as folder:
            assert load_recent_changes(folder, NEXUS, since=0) == {7: {ENTRY.encode()}}


@contextmanager
def directory_of(*contents: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for name, content in zip((FIRST, SECOND), contents, strict=False):
            (directory / name).write_bytes(content)
        yield directory


FORGED = st.builds(chain, st.lists(RECORD, max_size=5).map(lambda more: [SEEDS[0], *more]), renumber=st.booleans())
TRUE = chain(SEEDS[:4], renumber=True)
SEGMENT = FORGED | FORGED | hostile(TRUE)


@budget(5)
@given(hostile(*TRUE.splitlines(keepends=True)) | FORGED, st.just(NO_HASH) | st.binary(min_size=32, max_size=32))
def test_line(encoded: bytes, previous: bytes) -> None:
    """Any input is a record that follows, or a corrupt row."""
    decoders: list[Callable[[], tuple[Line, bytes]]] = [
        lambda: decode_line(encoded, previous),
        lambda: decode_first_line(encoded, is_header=True),
        lambda: decode_first_line(encoded, is_header=False),
    ]
    for decode in decoders:
        try:
            line, _ = decode()
        except CorruptRowError:
            continue
        assert isinstance(line, Line)


@budget(8)
@given(SEGMENT, SEGMENT, st.booleans())
def test_verify(first: bytes, second: bytes, has_key: bool) -> None:
    """The verifier reports on any files, whatever they hold."""
    with directory_of(first, second) as directory:
        report = verify(directory, public_keys=[b"k" * 32] if has_key else [])
        assert report.chains or not first
        assert all(chain.signed == 0 for chain in report.chains), "nobody here has a key"


@budget(2)
@given(SEGMENT, SEGMENT)
def test_writing_on(first: bytes, second: bytes) -> None:
    """A nexus that finds such files goes on writing after them, and what it writes is found."""
    with directory_of(first, second) as directory:
        for name in (FIRST, SECOND):
            tail = find_tail(directory / name)
            assert tail.end + len(tail.rest) == (directory / name).stat().st_size
        changes = load_recent_changes(directory, NEXUS, since=0)
        assert all(revision >= 0 for revision in changes)
        log = AuditLog.open(directory, nexus=NEXUS, timeline=1, clock=ManualClock())
        log.append(Entry(at=2, actor="", action="after", path="needle"))
        log.close()
        written = b"".join(
            (directory / name).read_bytes() for name in sorted(path.name for path in directory.iterdir())
        )
        assert written.count(b'"needle"') == 1
        assert first in (directory / FIRST).read_bytes() or find_tail(directory / FIRST).seq


def test_the_chain_above_is_one() -> None:
    """The unchanged seeds are a chain without a fault."""
    with directory_of(TRUE) as directory:
        report = verify(directory)
        assert (report.faults, report.torn_tails, report.chains[0].seq) == ([], [], 4)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param(SegmentLine(2, 1, NEXUS, 1, 1, "no hex"), "in the middle", id="second header, no hash in it"),
        pytest.param(
            TornTailLine(2, ENTRY, FIRST, len(chain(SEEDS[:1], renumber=True)), 0, NOTHING),
            "does not have",
            id="torn tail of nothing, right here",
        ),
    ],
)
def test_a_forged_line_is_a_fault(line: Line, why: str) -> None:
    """A forged line is a fault: its chain holds, since that needs no key, but it says what cannot be."""
    with directory_of(chain([SEEDS[0], msgspec.json.encode(line)], renumber=False)) as directory:
        (fault,) = verify(directory).faults
        assert (fault.line, why in fault.why) == (2, True)
