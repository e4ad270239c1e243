"""Rollback marks on the side of the nexus: whom it believes, what it concludes, and what it makes."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest

from common.clock import to_micros
from common.errors import MarkError
from common.forms.mark import NO_AUDIT, AuditEnd, Mark, SignedMark, verify_mark
from common.keys.protected import ProtectedMemory
from nexus.keepers.marks import MarkBook, MarkMaker
from nexus.store.protocol import Meta
from tests.kit.manual_clock import ManualClock
from tests.kit.patience import join
from tests.nexus.cluster import MADE_AT, FoundCluster, FoundedCluster, open_store
from tests.nexus.cluster import found as found_in
from tests.nexus.played_keepers import DEADLINE_S


@pytest.fixture
def cluster(found: FoundCluster) -> FoundedCluster:
    """3 of 5."""
    return found()


def at(cluster: FoundedCluster, timeline: int, revision: int) -> Meta:
    """The store of *cluster*, at another position."""
    return replace(cluster.load()[0], timeline=timeline, revision=revision)


@pytest.mark.parametrize(
    ("mark", "blocks"),
    [
        pytest.param((2, 50), False, id="of this position"),
        pytest.param((2, 49), False, id="of an earlier revision"),
        pytest.param((1, 999), False, id="of an earlier timeline, further on"),
        pytest.param((2, 51), True, id="one revision more"),
        pytest.param((3, 1), True, id="of a later timeline"),
    ],
)
def test_a_mark_blocks_only_a_store_that_is_older(cluster: FoundedCluster, mark: tuple[int, int], blocks: bool) -> None:
    """Marks and stores are ordered by timeline, then by revision."""
    book = cluster.book()
    taken = book.take("keeper-1", cluster.sign_mark(*mark))
    assert taken is not None
    assert taken.position == mark
    assert (book.find_newer(at(cluster, 2, 50), cluster.chain) is not None) == blocks


def test_older_control_rows_are_found_behind_a_raised_revision(cluster: FoundedCluster) -> None:
    """Who puts old policies back can edit the revision, but not the control revision: the manifest has it."""
    book = cluster.book()
    book.take("keeper-1", cluster.sign_mark(2, 50, control_revision=7))
    put_back = replace(at(cluster, 2, 999), control_revision=6)
    newer = book.find_newer(put_back, cluster.chain)
    assert newer is not None
    assert "policies or settings" in newer.describe(put_back)
    assert book.find_newer(replace(put_back, control_revision=7), cluster.chain) is None
    assert (
        book.find_newer(replace(put_back, timeline=3), cluster.chain) is None
    )  # accepted as older: a new timeline counts anew


def test_a_store_whose_revision_was_raised_is_older_by_its_control_revision(cluster: FoundedCluster) -> None:
    """Who writes the database can raise the one and not the other; the keepers that know are named."""
    book = cluster.book()
    book.take("keeper-1", cluster.sign_mark(1, 60, control_revision=5))
    book.take("keeper-1", cluster.sign_mark(1, 90, control_revision=3))
    book.take("keeper-2", cluster.sign_mark(1, 95, control_revision=4))
    raised = replace(at(cluster, 1, 1000), control_revision=4)
    newer = book.find_newer(raised, cluster.chain)
    assert newer is not None
    assert (newer.mark.revision, newer.keepers) == (60, ("keeper-1",))
    assert newer.describe(raised) == (
        "policies or settings of the store are older than a rollback mark: control revision 4, and keeper-1 remember 5"
    )
    assert book.find_newer(replace(raised, control_revision=5), cluster.chain) is None
    assert book.find_newer(replace(raised, timeline=2, control_revision=1), cluster.chain) is None


def broken(cluster: FoundedCluster, signed: SignedMark) -> SignedMark:
    return replace(signed, signature=bytes([signed.signature[0] ^ 1, *signed.signature[1:]]))


def edited(cluster: FoundedCluster, signed: SignedMark) -> SignedMark:
    return replace(signed, mark=signed.mark[:-1] + bytes([signed.mark[-1] ^ 1]))


def without_chain(cluster: FoundedCluster, signed: SignedMark) -> SignedMark:
    return replace(signed, chain=())


def with_longer_chain(cluster: FoundedCluster, signed: SignedMark) -> SignedMark:
    return replace(signed, chain=signed.chain * 2)


def badly_signed(cluster: FoundedCluster, signed: SignedMark) -> SignedMark:
    """From the future, by a key that is not the cluster's."""
    maker, meta = MarkMaker(ManualClock()), at(cluster, 99, 99)
    return maker.make(meta, NO_AUDIT, chain=cluster.chain, signer=_OtherKey(), set_number=1)[1]


class _OtherKey:
    public_key = bytes(32)

    def sign(self, message: bytes) -> bytes:
        return bytes(64)


