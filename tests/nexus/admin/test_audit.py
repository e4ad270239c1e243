"""Reading the audit through a call: which lines come, and how long a call waits for one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from common.errors import InvalidArgumentError, NotFoundError
from common.forms.audit.entry import Entry
from common.forms.audit.line import EntryLine, Line
from nexus.admin.audit import DEFAULT_LINES, MAX_LINES, MAX_WAIT_S
from tests.kit.patience import join
from tests.nexus.conftest import MakeNexus, WaitUntil
from tests.nexus.core import AUDITOR, OPERATOR, NexusCore

NOTE = Entry(at=1, actor="somebody", action="test")


@pytest.fixture
def nexus(make_nexus: MakeNexus) -> NexusCore:
    """A ready one, with many lines."""
    nexus = make_nexus()
    for _ in range(DEFAULT_LINES):
        nexus.audit.append(NOTE)
    return nexus


def decode(lines: list[bytes]) -> list[Line]:
    decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
    return [decoder.decode(line) for line in lines]


def test_the_last_lines_come_first_and_then_those_after_them(nexus: NexusCore) -> None:
    """As they stand in the files; each call leaves an entry, which the next one shows."""
    timeline, lines, timelines, head = nexus.audit_access.tail(AUDITOR, None, after=None, limit=0, wait_s=0)
    assert (timeline, len(lines), timelines) == (1, DEFAULT_LINES, [1])
    assert head == nexus.audit_access._continuity.load_head()
    last = decode(lines)[-1].seq
    (later,) = decode(nexus.audit_access.tail(OPERATOR, 1, after=last, limit=9, wait_s=0)[1])
    assert isinstance(later, EntryLine)
    assert (later.entry.actor, later.entry.action, later.entry.detail) == (
        AUDITOR.spiffe_id,
        "audit.tail",
        "timeline 1",
    )


def test_limits_are_named(nexus: NexusCore) -> None:
    """Limit and wait are refused before anything is read."""
    with pytest.raises(InvalidArgumentError, match=f"limit: got {MAX_LINES + 1}"):
        nexus.audit_access.tail(AUDITOR, None, after=None, limit=MAX_LINES + 1, wait_s=0)
    for wait_s in (-1, MAX_WAIT_S + 1):
        with pytest.raises(InvalidArgumentError, match="wait: got"):
            nexus.audit_access.tail(AUDITOR, None, after=None, limit=0, wait_s=wait_s)
    with pytest.raises(NotFoundError):
        nexus.audit_access.tail(AUDITOR, 7, after=None, limit=0, wait_s=0)


@contextmanager
def waiting(nexus: NexusCore, count: int = 1) -> Iterator[list[list[bytes]]]:
    """Have calls wait for a line meanwhile; at the end each has its answer."""
    answers: list[list[bytes]] = []
    after = nexus.audit.position.seq
    threads = [
        threading.Thread(
            target=lambda: answers.append(
                nexus.audit_access.tail(AUDITOR, 1, after=after, limit=9, wait_s=MAX_WAIT_S)[1]
            )
        )
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        join(thread, MAX_WAIT_S)
        assert not thread.is_alive()


def test_a_call_waits_for_a_line_that_is_no_entry_of_its_own_kind(nexus: NexusCore) -> None:
    """Else whoever follows the audit would follow their own calls."""
    with waiting(nexus) as answers:
        nexus.audit_access.tail(OPERATOR, None, after=None, limit=1, wait_s=0)
        assert answers == []
        nexus.audit.append(NOTE)
    (lines,) = answers
    assert [line.entry.action for line in decode(lines) if isinstance(line, EntryLine)] == ["audit.tail", "test"]


def test_few_calls_wait_at_once(nexus: NexusCore, wait_until: WaitUntil) -> None:
    """Each holds a worker; a further one is answered at once, with what is there."""
    with waiting(nexus, 3) as answers:
        wait_until(lambda: len(answers) == 1)
        nexus.audit.append(NOTE)
    assert len(answers) == 3
