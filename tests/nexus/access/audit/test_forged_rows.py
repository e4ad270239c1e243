"""The exporter: what somebody without the key writes into the outbox."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.access.audit.alarm import SAY_EVERY_S
from nexus.keys.outbox import adopt_rows
from nexus.store.protocol import Writer
from nexus.store.sqlite.store import SqliteStore
from tests.kit.manual_clock import ManualClock
from tests.nexus.access.audit.exports import MakeExporter, list_alarms, list_exported, make_digest
from tests.nexus.access.audit.keyed import (
    NEXUS,
    FixedKey,
    append,
    change,
    forge,
    load_outbox,
    make_entry,
    write_rows,
)

FLOOD = """
    INSERT INTO audit_outbox (nexus, revision, position, entry, mac)
    WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 699)
    SELECT ?, ?, n, ?, ? FROM numbers"""


@pytest.mark.parametrize(
    ("revision", "position", "mac"),
    [
        pytest.param(1, 1, b"m" * 32, id="another entry of a true change"),
        pytest.param(1, 1, None, id="an entry without a MAC"),
        pytest.param(0, 0, b"m" * 32, id="before every change"),
        pytest.param(-(1 << 62), -5, b"m" * 32, id="numbers below zero"),
        pytest.param(3, 0, b"m" * 32, id="the place of the next change"),
        pytest.param(1 << 61, 0, b"m" * 32, id="a revision that the store never reaches"),
    ],
)
def test_a_forged_row_is_refused_and_holds_up_nothing(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path, revision: int, position: int, mac: bytes | None
) -> None:
    """A forged row is named by its digest and removed; true entries before and after it are exported."""
    exporter = make_exporter()
    change(store, "a")
    change(store, "b")
    forge(tmp_path / "nexus.db", revision, position, mac=mac)
    exporter.export()
    change(store, "c")
    exporter.export()
    exporter.discard()
    assert list_exported(tmp_path) == [(1, "a"), (2, "b"), (3, "c")]
    assert load_outbox(store) == []
    (said,) = list_alarms(tmp_path)
    assert (said.action, said.outcome) == ("audit.refused-row", "CORRUPT_ROW")
    assert said.detail.startswith(f"revision {revision} position {position}, SHA-256 {make_digest('forged')}: ")
    assert exporter.alarms[0].count == 1


def test_a_forged_row_in_the_place_of_the_next_change_gives_way(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """The change does not fail, and its entry takes the place."""
    forge(tmp_path / "nexus.db", 1)
    change(store, "a")
    exporter = make_exporter()
    exporter.export()
    assert list_exported(tmp_path) == [(1, "a")]


def test_a_flood_of_forged_rows_is_two_lines_in_two_minutes(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """The first is named at once, the others are counted."""
    clock = ManualClock()
    exporter = make_exporter(clock=clock)
    for _ in range(3):
        assert write_rows(tmp_path / "nexus.db", FLOOD, NEXUS, 1 << 61, b"forged", b"m" * 32) == 700
        exporter.export()
        clock.advance(SAY_EVERY_S / 2 + 1)
    assert exporter.alarms[0].count == 2_100
    assert [entry.detail.rpartition("; ")[2] for entry in list_alarms(tmp_path)] == ["and 699 more", "and 1399 more"]
    assert load_outbox(store) == []


def test_a_true_row_that_comes_again_is_refused(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """An authentic row that was exported is not exported twice, neither by this process nor by the next one."""
    (row,) = change(store, "a")
    change(store, "b")
    exporter = make_exporter()
    exporter.export()
    exporter.discard()
    sql = "INSERT INTO audit_outbox (nexus, revision, position, entry, mac) VALUES (?, ?, ?, ?, ?)"
    for number, again in enumerate((exporter, make_exporter()), start=1):
        write_rows(tmp_path / "nexus.db", sql, row.nexus, row.revision, row.position, row.entry, row.mac)
        again.export()
        again.discard()
        again.export()
        assert load_outbox(store) == []
        assert len(list_alarms(tmp_path)) == number
    assert list_exported(tmp_path) == [(1, "a"), (2, "b")]


def test_a_true_row_beyond_the_store_is_refused(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """An authentic row of a store that had come further, as before it was put back, is none of this one."""
    change(store, "a")
    change(store, "b")
    write_rows(tmp_path / "nexus.db", "UPDATE meta SET revision = 1")
    make_exporter().export()
    assert list_exported(tmp_path) == [(1, "a")]
    (said,) = list_alarms(tmp_path)
    assert said.detail.endswith("the store is at revision 1")


def test_an_edited_row_is_refused_and_the_true_one_named_as_missing(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """Whoever replaces an entry before it is exported leaves two alarms."""
    exporter = make_exporter()
    exporter.take(change(store, "a")[0])
    forged = make_entry("forged").encode()
    assert write_rows(tmp_path / "nexus.db", "UPDATE audit_outbox SET entry = ?", forged) == 1
    exporter.export()
    refused, missing = list_alarms(tmp_path)
    assert make_digest("forged") in refused.detail
    assert missing.detail == f"revision 1 position 0, SHA-256 {make_digest('a')}"
    assert list_exported(tmp_path) == []


def test_a_removed_row_is_named_as_missing(store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path) -> None:
    """By this process from its own digests; by the next one because a revision after the head has no entry."""
    exporter = make_exporter()
    change(store, "a")
    exporter.export()
    exporter.discard()
    exporter.take(change(store, "b")[0])
    change(store, "c")
    assert write_rows(tmp_path / "nexus.db", "DELETE FROM audit_outbox WHERE revision = 2") == 1
    exporter.export()
    make_exporter().export()
    assert [entry.detail for entry in list_alarms(tmp_path)] == [
        f"revision 2 position 0, SHA-256 {make_digest('b')}",
        "1 of the changes from revision 2 to 3",
    ]


def test_a_removed_entry_of_several_is_named_as_missing(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """The entries of one change are numbered."""
    change(store, "a", "b", "c")
    assert write_rows(tmp_path / "nexus.db", "DELETE FROM audit_outbox WHERE position = 1") == 1
    make_exporter().export()
    assert [entry.detail for entry in list_alarms(tmp_path)] == ["revision 1 position 1"]


def test_rows_of_an_older_program_are_adopted_once(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """The change that ends the first format gives them a MAC; they are exported with a note, and later ones refused."""
    change(store, "a")
    write_rows(tmp_path / "nexus.db", "UPDATE audit_outbox SET nexus = '', mac = NULL")
    for revision, position in ((-7, 0), (1, -1), (2, 0)):
        forge(tmp_path / "nexus.db", revision, position, mac=None)
    adopt = functools.partial(adopt_rows, key=FixedKey(), heir=FixedKey(), timelines=(1, 1), takes_unmarked=True)
    store.write(adopt, counts=False)
    exporter = make_exporter()
    exporter.export()
    exporter.discard()
    assert list_exported(tmp_path) == [(1, "a")]
    noted, refused = list_alarms(tmp_path)
    assert (noted.action, noted.detail[:9]) == ("audit.unmarked-rows", "1 entries")
    assert refused.detail.endswith("; and 2 more")
    for again in (exporter, make_exporter()):
        forge(tmp_path / "nexus.db", 1, mac=None)
        again.export()
        again.discard()
        assert list_exported(tmp_path) == [(1, "a")]
        assert load_outbox(store) == []


def test_rows_that_wait_when_a_timeline_begins_are_of_it(
    store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path
) -> None:
    """Those of a history that was given up are not, wherever they are put."""
    (row,) = change(store, "a")
    (lost,) = change(store, "lost")
    write_rows(tmp_path / "nexus.db", "UPDATE meta SET revision = 1")

    def begin(writer: Writer) -> None:
        adopt_rows(writer, FixedKey(), FixedKey(), timelines=(1, 2), takes_unmarked=False)
        writer.save_meta(replace(writer.load_meta(), timeline=2))
        append(writer, make_entry("accepted").encode())

    store.write(begin)
    sql = "UPDATE audit_outbox SET entry = ?, mac = ? WHERE revision = ?"
    exporter = make_exporter()
    write_rows(tmp_path / "nexus.db", sql, lost.entry, lost.mac, lost.revision)
    exporter.take(row)
    exporter.export()
    assert list_exported(tmp_path) == [(1, "a")]
    (refused,) = list_alarms(tmp_path)
    assert make_digest("lost") in refused.detail


def test_rows_of_another_nexus_stay(store: SqliteStore, make_exporter: MakeExporter, tmp_path: Path) -> None:
    """Each nexus exports its own."""
    change(store, "a")
    write_rows(tmp_path / "nexus.db", "UPDATE audit_outbox SET nexus = 'nexus-2'")
    exporter = make_exporter()
    exporter.export()
    exporter.discard()
    assert list_exported(tmp_path) == []
    with store.read() as reader:
        assert len(reader.load_audit("nexus-2", limit=9)) == 1


# Without a key
