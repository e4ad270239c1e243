"""What every backend of the store has to do about positions and commits. A test of a backend derives from it."""

import dataclasses

import pytest

from common.errors import StoreUnavailableError
from nexus.store.protocol import Meta, Phase, Position, Store, Writer
from tests.nexus.store.contract import CALLER, load_meta, make_row, put, threads


class _DeliberateError(Exception):
    """Raised by a change on purpose."""


class PositionContract:
    """Derive, and define `store`, as `tests.nexus.store.contract.StoreContract`."""

    def test_the_position_comes_with_a_version_or_alone(self, store: Store) -> None:
        """It is that of the state that is read, whether the version is there or not, and of no read before."""
        meta = Meta(Phase.INITIALISED, b"c" * 16, False, 2, 0, 7, 3, 4, 5, 6, 8, generation=9, kek_id=3)
        store.write(lambda writer: writer.save_meta(meta))
        put(store, make_row("a"))
        for version, is_there in ((0, True), (1, True), (2, False)):
            with store.read() as reader:
                assert (reader.load_version("a", version) is not None) is is_there
                assert reader.load_position() == Position(2, 2, 7, 8, 9, 3)
        put(store, make_row("a", 2))
        with store.read() as reader:
            assert reader.load_position() == Position(2, 3, 7, 8, 9, 3) == reader.load_meta().position

    def test_a_change_knows_where_the_store_stood_before(self, store: Store) -> None:
        """That is what it builds on, whatever it saves itself."""
        meta = Meta(Phase.INITIALISED, b"c" * 16, False, 2, 0, 7, 3, 4, 5, 6, 8)
        store.write(lambda writer: writer.save_meta(meta))

        def change(writer: Writer) -> Position:
            writer.load_version("a", 0)
            flipped = dataclasses.replace(meta, timeline=3, control_revision=8, epoch=20, generation=2, kek_id=5)
            writer.save_meta(flipped)
            assert writer.load_position() == Position(3, 1, 8, 20, 2, 5)
            return writer.basis

        assert store.write(change) == Position(2, 1, 7, 8)
        assert store.write(lambda writer: writer.basis) == Position(3, 2, 8, 20, 2, 5)

    def test_no_version_is_inserted_under_another_kek_than_the_current_one(self, store: Store) -> None:
        """The change is lost, even if it catches that. A store that names no KEK, as an older one, takes any."""
        put(store, make_row("a"))  # under KEK 3
        store.write(lambda writer: writer.save_meta(dataclasses.replace(writer.load_meta(), kek_id=4)))

        def stubborn(writer: Writer) -> None:
            with pytest.raises(StoreUnavailableError):
                writer.insert_version(make_row("a", 2), caller=CALLER)

        with pytest.raises(StoreUnavailableError, match="version is under KEK 3, want 4"):
            put(store, make_row("a", 2))
        with pytest.raises(StoreUnavailableError):
            store.write(stubborn)
        put(store, dataclasses.replace(make_row("a", 2), kek_id=4))

    def test_the_epoch_never_goes_down(self, store: Store) -> None:
        """A change that lowers it is lost."""
        meta = Meta(Phase.EMPTY, b"", False, 0, 0, 0, 0, 0, 0, 0, 5)
        store.write(lambda writer: writer.save_meta(meta))
        with pytest.raises(StoreUnavailableError, match="epoch went down from 5 to 4"):
            store.write(lambda writer: writer.save_meta(dataclasses.replace(meta, epoch=4)))
        assert load_meta(store).epoch == 5

    def test_what_is_committed_is_told_before_the_next_change_begins(self, store: Store) -> None:
        """With what the change returned; a change that raises is not told."""
        told: list[int] = []

        def change(writer: Writer) -> int:
            seen.append(tuple(told))
            return writer.revision

        def fail(writer: Writer) -> int:
            raise _DeliberateError

        seen: list[tuple[int, ...]] = []
        for _ in range(2):
            store.write(change, on_commit=told.append)
        with pytest.raises(_DeliberateError):
            store.write(fail, on_commit=told.append)
        assert (seen, told) == ([(), (1,)], [1, 2])

    def test_a_change_that_is_alone_builds_on_what_was_told(self, store: Store) -> None:
        """Beside changes that share their commits, what comes before it is committed and told."""
        told: list[int] = []

        def change(writer: Writer) -> int:
            assert told == sorted(told)
            alone.append(len(told) == writer.basis.revision)
            return writer.revision

        def work(name: int) -> None:
            for _ in range(20):
                store.write(lambda writer: writer.revision, on_commit=told.append)
                store.write(change, alone=True, on_commit=told.append)

        alone: list[bool] = []
        with threads(work, 4):
            pass
        assert (len(alone), all(alone), told) == (80, True, list(range(1, 161)))
