"""The audit while one root key follows another: no entry is lost or doubled, and nothing is called forged."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from nexus.keys.outbox import is_authentic_head, make_head
from nexus.store.protocol import OutboxRow
from tests.nexus.access.audit.exports import list_alarms, list_exported, make_digest
from tests.nexus.access.audit.keyed import make_entry, write_rows
from tests.nexus.cluster import NEXUS_NAME, FoundCluster
from tests.nexus.flipping import Flipping
from tests.nexus.store.contract import threads

INSERT = "INSERT INTO audit_outbox (nexus, revision, position, entry, mac) VALUES (?, ?, ?, ?, ?)"


@pytest.fixture
def nexus(tmp_path: Path, found: FoundCluster) -> Iterator[Flipping]:
    """A nexus with one change that is exported and discarded, and one that waits in the outbox."""
    nexus = Flipping(tmp_path, found(keepers=3, threshold=2))
    nexus.change("exported")
    nexus.work()
    nexus.change("waits")
    yield nexus
    nexus.close()


def flip_between_commit_and_key(nexus: Flipping) -> None:
    """Let the exporter meet rows that only the next key authenticates, before there is that key."""
    nexus.store.at_discard = lambda: pytest.fail("a row was refused")
    nexus.flip(between=nexus.exporter.export)
    nexus.store.at_discard = None


def flip_before_sweep(nexus: Flipping) -> None:
    nexus.store.at_discard = lambda: setattr(nexus.store, "at_read", nexus.flip)


def flip_during_sweep(nexus: Flipping) -> None:
    nexus.store.at_discard = lambda: setattr(nexus.store, "after_read", nexus.flip)


def flip_after_export(nexus: Flipping) -> None:
    nexus.exporter.export()
    nexus.flip()


def flip_between_pages(nexus: Flipping) -> None:
    nexus.change(*map(str, range(600)))
    nexus.store.after_read = nexus.flip


def flip_twice_after_export(nexus: Flipping) -> None:
    flip_after_export(nexus)
    nexus.change("between")
    nexus.flip()


@pytest.mark.parametrize("dies", [False, True], ids=["goes on", "starts anew"])
@pytest.mark.parametrize(
    "arm",
    [
        pytest.param(lambda nexus: nexus.flip(), id="before the export"),
        pytest.param(lambda nexus: setattr(nexus.store, "at_read", nexus.flip), id="before the outbox is read"),
        pytest.param(lambda nexus: setattr(nexus.store, "after_read", nexus.flip), id="before it is judged"),
        pytest.param(flip_between_commit_and_key, id="while the key is being replaced"),
        pytest.param(flip_between_pages, id="between two pages"),
        pytest.param(flip_after_export, id="between append and discard"),
        pytest.param(flip_twice_after_export, id="twice between append and discard"),
        pytest.param(
            lambda nexus: setattr(nexus.store, "at_discard", nexus.flip), id="between the head and its commit"
        ),
        pytest.param(flip_before_sweep, id="before what came too late is read"),
        pytest.param(flip_during_sweep, id="before what came too late is refused"),
    ],
)
def test_a_flip_at_any_point(nexus: Flipping, arm: Callable[[Flipping], object], dies: bool) -> None:
    """Every entry is exported once, and the head is one of the key of now, whether the process goes on or not."""
    arm(nexus)
    nexus.work()
    assert nexus.serving.root_key.generation > 1
    if dies:
        nexus.restart()
    nexus.change("later")
    nexus.check()


def test_flips_while_changes_are_in_flight(nexus: Flipping) -> None:
    """Of two threads that change, with an exporter that works all the time."""
    numbers = count()
    nexus.exporter.start()

    def work(name: int) -> None:
        for _ in range(30):
            nexus.change(f"{name}/{next(numbers)}")

    with threads(work, 2):
        for _ in range(3):
            nexus.flip()
            nexus.wipe_replaced()
    nexus.exporter.stop()
    assert not nexus.exporter.failing
    nexus.check()


def test_a_head_that_is_not_true_stays(nexus: Flipping) -> None:
    """The heads of other nexuses follow the key; one that somebody wrote without the key is a gap before and after."""
    other, forged = (make_head(nexus.serving.root_key, name, 1, 7, b"d" * 32, revision=1) for name in ("n2", "n3"))
    forged = replace(forged, seq=9)
    for head in (other, forged):
        nexus.store.discard_audit([], head)
    nexus.flip()
    with nexus.store.read() as reader:
        after = {head.nexus: head for head in reader.load_audit_heads()}
    assert sorted(after) == [NEXUS_NAME, "n2", "n3"]
    assert is_authentic_head(nexus.serving.root_key, after["n2"])
    assert replace(after["n2"], mac=other.mac) == other
    assert after["n3"] == forged


@pytest.mark.parametrize("is_before", [True, False], ids=["before the flip", "after it"])
def test_what_comes_again_around_a_flip_is_refused(nexus: Flipping, tmp_path: Path, is_before: bool) -> None:
    """A true row that was exported, and one that was never true, are forged under the next key too."""
    with nexus.store.read() as reader:
        (true,) = reader.load_audit(NEXUS_NAME, limit=9)
    nexus.work()
    forged = OutboxRow(NEXUS_NAME, true.revision, 1, make_entry("forged").encode(), b"m" * 32)

    def put_again() -> None:
        for row in (true, forged):
            write_rows(tmp_path / "nexus.db", INSERT, row.nexus, row.revision, row.position, row.entry, row.mac)

    if is_before:
        put_again()
    nexus.flip()
    if not is_before:
        put_again()
    nexus.work()
    nexus.work()
    assert sorted(list_exported(tmp_path)) == sorted(nexus.changes)
    with nexus.store.read() as reader:
        assert reader.load_audit(NEXUS_NAME, limit=9) == []
    assert nexus.exporter.alarms[0].count == 2
    said = " ".join(entry.detail for entry in list_alarms(tmp_path))
    assert make_digest("waits") in said
