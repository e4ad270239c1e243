"""The marks of more than one generation: what the chain of a mark says about the store."""

from dataclasses import replace
from typing import Any

import pytest

from common.errors import MarkError
from common.forms.mark import SignedMark
from nexus.keepers.marks import KnownMarks, MarkBook, NewerMark
from nexus.store.protocol import Meta, Phase
from tests.kit.chains import ChainMaker, make_chain
from tests.kit.marks import MarkMaker

# The link to generation 2 is of revision 100 and control revision 10, that to generation 3 of 200 and 20, and so on.
CHAINS = [make_chain(4).cut(seq) for seq in range(5)]
FORK = make_chain(1).cut(1).add(branch="fork", revision=150)
STORE = Meta(Phase.INITIALISED, b"c" * 16, False, 1, 250, 25, 3, 7, 4, 1, 6)  # timeline 1, revision 250, generation 3
CHAIN = CHAINS[2].chain


def sign(chains: ChainMaker, **parts: Any) -> SignedMark:
    return MarkMaker(chains=chains).make(**parts)


def take(*marks: SignedMark) -> KnownMarks:
    book = MarkBook(CHAINS[0].genesis)
    for mark in marks:
        book.take("keeper-1", mark)
    return book.list_known()


def find(*marks: SignedMark, meta: Meta = STORE) -> NewerMark | None:
    return take(*marks).find_newer(meta, CHAIN)


@pytest.mark.parametrize(
    ("mark", "blocks", "is_dead"),
    [
        pytest.param(sign(CHAINS[2], revision=250, control_revision=25), False, False, id="this store"),
        pytest.param(sign(CHAINS[2], revision=251, control_revision=25), True, False, id="this generation, later"),
        pytest.param(
            sign(CHAINS[1], revision=199, control_revision=19), False, False, id="before: just before the flip"
        ),
        pytest.param(sign(CHAINS[0], revision=99, control_revision=9), False, False, id="before: two generations"),
        pytest.param(sign(CHAINS[1], revision=200, control_revision=19), False, True, id="dead key: at the flip"),
        pytest.param(sign(CHAINS[1], revision=9999, control_revision=19), False, True, id="dead key: far ahead"),
        pytest.param(sign(CHAINS[1], revision=150, control_revision=20), False, True, id="dead key: control rows"),
        pytest.param(sign(CHAINS[1], timeline=2), False, True, id="dead key: of a later timeline"),
        pytest.param(sign(CHAINS[3]), True, False, id="extension: further"),
        pytest.param(sign(CHAINS[3], revision=300, control_revision=30), True, False, id="extension: at its flip"),
        pytest.param(sign(FORK, revision=160), True, False, id="fork: of a lower revision"),
        pytest.param(sign(FORK, revision=900), True, False, id="fork: of a higher revision"),
    ],
)
def test_what_a_mark_says_of_a_store(mark: SignedMark, blocks: bool, is_dead: bool) -> None:
    """A store of generation 3 at revision 250, in its first timeline."""
    assert (find(mark) is not None) == blocks
    assert [keeper for keeper, _ in take(mark).list_dead(CHAIN)] == (["keeper-1"] if is_dead else [])


@pytest.mark.parametrize(
    "mark",
    [
        pytest.param(sign(CHAINS[3]), id="extension"),
        pytest.param(sign(FORK, revision=900), id="fork"),
        pytest.param(sign(CHAINS[2], revision=900), id="the same generation"),
    ],
)
def test_a_timeline_that_was_given_up_blocks_nothing(mark: SignedMark) -> None:
    """Once the older store was accepted, a new timeline goes on from it; what came after it in the other is over."""
    assert find(mark) is not None
    assert find(mark, meta=replace(STORE, timeline=2)) is None


def test_an_extension_blocks_whatever_the_revision() -> None:
    """Whoever puts an older store back can raise its revision, but not lengthen its chain."""
    raised = replace(STORE, revision=9999, control_revision=99, epoch=99)
    newer = find(sign(CHAINS[3]), meta=raised)
    assert newer is not None
    assert newer.describe(raised) == (
        "the store is older than a rollback mark: it is at timeline 1, revision 9999 of generation 3, and keeper-1 "
        "remember generation 4"
    )
    assert newer.last_generation == 4


def test_a_fork_is_told_from_where_it_parts() -> None:
    """The last generation that both know."""
    newer = find(sign(FORK, revision=160))
    assert newer is not None
    assert "after generation 2 the store goes another way" in newer.describe(STORE)


def test_a_mark_by_a_dead_key_hides_no_other_one() -> None:
    """Nor are its numbers taken for numbers that were given out."""
    dead = sign(CHAINS[1], revision=2**40, control_revision=2**40, epoch=2**40, last_set_number=2**60)
    true = sign(CHAINS[2], revision=251, control_revision=25)
    for marks in ((dead, true), (true, dead)):
        newer = find(*marks)
        assert newer is not None
        assert (newer.mark.revision, newer.last_set_number) == (251, 7)


def test_a_mark_of_an_earlier_generation_has_no_epoch_that_counts() -> None:
    """Whatever a dead key says in a mark of before its end."""
    assert find(sign(CHAINS[1], revision=150, control_revision=15, epoch=2**40)) is None


def test_a_keeper_fills_no_memory_with_forks() -> None:
    """Who has a dead key can make any number of chains; those that a keeper told last are kept."""
    book = MarkBook(CHAINS[0].genesis)
    for number in range(40):
        book.take("keeper-1", sign(make_chain(1).cut(1).add(branch=str(number)), revision=1000 + number))
    known = book.list_known().marks["keeper-1"]
    assert {seen.mark.revision for seen in known} == set(range(1032, 1040))


def test_a_chain_of_another_cluster_is_a_lie() -> None:
    """However long it is."""
    other = ChainMaker(seed=b"b" * 32).add()
    with pytest.raises(MarkError, match="another cluster"):
        take(sign(other))
