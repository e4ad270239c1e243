"""A destroy answers once nothing of the versions is in the files of the store, or says that it may be."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import NotFoundError, NotScrubbedError, StoreUnavailableError
from nexus.policy.rules import Permission, Policy
from nexus.store.protocol import MadeByRequest, Store, VersionRow
from nexus.store.scrubs import AGAIN_S, LOOK_S, LateScrubs
from nexus.vault import scrubbing
from nexus.vault.expected import Expected
from nexus.vault.scrubbing import SharedScrub
from tests.kit.manual_clock import ManualClock
from tests.kit.patience import at_most
from tests.kit.waiting import wait_until
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import APP, NexusCore
from tests.nexus.failing_store import FailingStore
from tests.nexus.store.contract import CALLER, make_row
from tests.nexus.store.contract import put as insert

ANY = Expected()
PATH = "team/app/db"
LONG_S = at_most(10)
TEAM = Policy(
    name="team", spiffe_ids=("spiffe://example.org/team/*",), paths=("team/**",), permissions=tuple(Permission)
)


@pytest.fixture
def nexus(make_nexus: MakeNexus, failing: FailingStore) -> NexusCore:
    """A ready one; APP may do everything below team/. Its store fails when a test says so."""
    return make_nexus(TEAM, store=failing)


def put(nexus: NexusCore, size: int = 200, *, path: str = PATH) -> VersionRow:
    """Put a version with a value of *size* bytes, and return how it is stored."""
    made = nexus.vault.put(APP, path, {"value": os.urandom(size)}, ANY, os.urandom(16))
    with nexus.store.read() as reader:
        row = reader.load_version(path, made.versions[0])
    assert row is not None
    return row


def destroy(nexus: NexusCore, *versions: int, path: str = PATH, request_id: bytes = b"") -> MadeByRequest:
    return nexus.vault.destroy(APP, path, versions, ANY, request_id or os.urandom(16))


def find_remains(folder: Path, *rows: VersionRow) -> list[str]:
    """Search database, WAL and journal for values and wrapped DEKs, in pieces: an overflow page splits them."""
    found = []
    for path in folder.glob("nexus.db*"):
        content = path.read_bytes()
        for row in rows:
            for name, whole in (("value", row.value), ("wrapped DEK", row.wrapped_dek)):
                if any(whole[at : at + 16] in content for at in range(0, len(whole) - 16, 16)):
                    found.append(f"{name} of {row.version} in {path.name}")
    return found


def test_nothing_of_a_destroyed_version_is_in_the_files_after_the_answer(nexus: NexusCore, tmp_path: Path) -> None:
    """Of small and large values, with a read that was open before it and ended; what stays is there."""
    rows = [put(nexus, size) for size in (20, 200, 20_000, 300)]
    with nexus.store.read() as reader:
        reader.load_version(PATH, 1)
        assert len(find_remains(tmp_path, *rows)) >= 2 * len(rows)  # else the search proves nothing
    destroy(nexus, 1, 2, 3)
    assert find_remains(tmp_path, *rows[:3]) == []
    assert len(find_remains(tmp_path, rows[3])) == 2


def test_a_read_that_stays_open_is_waited_for(nexus: NexusCore, tmp_path: Path) -> None:
    """It sees what it began with; the answer comes when it has ended, and nothing is left then."""
    row = put(nexus)
    with ThreadPoolExecutor() as pool:
        with nexus.store.read() as reader:
            reader.load_secret(PATH)
            answer = pool.submit(destroy, nexus, 1)
            wait_until(lambda: nexus.store.unscrubbed == "somebody reads the database")
            assert reader.load_version(PATH, 1) == row
            assert not answer.done()
        assert answer.result(LONG_S).versions == (1,)
    assert find_remains(tmp_path, row) == []


def test_a_destroy_that_is_not_scrubbed_says_so_and_can_be_repeated(
    nexus: NexusCore, failing: FailingStore, tmp_path: Path
) -> None:
    """The versions are destroyed all the same; the same request scrubs again before it answers."""
    row, request_id = put(nexus), os.urandom(16)
    put(nexus)
    failing.cannot_scrub = True
    for _ in range(2):
        with pytest.raises(NotScrubbedError, match=f"^{PATH}: destroyed, but the files may have it yet") as caught:
            destroy(nexus, 1, request_id=request_id)
    assert caught.value.reason == "NOT_SCRUBBED"
    with pytest.raises(NotFoundError, match="version 1 was destroyed"):
        nexus.vault.get(APP, PATH, 1)
    assert find_remains(tmp_path, row) != []
    failing.cannot_scrub = False
    assert destroy(nexus, 1, request_id=request_id).versions == (1,)
    assert find_remains(tmp_path, row) == []
    assert [entry.outcome for _, entry in nexus.list_change_entries() if entry.action == "secret.destroy"] == ["ok"]


def test_a_copy_that_is_being_read_holds_up_no_destroy(nexus: NexusCore, store: Store, tmp_path: Path) -> None:
    """A backup that was begun before has the version still; nothing is left of it once the copy is removed."""
    row = put(nexus)
    with store.copy():  # type: ignore[attr-defined]
        destroy(nexus, 1)
        assert {place.split(" in ")[1] for place in find_remains(tmp_path, row)} == {"nexus.db.copy"}
    assert find_remains(tmp_path, row) == []


def test_a_store_that_fails_to_scrub_is_no_change_that_failed(nexus: NexusCore, failing: FailingStore) -> None:
    """STORE_UNAVAILABLE would say that nothing was destroyed."""
    put(nexus)

    def refuse() -> None:
        raise StoreUnavailableError("store failed to scrub: SQLITE_IOERR")

    failing.at_scrub = refuse
    with pytest.raises(NotScrubbedError, match="SQLITE_IOERR"):
        destroy(nexus, 1)


def test_no_keys_are_lent_while_a_scrub_is_waited_for(nexus: NexusCore, failing: FailingStore) -> None:
    """A seal would wait for them."""
    put(nexus)
    lent: list[int] = []
    failing.at_scrub = lambda: lent.append(nexus.lifecycle.borrowers)
    destroy(nexus, 1)
    assert lent == [0]


def test_destroys_at_the_same_time_share_a_scrub(nexus: NexusCore, failing: FailingStore) -> None:
    """Those that come while one is under way wait for the next, which is for all of them."""
    count = 6
    for number in range(count + 1):
        put(nexus, path=f"team/{number}")
    begun, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert may_go_on.wait(LONG_S)

    failing.at_scrub, before = wait, failing.scrubs
    with ThreadPoolExecutor(count + 1) as pool:
        answers = [pool.submit(destroy, nexus, 1, path="team/0")]
        assert begun.wait(LONG_S)
        answers += [pool.submit(destroy, nexus, 1, path=f"team/{number}") for number in range(1, count + 1)]
        wait_until(lambda: count_destroyed(nexus, count + 1) == count + 1)
        may_go_on.set()
        for answer in answers:
            answer.result(LONG_S)
    assert failing.scrubs - before == 2


def count_destroyed(nexus: NexusCore, count: int) -> int:
    with nexus.store.read() as reader:
        return sum(not reader.load_kept_versions(f"team/{number}") for number in range(count))


def test_a_scrub_of_before_is_none_for_what_was_destroyed_since(failing: FailingStore) -> None:
    """Where nothing was destroyed since, one is enough."""
    scrub = SharedScrub(failing)
    insert(failing, make_row("a"))
    for wanted in (1, 1):
        scrub.run(1)
        assert failing.scrubs == wanted
    failing.write(lambda writer: writer.destroy("a", [1], caller=CALLER, destroyed_at=1))
    scrub.run(2)
    assert failing.scrubs == 2


def test_a_destroy_that_is_repeated_needs_no_other_scrub_than_its_own(nexus: NexusCore, failing: FailingStore) -> None:
    """Whatever else was written meanwhile: else a scrub that takes longer than callers wait would never be enough."""
    put(nexus)
    request_id = os.urandom(16)
    made = destroy(nexus, 1, request_id=request_id)
    scrubs = failing.scrubs
    put(nexus, path="team/other")
    assert destroy(nexus, 1, request_id=request_id) == made
    assert failing.scrubs == scrubs


def test_a_destroy_does_not_wait_for_another_scrub_for_ever(failing: FailingStore) -> None:
    """Its own time is over while the other one has the lock."""
    scrub = SharedScrub(failing, seconds=0.05)
    begun, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert may_go_on.wait(LONG_S)

    insert(failing, make_row("a"))
    failing.at_scrub = wait
    with ThreadPoolExecutor() as pool:
        first = pool.submit(scrub.run, 1)
        assert begun.wait(LONG_S)
        with pytest.raises(NotScrubbedError, match="other scrubs are under way"):
            scrub.run(1)
        may_go_on.set()
        first.result(LONG_S)


def test_a_destroy_waits_five_seconds_at_most() -> None:
    """Design §6."""
    assert scrubbing.SCRUB_S == 5.0


def test_what_was_pruned_is_scrubbed_by_and_by(store: Store, tmp_path: Path) -> None:
    """Ten minutes later at most, once, and only if there is something; one that fails is tried again soon."""
    clock, failing = ManualClock(), FailingStore(store)
    late = LateScrubs(failing, clock)
    store.scrub(seconds=0)
    insert(store, make_row("a"))
    store.write(lambda writer: writer.destroy("a", [1], caller=CALLER, destroyed_at=1))
    late.look()
    assert failing.scrubs == 0
    failing.cannot_scrub = True
    for scrubs, seconds in ((1, LOOK_S), (1, AGAIN_S / 2), (2, AGAIN_S / 2)):
        clock.advance(seconds)
        late.look()
        assert failing.scrubs == scrubs
    failing.cannot_scrub = False
    for _ in range(3):
        clock.advance(LOOK_S)
        late.look()
    assert failing.scrubs == 3
    assert b"value a:1" not in (tmp_path / "nexus.db").read_bytes()
    assert not store.is_scrub_due
