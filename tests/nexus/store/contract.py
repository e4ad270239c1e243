"""What every backend of the store has to do. A test of a backend derives from `StoreContract` and gives `store`."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ConflictError, StoreUnavailableError
from nexus.store.protocol import (
    ControlRow,
    MadeByRequest,
    Meta,
    OutboxRow,
    Phase,
    RequestRow,
    SecretRow,
    Store,
    VersionRow,
    VersionStamp,
    Writer,
)
from tests.kit.patience import join

CALLER = "spiffe://example.org/ns/payments/sa/api"
NEXUS = "nexus-1"
INCARNATION = b"i" * 16

segments = st.text("-./0aZ_", min_size=1, max_size=3).map(lambda text: text.replace("/", "0"))
paths = st.lists(segments, min_size=1, max_size=3).map("/".join)


def make_row(path: str, version: int = 1, *, incarnation: bytes = INCARNATION, created_at: int = 1_000) -> VersionRow:
    """Make a row that tells by its bytes which one it is."""
    mark = f"{path}:{version}".encode()
    return VersionRow(path, incarnation, version, 3, b"d" * 16, b"wrap " + mark, b"value " + mark, created_at, False)


def request(number: int) -> bytes:
    """Make a request id."""
    return number.to_bytes(16, "big")


def make_request(
    number: int, versions: tuple[int, ...] = (1,), *, caller: str = CALLER, revision: int = 1, made_at: int = 1_000
) -> RequestRow:
    """Make the row of a request that put these versions of the secret a."""
    made = MadeByRequest(INCARNATION, versions, revision)
    return RequestRow(request(number), caller, "PutSecret", "a", 1, b"m" * 32, made, made_at)


def save(store: Store, *rows: RequestRow) -> None:
    """Save requests in a change of their own."""

    def change(writer: Writer) -> None:
        for row in rows:
            writer.save_request(row)

    store.write(change)


def put(store: Store, row: VersionRow, *, request_id: bytes = b"") -> int:
    """Insert *row* in a change of its own, for a request if there is an id, and return the revision of that."""

    def change(writer: Writer) -> int:
        writer.insert_version(row, caller=CALLER)
        if request_id:
            made = MadeByRequest(row.incarnation, (row.version,), writer.revision)
            asked = (request_id, CALLER, "PutSecret", row.path, 1, b"m" * 32)
            writer.save_request(RequestRow(*asked, made, row.created_at))
        writer.append_audit(NEXUS, f"put {row.path} {row.version}".encode(), make_mac)
        return writer.revision

    return store.write(change)


def make_mac(revision: int, position: int) -> bytes:
    """Make what stands for the MAC of an outbox row."""
    return revision.to_bytes(16, "big") + position.to_bytes(16, "big")


def load_audit(store: Store, *, limit: int = 1_000_000, after: tuple[int, int] | None = None) -> list[OutboxRow]:
    """Load the outbox."""
    with store.read() as reader:
        return reader.load_audit(NEXUS, limit=limit, after=after)


def load_meta(store: Store) -> Meta:
    """Load the meta row."""
    with store.read() as reader:
        return reader.load_meta()


class _DeliberateError(Exception):
    pass


class StoreContract:
    """Derive, and define `store`."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        """An empty store."""
        raise NotImplementedError

    def test_empty_store(self, store: Store) -> None:
        """A new store holds nothing, and says so."""
        assert load_meta(store) == Meta(Phase.EMPTY, b"", False, 0, 0, 0, 0, 0, 0, 0, 0)
        with store.read() as reader:
            assert reader.is_empty()
            assert reader.load_controls() == []
            assert reader.load_control("policy", "x") is None
            assert reader.load_secret("a") is None
            assert reader.load_version("a", 0) is None
            assert reader.load_version("a", 1) is None
            assert reader.load_live_versions("a") == []
            assert reader.list_secrets("", after="", limit=10) == []
            assert reader.find_request(CALLER, request(1)) is None
        assert load_audit(store) == []

    def test_meta_is_replaced_but_for_the_revision(self, store: Store) -> None:
        """save_meta stores every field as given, except the revision, which the store counts."""
        meta = Meta(Phase.INITIALISED, b"c" * 16, True, 2, 99, 7, 3, 4, 5, 6, 8, 9, 10)

        def change(writer: Writer) -> Meta:
            writer.save_meta(meta)
            return writer.load_meta()

        assert store.write(change).control_revision == 7
        assert load_meta(store) == dataclasses.replace(meta, revision=1)

    def test_each_change_takes_the_next_revision(self, store: Store) -> None:
        """A change sees its own revision, and the store has it afterwards; a failed change takes none."""

        def fail(writer: Writer) -> None:
            writer.insert_version(make_row("b"), caller=CALLER)
            raise _DeliberateError

        assert put(store, make_row("a")) == 1
        with pytest.raises(_DeliberateError):
            store.write(fail)
        assert store.write(lambda writer: writer.revision) == 2
        assert load_meta(store).revision == 2

    def test_a_change_that_raises_leaves_nothing(self, store: Store) -> None:
        """Rows, control rows, meta and audit of a change that raises are gone, and the error comes out as it is."""
        put(store, make_row("a"))
        error = ConflictError("version 1, want 2")

        def change(writer: Writer) -> None:
            writer.save_meta(dataclasses.replace(writer.load_meta(), timeline=9))
            writer.save_control(ControlRow("policy", "p", b"body", b"d" * 32))
            writer.insert_version(make_row("a", 2), caller=CALLER)
            writer.save_request(make_request(1))
            writer.append_audit(NEXUS, b"never", make_mac)
            writer.delete_secret("a")
            raise error

        with pytest.raises(ConflictError) as caught:
            store.write(change)
        assert caught.value is error
        assert load_meta(store).timeline == 0
        assert [row.entry for row in load_audit(store)] == [b"put a 1"]
        with store.read() as reader:
            assert reader.load_controls() == []
            assert reader.load_version("a", 0) == make_row("a")
            assert reader.find_request(CALLER, request(1)) is None

    def test_a_writer_reads_what_it_wrote(self, store: Store) -> None:
        """Reads inside a change see the change."""

        def change(writer: Writer) -> None:
            writer.insert_version(make_row("a"), caller=CALLER)
            writer.save_request(make_request(1))
            assert writer.load_version("a", 0) == make_row("a")
            assert writer.load_secret("a") == SecretRow("a", INCARNATION, 1, 1_000)
            assert writer.find_request(CALLER, request(1)) == make_request(1)

        store.write(change)

    def test_control_rows(self, store: Store) -> None:
        """Control rows are created, replaced, deleted, and listed by kind and name."""
        rows = [ControlRow(kind, name, b"1", b"d" * 32) for kind, name in [("b", "a"), ("a", "b"), ("a", "a")]]
        newer = ControlRow("a", "b", b"2", b"e" * 32)

        def save(writer: Writer) -> None:
            for row in rows:
                writer.save_control(row)
            writer.save_control(newer)

        store.write(save)
        with store.read() as reader:
            assert reader.load_controls() == [rows[2], newer, rows[0]]
            assert reader.load_control("a", "b") == newer
        assert store.write(lambda writer: writer.delete_control("a", "b")) is True
        assert store.write(lambda writer: writer.delete_control("a", "b")) is False
        with store.read() as reader:
            assert reader.load_controls() == [rows[2], rows[0]]

    def test_a_control_change_without_a_control_revision_is_refused(self, store: Store) -> None:
        """Once the cluster is initialised, each control row needs a new manifest: the store holds the core to it."""
        row = ControlRow("policy", "p", b"", b"d" * 32)
        store.write(lambda writer: writer.save_meta(dataclasses.replace(writer.load_meta(), phase=Phase.INITIALISED)))

        with pytest.raises(StoreUnavailableError, match="control revision"):
            store.write(lambda writer: writer.save_control(row))

        def change(writer: Writer) -> None:
            writer.save_control(row)
            writer.save_meta(dataclasses.replace(writer.load_meta(), control_revision=1))

        store.write(change)
        with store.read() as reader:
            assert reader.load_controls() == [row]

    def test_versions(self, store: Store) -> None:
        """Each version is found by its number, the newest also as 0."""
        for version in (1, 2, 3):
            put(store, make_row("a", version, created_at=version))
        put(store, make_row("a/b"))
        with store.read() as reader:
            assert [reader.load_version("a", version) for version in (1, 2, 3)] == [
                make_row("a", version, created_at=version) for version in (1, 2, 3)
            ]
            assert reader.load_version("a", 0) == make_row("a", 3, created_at=3)
            assert reader.load_version("a", 4) is None
            assert reader.load_secret("a") == SecretRow("a", INCARNATION, 3, 3)

    @pytest.mark.parametrize(
        "row",
        [
            pytest.param(make_row("a", 1), id="a version that is there"),
            pytest.param(make_row("a", 4), id="a version too far"),
            pytest.param(make_row("a", 3, incarnation=b"j" * 16), id="another incarnation"),
            pytest.param(make_row("b", 2), id="a first version that is not 1"),
        ],
    )
    def test_only_the_next_version_is_inserted(self, store: Store, row: VersionRow) -> None:
        """Anything but the next version of the incarnation is refused, and the change is lost even if it goes on."""
        put(store, make_row("a", 1))
        put(store, make_row("a", 2))

        def stubborn(writer: Writer) -> None:
            with pytest.raises(StoreUnavailableError):
                writer.insert_version(row, caller=CALLER)

        with pytest.raises(StoreUnavailableError):
            put(store, row)
        with pytest.raises(StoreUnavailableError):
            store.write(stubborn)
        assert load_meta(store).revision == 2

    def test_deleted_versions(self, store: Store) -> None:
        """A deleted version is returned and says so; a secret without a live one is not listed, but still there."""
        for version in (1, 2):
            put(store, make_row("a", version))

        def delete(*versions: int) -> Callable[[Writer], None]:
            return lambda writer: writer.mark_deleted("a", versions, caller=CALLER, updated_at=5_000)

        store.write(delete(2))
        with store.read() as reader:
            assert reader.load_version("a", 0) == dataclasses.replace(make_row("a", 2), deleted=True)
            assert reader.load_live_versions("a") == [1]
            assert [row.path for row in reader.list_secrets("", after="", limit=9)] == ["a"]
        store.write(delete(1))
        with store.read() as reader:
            assert reader.load_live_versions("a") == []
            assert reader.list_secrets("", after="", limit=9) == []
            assert reader.load_secret("a") == SecretRow("a", INCARNATION, 2, 5_000)
        for versions in [(1,), (3,)]:
            with pytest.raises(StoreUnavailableError):
                store.write(delete(*versions))
        put(store, make_row("a", 3))
        with store.read() as reader:
            assert [row.path for row in reader.list_secrets("", after="", limit=9)] == ["a"]

    def test_stamps_say_which_change_wrote_a_version(self, store: Store) -> None:
        """Of every version, deleted ones as well, by path and number, in pages of any size."""
        put(store, make_row("b"))
        put(store, make_row("a"))
        put(store, make_row("a", 2, created_at=500))
        store.write(lambda writer: writer.mark_deleted("a", [2], caller=CALLER))
        put(store, make_row("a", 3))
        whole = [
            VersionStamp("a", 1, 2, 1_000, False),
            VersionStamp("a", 2, 3, 500, True),
            VersionStamp("a", 3, 5, 1_000, False),
            VersionStamp("b", 1, 1, 1_000, False),
        ]
        for limit in range(1, 6):
            found, after = list[VersionStamp](), ("", 0)
            with store.read() as reader:
                while page := reader.list_stamps(after=after, limit=limit):
                    assert len(page) <= limit
                    assert page[0][:2] > after
                    found += page
                    after = page[-1].path, page[-1].version
            assert found == whole
        with store.read() as reader:
            assert reader.list_stamps(after=("a", 2**63 - 1), limit=9) == whole[3:]

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda w: w.save_control(ControlRow("policy", "p", b"", b"d" * 32)), id="control row"),
            pytest.param(lambda w: w.insert_version(make_row("a"), caller=CALLER), id="secret"),
        ],
    )
    def test_a_store_with_any_row_is_not_empty(self, store: Store, change: Callable[[Writer], None]) -> None:
        """One row makes the store not empty, whatever the meta row says."""
        store.write(change)
        with store.read() as reader:
            assert not reader.is_empty()

    def test_a_new_incarnation_follows_a_deleted_secret(self, store: Store) -> None:
        """delete_secret removes all rows of one secret, and a new incarnation begins at version 1."""
        for version in (1, 2):
            put(store, make_row("a", version))
        put(store, make_row("ab"))

        def delete_all(writer: Writer) -> None:
            writer.mark_deleted("a", [1], caller=CALLER)
            writer.delete_secret("a")

        store.write(delete_all)
        with store.read() as reader:
            assert reader.load_secret("a") is None
            assert reader.load_version("a", 0) is None
            assert reader.load_version("ab", 0) == make_row("ab")
        put(store, make_row("a", incarnation=b"j" * 16))
        with store.read() as reader:
            assert reader.load_version("a", 0) == make_row("a", incarnation=b"j" * 16)

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            pytest.param("", ["a", "a-b", "a.b", "a/b", "a/b/c", "a/c", "a0", "b"], id="all"),
            pytest.param("a", ["a", "a/b", "a/b/c", "a/c"], id="whole segments only"),
            pytest.param("a/b", ["a/b", "a/b/c"], id="a secret and what is below it"),
            pytest.param("a/b/c", ["a/b/c"], id="a secret alone"),
            pytest.param("A", [], id="case counts"),
            pytest.param("a/b/", [], id="not a prefix of segments"),
        ],
    )
    def test_listing(self, store: Store, prefix: str, expected: list[str]) -> None:
        """Listing goes by whole segments, in byte order."""
        for path in ["b", "a/c", "a0", "a.b", "a-b", "a", "a/b/c", "a/b"]:
            put(store, make_row(path))
        with store.read() as reader:
            assert [row.path for row in reader.list_secrets(prefix, after="", limit=100)] == expected
            pages, after = [], ""
            while page := reader.list_secrets(prefix, after=after, limit=1):
                pages += [row.path for row in page]
                after = page[-1].path
            assert pages == expected
            assert reader.list_secrets(prefix, after="", limit=0) == []

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(st.sets(paths, max_size=12), paths | st.just(""), paths | st.just(""), st.integers(1, 5))
    def test_listing_equals_its_definition(
        self, store: Store, secrets: set[str], prefix: str, after: str, limit: int
    ) -> None:
        """For any paths: those at the prefix or below it, after *after*, by their bytes, the first *limit*."""

        def refill(writer: Writer) -> None:
            for row in writer.list_secrets("", after="", limit=1_000):
                writer.delete_secret(row.path)
            for path in secrets:
                writer.insert_version(make_row(path), caller=CALLER)

        store.write(refill)
        wanted = [path for path in secrets if not prefix or path == prefix or path.startswith(f"{prefix}/")]
        wanted = sorted((path for path in wanted if path.encode() > after.encode()), key=str.encode)[:limit]
        with store.read() as reader:
            assert [row.path for row in reader.list_secrets(prefix, after=after, limit=limit)] == wanted

    def test_a_read_sees_one_state(self, store: Store) -> None:
        """A read goes on with the state that its first query saw, whatever is committed meanwhile."""
        put(store, make_row("a"))
        with store.read() as reader:
            before = reader.load_meta()
            put(store, make_row("a", 2))
            assert reader.load_meta() == before
            assert reader.load_version("a", 0) == make_row("a")
        with store.read() as reader:
            assert reader.load_version("a", 0) == make_row("a", 2)

    def test_writers_at_once(self, store: Store) -> None:
        """Each of many threads' changes takes its own revision; those that raise take none and undo only theirs."""
        revisions: list[int] = []
        refused: list[str] = []

        def work(name: int) -> None:
            for version in range(1, 11):
                revisions.append(put(store, make_row(f"w{name}", version)))
                try:
                    put(store, make_row(f"w{name}", version))
                except StoreUnavailableError:
                    refused.append(f"w{name}")

        with threads(work, 8):
            pass
        assert sorted(revisions) == list(range(1, 81))
        assert len(refused) == 80
        assert load_meta(store).revision == 80
        with store.read() as reader:
            assert [reader.load_live_versions(f"w{name}") for name in range(8)] == [list(range(1, 11))] * 8

    def test_readers_beside_writers(self, store: Store) -> None:
        """A reader sees secrets and revision of the same state, while others write."""
        done = threading.Event()
        seen: list[tuple[int, int]] = []

        def work(name: int) -> None:
            if name == 0:
                for version in range(1, 101):
                    put(store, make_row("a", version))
                done.set()
            while not done.is_set():
                with store.read() as reader:
                    row = reader.load_version("a", 0)
                    seen.append((row.version if row else 0, reader.load_meta().revision))

        with threads(work, 4):
            pass
        assert {version - revision for version, revision in seen} == {0}

    def test_a_closed_store_refuses(self, store: Store) -> None:
        """After close every call is refused; a second close does nothing."""
        store.close()
        store.close()
        with pytest.raises(StoreUnavailableError, match="closed"):
            load_meta(store)
        with pytest.raises(StoreUnavailableError, match="closed"):
            put(store, make_row("a"))
        with pytest.raises(StoreUnavailableError, match="closed"):
            store.discard_audit([])


@contextmanager
def threads(work: Callable[[int], None], count: int) -> Iterator[None]:
    """Run *work* on *count* threads, and raise what one of them raised."""
    errors: list[BaseException] = []

    def run(name: int) -> None:
        try:
            work(name)
        except BaseException as exc:
            errors.append(exc)
            raise

    running = [threading.Thread(target=run, args=(name,)) for name in range(count)]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        join(thread, 60)
        assert not thread.is_alive()
    for error in errors:
        raise error
