"""The chain of generations: what follows from genesis is taken, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ChainError
from common.forms.chain import (
    MAX_LINK_SIZE,
    MAX_LINKS,
    Chain,
    begin_chain,
    decode_link,
    extend_chain,
    verify_chain,
)
from tests.kit.chains import ChainMaker, make_chain, public_bytes

FOUR = make_chain(4)
OTHER = ChainMaker(cluster_id=b"o" * 16, seed=b"b" * 32).add().add()
PIN = FOUR.genesis.fingerprint


def refuse(records: list[bytes]) -> None:
    """See that a chain is refused, from genesis and from every prefix that was verified before."""
    with pytest.raises(ChainError):
        verify_chain(records, PIN)
    for seq in range(FOUR.chain.seq + 1):
        with pytest.raises(ChainError):
            verify_chain(records, PIN, verified=FOUR.chain.cut(seq))


def test_a_chain_says_which_generation_is_current() -> None:
    """Of the last link: generation, kcv, signer, digests; and the digest of the last record stands for all of it."""
    chain = FOUR.chain
    assert (chain.seq, chain.generation) == (4, 5)
    assert chain.audit_public_key == public_bytes(FOUR.key)
    assert (chain.kcv, chain.recovery_digest, chain.escrow_digest) == (b"k" * 32, b"r" * 32, b"e" * 32)
    assert [link.revision for link in chain.links] == [100, 200, 300, 400]


def test_a_chain_of_genesis_alone_says_the_same_of_the_first_generation() -> None:
    """With the digest of the recovery key that the record holds whole."""
    chain = begin_chain(FOUR.genesis)
    assert chain == verify_chain([FOUR.genesis.encode()], PIN) == FOUR.chain.cut(0)
    assert (chain.seq, chain.generation, chain.digest) == (0, 1, PIN)
    assert chain.audit_public_key == FOUR.genesis.audit_public_key
    assert len(chain.recovery_digest) == 32


def test_a_verified_prefix_gives_the_same_chain() -> None:
    """However much of it was verified, also when that is longer or of another branch."""
    fork = FOUR.cut(2).add(branch="fork").chain
    for verified in (*(FOUR.chain.cut(seq) for seq in range(5)), fork, OTHER.chain):
        for seq in range(5):
            assert verify_chain(FOUR.records[: seq + 1], PIN, verified=verified) == FOUR.chain.cut(seq)


def test_a_verified_prefix_is_not_verified_again() -> None:
    """A keeper that knows the first links decodes and verifies the others only."""
    prefix = FOUR.chain.cut(3)
    links = verify_chain(FOUR.records, PIN, verified=prefix).links
    assert [link is known for link, known in zip(links, prefix.links, strict=False)] == [True] * 3


def test_an_extension_is_told_from_a_fork() -> None:
    """By the digests."""
    chain, fork = FOUR.chain, FOUR.cut(2).add(branch="fork").chain
    assert chain.extends(chain.cut(2))
    assert not any((chain.extends(chain), chain.cut(2).extends(chain), chain.extends(fork), fork.extends(chain)))
    assert (chain.count_common(fork), chain.count_common(chain.cut(1)), chain.count_common(chain)) == (3, 2, 5)
    assert chain.count_common(OTHER.chain) == 0


@given(st.data())
def test_any_edit_drop_duplicate_or_reorder_is_refused(data: st.DataObject) -> None:
    """One byte anywhere, or whole records; what is cut off at the end is a shorter chain."""
    records = list(FOUR.records)
    at, to = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    match data.draw(st.sampled_from(["edit", "drop", "duplicate", "swap", "foreign"])):
        case "edit":
            index = data.draw(st.integers(0, len(records[at]) - 1))
            flipped = bytes([records[at][index] ^ data.draw(st.integers(1, 255))])
            records[at] = records[at][:index] + flipped + records[at][index + 1 :]
        case "drop":
            del records[min(at, 3)]
        case "duplicate":
            records.insert(at, records[at])
        case "swap":
            records[at], records[to] = records[to], records[at]
        case _:
            records[at] = OTHER.records[min(at, 2)]
    if records != FOUR.records:
        refuse(records)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"cluster_id": b"o" * 16}, id="another cluster"),
        pytest.param({"seq": 4}, id="number of the one before"),
        pytest.param({"seq": 6}, id="number left out"),
        pytest.param({"before": b"x" * 32}, id="another record before"),
        pytest.param({"generation": 5}, id="the same generation"),
        pytest.param({"generation": 4}, id="an earlier generation"),
        pytest.param({"revision": 400}, id="the same revision"),
        pytest.param({"timeline": 0}, id="an earlier timeline"),
        pytest.param({"control_revision": 40}, id="the same control revision"),
        pytest.param({"audit_public_key": public_bytes(FOUR.keys[0])}, id="the audit key of an earlier generation"),
        pytest.param({"audit_public_key": public_bytes(FOUR.keys[4])}, id="the audit key that signs it"),
    ],
)
def test_a_link_that_does_not_follow_is_refused_although_it_is_signed(parts: dict[str, Any]) -> None:
    """Whatever the key of the generation before has signed."""
    link, _ = FOUR.make_link(**parts)
    with pytest.raises(ChainError):
        verify_chain([*FOUR.records, link.sign(FOUR.key.sign)], PIN)


@pytest.mark.parametrize("signer", [0, 3])
def test_a_link_that_an_earlier_generation_signs_is_refused(signer: int) -> None:
    """The key that was superseded makes nothing follow any more, where the chain that superseded it is known."""
    link, _ = FOUR.make_link()
    refuse([*FOUR.records, link.sign(FOUR.keys[signer].sign)])


@pytest.mark.parametrize(
    "bend",
    [
        pytest.param(lambda record: b"", id="empty"),
        pytest.param(lambda record: record[:-1], id="cut off"),
        pytest.param(lambda record: record + bytes(4), id="one part more"),
        pytest.param(lambda record: record + bytes(MAX_LINK_SIZE), id="too long"),
        pytest.param(lambda record: record.replace(b"link-v1", b"link-v2"), id="another format"),
        pytest.param(lambda record: record.replace(b"record-v1", b"record-v2"), id="another form of the record"),
        pytest.param(lambda record: FOUR.records[0], id="the genesis record"),
    ],
)
def test_what_is_no_link_is_refused(bend: Callable[[bytes], bytes]) -> None:
    """Exactly one encoding decodes."""
    with pytest.raises(ChainError):
        decode_link(bend(FOUR.records[1]))


def test_a_chain_of_another_cluster_is_refused() -> None:
    """Whole or mixed."""
    refuse(OTHER.records)
    refuse([*FOUR.records, OTHER.records[1]])
    refuse([])


def test_a_chain_has_at_most_1024_links_of_512_bytes() -> None:
    """The last one fits, and no further one; so a rollback mark fits into a message."""
    longest = make_chain(MAX_LINKS)
    chain: Chain = longest.chain
    assert chain.seq == MAX_LINKS
    assert max(map(len, longest.records[1:])) <= MAX_LINK_SIZE
    link, _ = longest.make_link()
    record = link.sign(longest.key.sign)
    with pytest.raises(ChainError, match="1026 records"):
        verify_chain([*longest.records, record], PIN)
    with pytest.raises(ChainError, match="1025 links"):
        extend_chain(chain, [record])