LIES = [
    pytest.param(broken, "broken signature", id="broken signature"),
    pytest.param(edited, "broken signature", id="edited"),
    pytest.param(without_chain, "chain has 0 records", id="no chain"),
    pytest.param(with_longer_chain, "want at most 512", id="longer chain"),
    pytest.param(badly_signed, "broken signature", id="future, signed by nobody"),
]


@pytest.mark.parametrize(("forge", "why"), LIES)
def test_a_mark_that_does_not_verify_blocks_nothing(cluster: FoundedCluster, forge: object, why: str) -> None:
    """It is refused by name; its keeper has answered all the same."""
    book = cluster.book()
    with pytest.raises(MarkError, match=why):
        book.take("keeper-1", forge(cluster, cluster.sign_mark(9, 9)))  # type: ignore[operator]
    assert book.find_newer(at(cluster, 1, 1), cluster.chain) is None
    book.wait_answers(1, seconds=0)


def test_a_true_mark_of_another_cluster_blocks_nothing(
    cluster: FoundedCluster, memory: ProtectedMemory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A mark of another cluster blocks nothing, under its own genesis record or under ours."""
    store = open_store(tmp_path_factory.mktemp("other"))
    other = found_in(store, memory)
    theirs = other.sign_mark(9, 9)
    other.book().take("keeper-1", theirs)  # where it belongs it is a true one
    book = cluster.book()
    for mark in (theirs, replace(theirs, chain=(cluster.genesis_record.encode(),))):
        with pytest.raises(MarkError, match="another cluster|broken signature"):
            book.take("keeper-1", mark)
    assert book.find_newer(at(cluster, 1, 1), cluster.chain) is None
    store.close()


def test_the_newest_mark_is_named_with_all_who_hold_it(cluster: FoundedCluster) -> None:
    """The newest mark carries the highest numbers that any mark knows, since a new set must be above all of them."""
    book = cluster.book()
    book.take("keeper-3", cluster.sign_mark(2, 60, generation=1, set_number=4))
    book.take("keeper-1", cluster.sign_mark(2, 60, generation=1, set_number=4))
    book.take("keeper-2", cluster.sign_mark(1, 90, last_generation=3, set_number=7))
    book.take("keeper-4", None)
    newer = book.find_newer(at(cluster, 2, 50), cluster.chain)
    assert newer is not None
    assert (newer.mark.position, newer.mark.made_at) == ((2, 60), MADE_AT)
    assert newer.keepers == ("keeper-1", "keeper-3")
    assert (newer.last_generation, newer.last_set_number) == (3, 7)
    assert newer.describe(at(cluster, 2, 50)) == (
        "the store is older than a rollback mark: it is at timeline 2, revision 50, and keeper-1, keeper-3 remember "
        "timeline 2, revision 60"
    )


def test_the_newest_own_mark_is_found(cluster: FoundedCluster) -> None:
    """Whatever keepers remember."""
    book = cluster.book()
    book.take("keeper-1", cluster.sign_mark(1, 90))
    assert book.find_own() is None
    for revision in (40, 50):
        mark = verify_mark(cluster.sign_mark(1, revision), cluster_id=cluster.cluster_id, genesis=cluster.genesis)
        book.take_own(mark, cluster.chain)
    assert book.find_own() == mark


@pytest.mark.parametrize("later", [None, (1, 10)], ids=["nothing", "an older mark"])
def test_what_a_keeper_told_once_counts_for_good(cluster: FoundedCluster, later: tuple[int, int] | None) -> None:
    """After a restart it remembers less; the mark was true all the same."""
    book = cluster.book()
    book.take("keeper-1", cluster.sign_mark(1, 60))
    book.take("keeper-1", cluster.sign_mark(*later) if later else None)
    newer = book.find_newer(at(cluster, 1, 50), cluster.chain)
    assert newer is not None
    assert newer.mark.revision == 60


def test_a_keeper_that_answers_late_is_heard(cluster: FoundedCluster) -> None:
    """A late answer is seen by those who wait for the answers and by every later look."""
    book, seen = cluster.book(), list[bool]()
    meta, marks = at(cluster, 1, 50), [cluster.sign_mark(1, 40), cluster.sign_mark(1, 60)]

    def wait() -> None:
        book.wait_answers(2, seconds=DEADLINE_S)
        seen.append(book.find_newer(meta, cluster.chain) is not None)

    book.take("keeper-1", marks[0])
    book.wait_answers(2, seconds=0)  # not for ever
    waiter = threading.Thread(target=wait)
    waiter.start()
    book.take("keeper-2", marks[1])
    join(waiter, DEADLINE_S)
    assert seen == [True]


Make = Callable[..., tuple[Mark, SignedMark]]


@pytest.fixture
def make(cluster: FoundedCluster) -> Iterator[Make]:
    """Sign with the audit key of the cluster."""
    key = cluster.make_root_key()
    yield partial(MarkMaker(CLOCK).make, chain=cluster.chain, signer=key)
    key.release()


CLOCK = ManualClock()


def test_a_mark_is_made_once_for_each_position(cluster: FoundedCluster, make: Make) -> None:
    """The same objects while the store stands still; each verifies as a keeper verifies it."""
    meta = cluster.load()[0]
    first = make(meta, NO_AUDIT, set_number=1)
    CLOCK.advance(5)
    assert make(meta, NO_AUDIT, set_number=1)[1] is first[1]
    audit = AuditEnd("n1", 2, 30, b"h" * 32)
    for changes in ({"revision": meta.revision + 1}, {"timeline": 2}, {"control_revision": 9}, {"epoch": 8}):
        moved = replace(meta, last_generation=3, last_set_number=7, last_kek_id=4, **changes)  # type: ignore[arg-type]
        mark, signed = make(moved, audit, set_number=2)
        assert signed is not first[1]
        assert verify_mark(signed, cluster_id=cluster.cluster_id, genesis=cluster.genesis) == mark
        assert moved.position[:4] == (mark.timeline, mark.revision, mark.control_revision, mark.epoch)
        assert (mark.generation, mark.set_number, mark.chain_seq) == (1, 2, 0)
        assert (mark.last_generation, mark.last_set_number, mark.last_kek_id) == (3, 7, 4)
        assert (mark.audit, mark.made_at) == (audit, to_micros(CLOCK.now()))


def test_a_store_that_is_only_read_is_marked_anew_each_second(cluster: FoundedCluster, make: Make) -> None:
    """A read is a line in the audit, which the mark holds; while nothing is read, no mark is made."""
    meta, made = cluster.load()[0], []
    for seq, seconds in [(1, 0.0), (2, 0.5), (3, 0.4), (4, 0.1), (4, 60.0), (5, 0.1)]:
        CLOCK.advance(seconds)
        made.append(make(meta, AuditEnd("n1", 1, seq), set_number=1)[0].audit.seq)
    assert made == [1, 1, 1, 4, 4, 5]


def test_a_lower_epoch_is_found_behind_a_raised_revision(cluster: FoundedCluster) -> None:
    """Who undoes a seal can edit the revision and the control revision as they were, and the epoch shows it."""
    book = cluster.book()
    book.take("keeper-1", cluster.sign_mark(2, 50, control_revision=7, epoch=4))
    book.take("keeper-1", cluster.sign_mark(2, 90, control_revision=7, epoch=3))
    put_back = replace(at(cluster, 2, 999), control_revision=7, epoch=3)
    newer = book.find_newer(put_back, cluster.chain)
    assert newer is not None
    assert newer.describe(put_back) == (
        "a seal or an unseal was undone in the store, which is older than a rollback mark: epoch 3, "
        "and keeper-1 remember 4"
    )
    assert book.find_newer(replace(put_back, epoch=4), cluster.chain) is None
    assert book.find_newer(replace(put_back, timeline=3), cluster.chain) is None


def test_what_this_nexus_marked_itself_counts(cluster: FoundedCluster, make: Make) -> None:
    """Without any keeper; it is named beside those that remember the same."""
    book, meta = cluster.book(), cluster.load()[0]
    mark, signed = make(replace(meta, revision=60), NO_AUDIT, set_number=1)
    book.take_own(mark, cluster.chain)
    newer = book.find_newer(replace(meta, revision=50), cluster.chain)
    assert newer is not None
    assert (newer.is_own, newer.keepers) == (True, ())
    assert newer.describe(replace(meta, revision=50)).endswith("and this nexus remember timeline 1, revision 60")
    book.take("keeper-2", signed)
    newer = book.find_newer(replace(meta, revision=50), cluster.chain)
    assert newer is not None
    assert "keeper-2, this nexus remember" in newer.describe(replace(meta, revision=50))
    assert book.find_newer(replace(meta, revision=60), cluster.chain) is None


def test_numbers_that_were_given_out_are_told(cluster: FoundedCluster) -> None:
    """A mark of the second format knows more of them than those of its own set."""
    book = cluster.book()
    book.take("keeper-1", cluster.sign_mark(1, 60, set_number=4, last_set_number=9, last_generation=3, last_kek_id=5))
    book.take("keeper-2", cluster.sign_mark(1, 50, set_number=6, format=1))
    newer = book.find_newer(at(cluster, 1, 40), cluster.chain)
    assert newer is not None
    assert (newer.last_generation, newer.last_set_number, newer.last_kek_id) == (3, 9, 5)


def test_a_book_is_of_one_genesis_record(cluster: FoundedCluster) -> None:
    """Marks count only when they begin with the genesis record of the book."""
    book = MarkBook(cluster.genesis_record)
    assert (book.cluster_id, book.fingerprint) == (cluster.cluster_id, cluster.genesis)
