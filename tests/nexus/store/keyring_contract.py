"""What every backend of the store has to do for the keyring job. A test of a backend derives from it."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from common.errors import ConflictError, StoreUnavailableError
from nexus.store.protocol import Store, VersionRow, Writer
from nexus.store.rewrapping import QuarantineRow, Reseal, Rewrap, VersionKey, WrappedRow
from tests.nexus.store.contract import CALLER, load_meta, make_row, put

CURRENT = 5
EPOCH = 8
FOUND_AT = 7_000  # microseconds
OTHER = b"j" * 16  # another incarnation


def make_under(kek_id: int, path: str, version: int = 1, *, incarnation: bytes = b"i" * 16) -> VersionRow:
    """Make a row under this KEK."""
    return dataclasses.replace(make_row(path, version, incarnation=incarnation), kek_id=kek_id)


def fill(store: Store, *rows: VersionRow) -> None:
    """Insert rows under any KEK, and then go to `EPOCH` with the KEK `CURRENT`."""
    for row in rows:
        put(store, row)
    store.write(
        lambda writer: writer.save_meta(dataclasses.replace(writer.load_meta(), epoch=EPOCH, kek_id=CURRENT)),
        counts=False,
    )


def list_outdated(store: Store, kek_id: int = CURRENT) -> list[WrappedRow]:
    """List all that the job has to do."""
    with store.read() as reader:
        return reader.list_outdated(kek_id, limit=1_000)


def rewrap(rows: Sequence[WrappedRow], *, kek_id: int = CURRENT) -> list[Rewrap]:
    """Make a new wrap for each."""
    return [Rewrap(row, kek_id, b"new " + row.wrapped_dek) for row in rows]


def write(store: Store, change: Callable[[Writer], object]) -> object:
    """Run a change that takes no revision, as those of the job."""
    return store.write(change, counts=False)


def quarantine(store: Store, *rows: WrappedRow) -> None:
    """Put versions into quarantine."""

    def change(writer: Writer) -> None:
        for row in rows:
            assert writer.quarantine(row, reason="does not open", found_at=FOUND_AT)

    write(store, change)


def abandon(store: Store, key: VersionKey) -> object:
    """Give a version in quarantine up."""
    return write(store, lambda writer: writer.abandon_quarantined(key, by=CALLER))


def list_quarantine(store: Store) -> list[QuarantineRow]:
    """List the whole quarantine."""
    with store.read() as reader:
        return reader.list_quarantine(limit=1_000)


def has_undecided(store: Store) -> bool:
    """Whether somebody has to decide."""
    with store.read() as reader:
        return reader.has_undecided()


class KeyringContract:
    """Derive, and define `store`, as `tests.nexus.store.contract.StoreContract`."""

    def test_the_work_list_has_each_row_under_a_lower_kek_once(self, store: Store) -> None:
        """By KEK and row, in pages of any size; deleted versions too, and none under the current or a higher KEK."""
        keks = [3, 2, 5, 2, 4, 3, 6, 2]
        fill(store, *(make_under(kek_id, f"p{number}") for number, kek_id in enumerate(keks)))
        store.write(lambda writer: writer.mark_deleted("p0", [1], caller=CALLER))
        whole = list_outdated(store)
        assert [(row.kek_id, row.path) for row in whole] == [
            (2, "p1"),
            (2, "p3"),
            (2, "p7"),
            (3, "p0"),
            (3, "p5"),
            (4, "p4"),
        ]
        assert whole[0].key == VersionKey("p1", b"i" * 16, 1)
        assert (whole[0].dek_id, whole[0].wrapped_dek) == (b"d" * 16, b"wrap p1:1")
        for limit in (1, 2, 3, 4, 9):
            rows: list[WrappedRow] = []
            with store.read() as reader:
                after = None
                while page := reader.list_outdated(CURRENT, after=after, limit=limit):
                    assert len(page) <= limit
                    rows += page
                    after = (page[-1].kek_id, page[-1].row_id)
            assert rows == whole

    def test_every_row_is_scanned_in_the_order_of_row_ids(self, store: Store) -> None:
        """Whatever its KEK, and whether it is in quarantine or deleted."""
        fill(store, *(make_under(kek_id, f"p{kek_id}") for kek_id in (4, 2, 5, 3)))
        quarantine(store, *list_outdated(store)[:1])
        with store.read() as reader:
            whole = reader.scan_versions(limit=9)
            assert [row.path for row in whole] == ["p4", "p2", "p5", "p3"]
            assert [row.row_id for row in whole] == sorted(row.row_id for row in whole)
            assert reader.scan_versions(limit=2) == whole[:2]
            assert reader.scan_versions(after=whole[1].row_id, limit=1) == whole[2:3]

    def test_rows_are_counted_by_their_keks(self, store: Store) -> None:
        """Those in quarantine as well."""
        fill(store, *(make_under(kek_id, f"p{number}") for number, kek_id in enumerate([2, 3, 2, 5])))
        quarantine(store, list_outdated(store)[0])
        with store.read() as reader:
            assert reader.count_by_kek() == {2: 2, 3: 1, 5: 1}

    def test_a_wrap_is_replaced_where_it_is_as_it_was_read(self, store: Store) -> None:
        """Of a batch, the rows that somebody else was first at stay as they are; no revision is taken."""
        fill(store, *(make_under(2, path) for path in "abc"))
        revision = load_meta(store).revision
        rows = list_outdated(store)
        assert write(store, lambda writer: writer.rewrap(rewrap(rows[:1]), epoch=EPOCH)) == 1
        store.write(lambda writer: writer.delete_secret("b"))
        assert write(store, lambda writer: writer.rewrap(rewrap(rows), epoch=EPOCH)) == 1
        assert load_meta(store).revision == revision + 1
        with store.read() as reader:
            for path in "ac":
                found = reader.load_version(path, 1)
                wanted = dataclasses.replace(make_row(path), kek_id=CURRENT, wrapped_dek=f"new wrap {path}:1".encode())
                assert found == wanted
            assert reader.load_version("b", 1) is None
        assert list_outdated(store) == []

    def test_a_row_that_took_the_place_of_another_is_not_touched(self, store: Store) -> None:
        """The id of a deleted row is given out again; another wrap stands there."""
        fill(store, make_under(2, "a"))
        (row,) = list_outdated(store)
        store.write(lambda writer: writer.delete_secret("a"))
        put(store, make_under(CURRENT, "b"))
        with store.read() as reader:
            (now,) = reader.scan_versions(limit=9)
            assert now.row_id == row.row_id
            assert reader.load_value(row) is None
        assert write(store, lambda writer: writer.rewrap(rewrap([row]), epoch=EPOCH)) == 0
        assert write(store, lambda writer: writer.quarantine(row, reason="x", found_at=1)) is False

    def test_a_version_is_sealed_anew(self, store: Store) -> None:
        """DEK, wrap and value are replaced together, where they are as they were read."""
        fill(store, make_under(2, "a"), make_under(2, "b"))
        rows = list_outdated(store)
        with store.read() as reader:
            assert [reader.load_value(row) for row in rows] == [b"value a:1", b"value b:1"]
        seals = [Reseal(row, CURRENT, b"e" * 16, b"new wrap", b"new value") for row in rows]
        assert write(store, lambda writer: writer.reseal(seals[:1], epoch=EPOCH)) == 1
        assert write(store, lambda writer: writer.reseal(seals[:1], epoch=EPOCH)) == 0
        with store.read() as reader:
            assert reader.load_version("a", 1) == dataclasses.replace(
                make_row("a"), kek_id=CURRENT, dek_id=b"e" * 16, wrapped_dek=b"new wrap", value=b"new value"
            )
            assert reader.load_version("b", 1) == make_under(2, "b")

    @pytest.mark.parametrize("seals_anew", [False, True], ids=["rewrap", "reseal"])
    def test_the_job_changes_nothing_in_another_epoch_or_under_another_kek(
        self, store: Store, seals_anew: bool
    ) -> None:
        """The epoch is asserted first; a KEK that is not current loses the change, even if that is caught."""
        fill(store, make_under(2, "a"))
        rows = list_outdated(store)

        def replace(writer: Writer, kek_id: int, epoch: int) -> None:
            if seals_anew:
                writer.reseal([Reseal(row, kek_id, row.dek_id, b"w", b"v") for row in rows], epoch=epoch)
            else:
                writer.rewrap(rewrap(rows, kek_id=kek_id), epoch=epoch)

        def stubborn(writer: Writer) -> None:
            with pytest.raises(StoreUnavailableError):
                replace(writer, CURRENT - 1, EPOCH)

        for epoch in (EPOCH - 1, EPOCH + 1):
            with pytest.raises(ConflictError, match=f"store is at epoch {EPOCH}, want {epoch}"):
                write(store, partial(replace, kek_id=CURRENT, epoch=epoch))
        with pytest.raises(StoreUnavailableError, match=f"under KEK {CURRENT - 1}, want {CURRENT}"):
            write(store, lambda writer: replace(writer, CURRENT - 1, EPOCH))
        with pytest.raises(StoreUnavailableError):
            write(store, stubborn)
        assert list_outdated(store) == rows

    def test_what_is_in_quarantine_is_left_out_until_it_is_retried(self, store: Store) -> None:
        """It is listed with its reason, put there once, and is work again after a retry."""
        fill(store, *(make_under(2, path) for path in "abc"))
        first, second, third = list_outdated(store)
        quarantine(store, second, first)
        assert list_outdated(store) == [third]
        wanted = [QuarantineRow(row.key, 2, "does not open", FOUND_AT, "") for row in (first, second)]
        assert list_quarantine(store) == wanted
        with store.read() as reader:
            assert reader.list_quarantine(limit=1) == wanted[:1]
            assert reader.list_quarantine(after=first.key, limit=9) == wanted[1:]
            assert reader.list_quarantine(after=second.key, limit=9) == []
        assert write(store, lambda writer: writer.quarantine(first, reason="again", found_at=9)) is False
        assert list_quarantine(store) == wanted
        assert write(store, lambda writer: writer.retry_quarantined(first.key)) is True
        assert write(store, lambda writer: writer.retry_quarantined(first.key)) is False
        assert list_outdated(store) == [first, third]

    def test_a_version_that_changed_meanwhile_does_not_come_into_quarantine(self, store: Store) -> None:
        """What did not open is not what is there now."""
        fill(store, make_under(2, "a"))
        rows = list_outdated(store)
        write(store, lambda writer: writer.rewrap(rewrap(rows), epoch=EPOCH))
        assert write(store, lambda writer: writer.quarantine(rows[0], reason="x", found_at=1)) is False
        assert list_quarantine(store) == []

    def test_a_kek_is_free_when_all_under_it_is_gone_or_abandoned(self, store: Store) -> None:
        """In quarantine alone is not enough."""
        fill(store, make_under(2, "a"), make_under(2, "b"), make_under(3, "c"))
        first, second, other = list_outdated(store)

        def is_free(kek_id: int = 2) -> bool:
            return not store.write(lambda writer: writer.has_rows_under(kek_id), counts=False)

        quarantine(store, first, second)
        assert not is_free()
        assert abandon(store, first.key) is True
        assert not is_free()
        assert abandon(store, second.key) is True
        assert is_free()
        assert not is_free(3)
        assert is_free(4)
        with store.read() as reader:
            assert [reader.count_abandoned(kek_id) for kek_id in (2, 3)] == [2, 0]
        assert abandon(store, other.key) is False

    def test_a_version_is_abandoned_once_and_may_be_retried_after_all(self, store: Store) -> None:
        """Whoever gave it up first is named; a retry forgets it."""
        fill(store, make_under(2, "a"))
        (row,) = list_outdated(store)
        quarantine(store, row)
        assert abandon(store, row.key) is True
        assert write(store, lambda writer: writer.abandon_quarantined(row.key, by="another")) is False
        assert [one.abandoned_by for one in list_quarantine(store)] == [CALLER]
        assert write(store, lambda writer: writer.retry_quarantined(row.key)) is True
        assert list_outdated(store) == [row]
        with store.read() as reader:
            assert (reader.count_abandoned(2), reader.has_rows_under(2)) == (0, True)

    def test_a_version_is_undecided_until_it_is_abandoned_or_gone(self, store: Store) -> None:
        """Whatever its KEK."""
        fill(store, make_under(2, "p"), make_under(3, "q"))
        rows = list_outdated(store)
        assert not has_undecided(store)
        quarantine(store, *rows)
        assert has_undecided(store)
        abandon(store, rows[0].key)
        assert has_undecided(store)
        write(store, lambda writer: writer.delete_secret("q"))
        assert not has_undecided(store)

    def test_quarantine_ends_with_its_secret(self, store: Store) -> None:
        """A secret that is created anew is work, and keeps its KEK, whatever was abandoned of the one before."""
        fill(store)
        old = make_under(2, "a")
        store.write(lambda writer: writer.save_meta(dataclasses.replace(writer.load_meta(), kek_id=0)))
        put(store, old)
        put(store, make_under(2, "ab"))
        quarantine(store, *list_outdated(store))
        abandon(store, VersionKey("a", old.incarnation, 1))

        def create_anew(writer: Writer) -> None:
            writer.delete_secret("a")
            writer.insert_version(make_under(2, "a", incarnation=OTHER), caller=CALLER)

        store.write(create_anew)
        assert [row.key.path for row in list_quarantine(store)] == ["ab"]
        assert [row.incarnation for row in list_outdated(store)] == [OTHER]
        with store.read() as reader:
            assert reader.has_rows_under(2)
