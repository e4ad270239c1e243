"""What every backend does with versions that are undeleted, destroyed or pruned. Derive from `VersionsContract`."""

from collections.abc import Callable

import pytest

from common.errors import StoreUnavailableError
from nexus.store.protocol import HistoryRow, ListedSecret, SecretRow, Store, VersionState, Writer
from tests.kit.patience import at_most
from tests.nexus.store.contract import CALLER, INCARNATION, make_row, put


class _DeliberateError(Exception):
    pass


class VersionsContract:
    """Derive, and define `store`, as `tests.nexus.store.contract.StoreContract`."""

    def test_undeleted_versions(self, store: Store) -> None:
        """A mark is taken off as if it had never been; what has none is refused."""
        for version in (1, 2):
            put(store, make_row("a", version))
        store.write(lambda writer: writer.mark_deleted("a", [1, 2], caller=CALLER))
        store.write(lambda writer: writer.undelete("a", [2]))
        with store.read() as reader:
            assert reader.load_version("a", 0) == make_row("a", 2)
            assert reader.load_live_versions("a") == [2]
            assert [row.newest_live_version for row in reader.list_secrets("", after="", limit=9)] == [2]

        def undelete(*versions: int) -> Callable[[Writer], None]:
            return lambda writer: writer.undelete("a", versions)

        for versions in [(2,), (1, 2), (3,)]:
            with pytest.raises(StoreUnavailableError, match="not marked as deleted"):
                store.write(undelete(*versions))
        store.write(lambda writer: writer.mark_deleted("a", [2], caller=CALLER))  # and can be marked again

    def test_destroyed_versions(self, store: Store) -> None:
        """They are in the history and nowhere else; a live one and a deleted one alike."""
        for version in (1, 2, 3):
            put(store, make_row("a", version, created_at=version))
        store.write(lambda writer: writer.mark_deleted("a", [1], caller=CALLER))
        store.write(lambda writer: writer.destroy("a", [1, 3], caller=CALLER, destroyed_at=9))
        with store.read() as reader:
            assert [reader.load_version("a", version) for version in (0, 1, 3)] == [None, None, None]
            assert reader.load_version("a", 2) == make_row("a", 2, created_at=2)
            assert reader.load_live_versions("a") == reader.load_kept_versions("a") == [2]
            assert reader.load_history("a", limit=9) == [
                HistoryRow(3, VersionState.DESTROYED, 3, 9),
                HistoryRow(2, VersionState.LIVE, 2, 0),
                HistoryRow(1, VersionState.DESTROYED, 1, 9),
            ]
            assert [stamp.version for stamp in reader.list_stamps(after=("", 0), limit=9)] == [2]
            assert reader.list_secrets("", after="", limit=9) == [ListedSecret("a", INCARNATION, 3, 3, 2)]

        def destroy(*versions: int) -> Callable[[Writer], None]:
            return lambda writer: writer.destroy("a", versions, caller=CALLER, destroyed_at=9)

        for versions in [(1,), (2, 3), (4,)]:
            with pytest.raises(StoreUnavailableError, match="has no row"):
                store.write(destroy(*versions))
        put(store, make_row("a", 4))
        with store.read() as reader:
            assert reader.load_version("a", 0) == make_row("a", 4)

    def test_a_secret_of_which_all_is_destroyed_is_listed_nowhere(self, store: Store) -> None:
        """One of which all is deleted is, where deleted ones are asked for."""
        for path in ("a", "b", "c"):
            put(store, make_row(path))
        store.write(lambda writer: writer.mark_deleted("a", [1], caller=CALLER))
        store.write(lambda writer: writer.destroy("b", [1], caller=CALLER, destroyed_at=9))
        with store.read() as reader:
            shown = reader.list_secrets("", after="", limit=9, include_deleted=True)
            assert [(row.path, row.newest_live_version) for row in shown] == [("a", 0), ("c", 1)]
            assert [row.path for row in reader.list_secrets("", after="", limit=9)] == ["c"]
            assert [row.path for row in reader.list_secrets("a", after="", limit=9, include_deleted=True)] == ["a"]

    def test_pruned_versions(self, store: Store) -> None:
        """Nothing of them is kept, not even that they were destroyed; never the current one."""
        for version in range(1, 6):
            put(store, make_row("a", version))
        store.write(lambda writer: writer.mark_deleted("a", [2], caller=CALLER))
        store.write(lambda writer: writer.destroy("a", [1], caller=CALLER, destroyed_at=9))
        store.write(lambda writer: writer.prune("a", below=4))
        with store.read() as reader:
            assert [reader.load_version("a", version) for version in (1, 2, 3)] == [None] * 3
            assert [row.version for row in reader.load_history("a", limit=9)] == [5, 4]
            assert reader.load_history("a", before=4, limit=9) == []
            assert reader.load_kept_versions("a") == reader.load_live_versions("a") == [4, 5]
            secret = reader.load_secret("a")
            assert secret is not None
            assert (secret.first_version, secret.current_version) == (4, 5)
        with pytest.raises(StoreUnavailableError, match="above the current one"):
            store.write(lambda writer: writer.prune("a", below=6))

    def test_the_limit_of_a_secret_is_kept_with_it(self, store: Store) -> None:
        """0, as the configuration says, until it is set."""
        put(store, make_row("a"))
        store.write(lambda writer: writer.save_max_versions("a", 7))
        put(store, make_row("a", 2))
        with store.read() as reader:
            secret = reader.load_secret("a")
        assert secret == SecretRow("a", INCARNATION, 2, 1_000, max_versions=7)

    def test_a_history_in_pages(self, store: Store) -> None:
        """The newest first, from any version on, as many as are asked for."""
        for version in range(1, 8):
            put(store, make_row("a", version))
        store.write(lambda writer: writer.destroy("a", [2, 5], caller=CALLER, destroyed_at=9))
        store.write(lambda writer: writer.mark_deleted("a", [6], caller=CALLER))
        with store.read() as reader:
            whole = reader.load_history("a", limit=99)
            assert [row.version for row in whole] == [7, 6, 5, 4, 3, 2, 1]
            assert "".join(row.state[:2] for row in whole) == "lidedelilideli"
            for before in range(10):
                wanted = [row for row in whole if row.version < before]
                for limit in range(4):
                    assert reader.load_history("a", before=before, limit=limit) == wanted[:limit]
            assert reader.load_history("b", limit=9) == []

    def test_a_new_incarnation_keeps_nothing_of_what_was_destroyed(self, store: Store) -> None:
        """Its version 1 is another one."""
        for version in (1, 2):
            put(store, make_row("a", version))
        store.write(lambda writer: writer.destroy("a", [1, 2], caller=CALLER, destroyed_at=9))
        store.write(lambda writer: writer.delete_secret("a"))
        put(store, make_row("a", incarnation=b"j" * 16))
        with store.read() as reader:
            assert [row.state for row in reader.load_history("a", limit=9)] == [VersionState.LIVE]

    @pytest.mark.parametrize(
        ("change", "is_due"),
        [
            pytest.param(lambda w: w.destroy("a", [1], caller=CALLER, destroyed_at=1), True, id="destroy"),
            pytest.param(lambda w: w.prune("a", below=2), True, id="prune"),
            pytest.param(lambda w: w.delete_secret("a"), True, id="delete a secret"),
            pytest.param(lambda w: w.delete_secret("b"), False, id="delete a secret that is not there"),
            pytest.param(lambda w: w.mark_deleted("a", [1], caller=CALLER), False, id="mark as deleted"),
        ],
    )
    def test_a_scrub_is_due_once_versions_were_removed(
        self, store: Store, change: Callable[[Writer], None], is_due: bool
    ) -> None:
        """Until one has succeeded; a change that is undone removes nothing."""

        def fail(writer: Writer) -> None:
            change(writer)
            raise _DeliberateError

        for version in (1, 2):
            put(store, make_row("a", version))
        assert store.scrub(seconds=at_most(10))
        assert not store.is_scrub_due
        with pytest.raises(_DeliberateError):
            store.write(fail)
        assert not store.is_scrub_due
        store.write(change)
        assert store.is_scrub_due is is_due
        assert store.scrub(seconds=at_most(10))
        assert not store.is_scrub_due
